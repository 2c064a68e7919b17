"""What one training step spends its time on: the whole, the deal, and waiting for other ranks' messages."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
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
    """Milliseconds of every step, from the end of the one before; of waiting for its exchanges; and of its deals on
    the host, from when all ranks have their batch."""

    def __init__(self, waits: Waits, world: Axis) -> None:
        self.times: dict[str, list[float]] = {"step_ms": [], "exposed_ms": [], "deal_ms": []}
        self._waits, self._world = waits, world
        self._ended = self._deal_begun = time.perf_counter()
        self._dealt = 0.0

    def watch_deals(self, base: nn.Module) -> None:
        """Time the forward pre-hooks that the model has so far: reading, agreeing, planning and dealing."""
        base.register_forward_pre_hook(self._before_deal, prepend=True)
        base.register_forward_pre_hook(self._after_deal)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._waits.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        found = ((now - self._ended) * 1e3, self._waits.take_ms(), self._dealt * 1e3)
        for times, ms in zip(self.times.values(), found, strict=True):
            times.append(ms)
        self._ended, self._dealt = now, 0.0

    def _before_deal(self, module: nn.Module, args: Any) -> None:
        self._world.all_reduce_max(torch.zeros(1), "start together")  # else the deal waits for the slowest rank
        self._deal_begun = time.perf_counter()

    def _after_deal(self, module: nn.Module, args: Any) -> None:
        self._dealt += time.perf_counter() - self._deal_begun
