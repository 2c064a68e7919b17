"""Timing one slot after the other on a single device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hsap_hf.attention import compile_tables
from hsap_hf.attention.function import Call, backward, forward
from hsap_hf.attention.kernels import Kernel, Problem
from hsap_hf.cli.bench.measurement import ROUNDS
from hsap_hf.cli.bench.timing import median_ms
from hsap_hf.cli.bench.whole_pack import Shape, WholePack, draw_pack
from hsap_hf.comm import Traffic, share_heads
from hsap_hf.comm.axis import Pending
from hsap_hf.planner import Plan, compile_plan

Run = Callable[[], object]


@dataclass
class FreeAxis:
    """An axis whose messages arrive at once: received rows are random numbers drawn beforehand, and copied."""

    rank: int
    size: int
    traffic: Traffic = field(default_factory=Traffic)
    _drawn: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def all_to_all(
        self, send: Tensor, send_rows: list[int], receive_rows: list[int], purpose: str, into: Tensor | None = None
    ) -> Pending:
        shape = (sum(receive_rows), *send.shape[1:])
        if shape not in self._drawn:
            self._drawn[shape] = torch.randn(shape, device=send.device).to(send.dtype)
        drawn = self._drawn[shape]
        return Pending(drawn if into is None else into.copy_(drawn), None)


@dataclass
class Recorder:
    """A kernel that remembers what it was asked, so that it can be asked again, alone."""

    kernel: Kernel
    forwards: list[Run] = field(default_factory=list)
    backwards: list[Run] = field(default_factory=list)

    def forward(self, problem: Problem, into: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.forwards.append(partial(self.kernel.forward, problem))
        return self.kernel.forward(problem, into)

    def backward(self, problem: Problem, *result: Any) -> tuple[Tensor, Tensor, Tensor]:
        self.backwards.append(partial(self.kernel.backward, problem, *result[:3]))
        return self.kernel.backward(problem, *result)


def time_slots(lengths: list[int], context_size: int, shape: Shape, repeats: int) -> dict[str, Any]:
    """Median times in ms of the whole pack on one device divided by the slots ("ideal"), of the slowest slot, and of
    nothing but the kernel's calls of a slot, one after the other.

    All of them take turns, because a device's speed drifts while it gets warm.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pack = draw_pack(lengths, shape, device)
    out, lse = pack.forward()
    plan = compile_plan(lengths, context_size)
    runs: list[tuple[Run, ...]] = [(pack.forward, lambda: pack.backward(out, lse))]
    runs += [slot_runs(pack, plan, slot, shape) for slot in range(context_size)]

    def median(run: Run) -> float:
        return median_ms(run, -(-repeats // ROUNDS), device)

    rounds = [[median(run) for several in runs for run in several] for _ in range(ROUNDS)]
    ideal_forward, ideal_backward, *rest = torch.tensor(rounds).median(0).values.tolist()
    slots = torch.tensor(rest).view(context_size, 4)
    forward_ms, backward_ms, kernel_forward_ms, kernel_backward_ms = slots.amax(0).tolist()
    return {
        "kernel": pack.kernel.name,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "dtype": str(pack.grad.dtype).removeprefix("torch."),
        "slots": context_size,
        "ideal_forward_ms": ideal_forward / context_size,
        "ideal_backward_ms": ideal_backward / context_size,
        "forward_ms": forward_ms,
        "backward_ms": backward_ms,
        "kernel_forward_ms": kernel_forward_ms,
        "kernel_backward_ms": kernel_backward_ms,
        "ratio": (ideal_forward + ideal_backward) / context_size / float(slots[:, :2].sum(1).max()),
    }


def slot_runs(pack: WholePack, plan: Plan, slot: int, shape: Shape) -> tuple[Run, Run, Run, Run]:
    """Forward and backward of one slot, and the kernel's calls in them. The slot's rows are the pack's first: what they
    hold does not change times."""
    rows, device = plan.tokens(slot), pack.grad.device
    tables = compile_tables(plan, slot, None, device)
    share = share_heads(shape.heads, shape.kv_heads, 1, device)
    axes = FreeAxis(slot, plan.context_size), FreeAxis(0, 1)
    call = Call(tables, *axes, [rows], share, pack.kernel, pack.problem.scores)
    q, k, v, grad = (x[:rows] for x in (pack.problem.q, pack.problem.k, pack.problem.v, pack.grad))
    recorder = Recorder(pack.kernel)
    recorded = replace(call, kernel=recorder)
    _, saved = forward(recorded, q, k, v, None)
    backward(recorded, saved, grad)
    return (
        lambda: forward(call, q, k, v, None),
        lambda: backward(call, saved, grad),
        lambda: [run() for run in recorder.forwards],
        lambda: [run() for run in recorder.backwards],
    )
