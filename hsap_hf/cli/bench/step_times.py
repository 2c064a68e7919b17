"""What one training step spends its time on: the whole, and waiting for other ranks' messages."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from hsap_hf.comm import HsapMesh, Traffic
from hsap_hf.comm.axis import Axis, Pending


@dataclass
class Waits:
    """Where something had to wait: events on the device's stream, or the host's clock where there is no stream."""

    device: torch.device
    _marks: list[tuple[Any, Any]] = field(default_factory=list)

    def mark(self) -> Any:
        """Now."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def add(self, begun: Any) -> None:
        """Something waited from `begun` until now."""
        self._marks.append((begun, self.mark()))

    def take_ms(self) -> float:
        """All of it since the last call, in milliseconds. The device must have finished."""
        marks, self._marks = self._marks, []
        if self.device.type == "cuda":
            return sum(begun.elapsed_time(ended) for begun, ended in marks)
        return sum(ended - begun for begun, ended in marks) * 1e3


@dataclass(frozen=True)
class WatchedAxis:
    """An axis, and how long its ranks' computation stood still for its exchanges."""

    axis: Axis
    waits: Waits

    @property
    def rank(self) -> int:
        return self.axis.rank

    @property
    def size(self) -> int:
        return self.axis.size

    @property
    def traffic(self) -> Traffic:
        return self.axis.traffic

    def all_to_all(self, send: Tensor, send_rows: list[int], receive_rows: list[int], purpose: str) -> Pending:
        pending = self.axis.all_to_all(send, send_rows, receive_rows, purpose)
        return pending if self.size == 1 else WatchedPending(pending, self.waits)

    def all_gather(self, row: Tensor, purpose: str) -> Tensor:
        return self.axis.all_gather(row, purpose)

    def all_reduce_max(self, row: Tensor, purpose: str) -> Tensor:
        return self.axis.all_reduce_max(row, purpose)


class WatchedPending(Pending):
    """A collective under way whose `wait` is timed."""

    def __init__(self, pending: Pending, waits: Waits) -> None:
        self._pending, self._waits = pending, waits

    def wait(self) -> Tensor:
        begun = self._waits.mark()
        received = self._pending.wait()
        self._waits.add(begun)
        return received


def watch(mesh: HsapMesh, waits: Waits) -> HsapMesh:
    """The same mesh, with both axes of attention watched."""
    return replace(mesh, context=WatchedAxis(mesh.context, waits), ulysses=WatchedAxis(mesh.ulysses, waits))


class StepClock(TrainerCallback):
    """Milliseconds of every step, from the end of the one before, and of waiting for its exchanges."""

    def __init__(self, waits: Waits) -> None:
        self.step_ms: list[float] = []
        self.exposed_ms: list[float] = []
        self._waits = waits
        self._ended = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._waits.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.step_ms.append((now - self._ended) * 1e3)
        self.exposed_ms.append(self._waits.take_ms())
        self._ended = now
