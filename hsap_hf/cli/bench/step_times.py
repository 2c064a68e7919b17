"""What one training step spends its time on: the whole, and standing still for other ranks' messages."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from hsap_hf.cli.bench.trace import EXCHANGE, device_spans, summary
from hsap_hf.comm import HsapMesh, Traffic
from hsap_hf.comm.axis import Axis, Pending


@dataclass
class Waits:
    """How long the host stood still for messages, where there is no device that works meanwhile."""

    _ms: float = 0.0

    def add(self, begun: float) -> None:
        """Something waited from `begun`, by time.perf_counter, until now."""
        self._ms += (time.perf_counter() - begun) * 1e3

    def take_ms(self) -> float:
        """All of it since the last call, in milliseconds."""
        taken, self._ms = self._ms, 0.0
        return taken


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

    def all_to_all(
        self, send: Tensor, send_rows: list[int], receive_rows: list[int], purpose: str, into: Tensor | None = None
    ) -> Pending:
        pending = self.axis.all_to_all(send, send_rows, receive_rows, purpose, into)
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
        begun = time.perf_counter()
        received = self._pending.wait()
        self._waits.add(begun)
        return received


def watch(mesh: HsapMesh, waits: Waits) -> HsapMesh:
    """The same mesh, with both axes of attention watched."""
    return replace(mesh, context=WatchedAxis(mesh.context, waits), ulysses=WatchedAxis(mesh.ulysses, waits))


@dataclass
class StepClock(TrainerCallback):
    """Milliseconds of every step, from the end of the one before, and those in which nothing but messages moved.

    On CUDA the latter come from a profile of one step, whose own time then does not count; NaN where none is profiled.
    """

    waits: Waits
    cuda: bool
    profiled_step: int | None
    step_ms: list[float] = field(default_factory=list)
    exposed_ms: list[float] = field(default_factory=list)
    _profile: Any = None
    _ended: float = field(default_factory=time.perf_counter)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.cuda and state.global_step + 1 == self.profiled_step:
            self._profile = profile(activities=[ProfilerActivity.CUDA])
            self._profile.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.cuda:
            torch.cuda.synchronize()
        if self._profile is not None:
            self._profile.__exit__(None, None, None)
            found = summary(*device_spans(self._profile, EXCHANGE))
            self.exposed_ms = [found["exchange_ms"] * (1 - (found["hidden"] or 0.0))]
            return
        now = time.perf_counter()
        self.step_ms.append((now - self._ended) * 1e3)
        self.exposed_ms.append(math.nan if self.cuda else self.waits.take_ms())
        self._ended = now
