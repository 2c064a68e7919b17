"""Timing one slot after the other on a single device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hsap_hf.attention import compile_tables
from hsap_hf.attention.function import Call, backward, forward
from hsap_hf.cli.bench.measurement import ROUNDS
from hsap_hf.cli.bench.timing import median_ms
from hsap_hf.cli.bench.whole_pack import Shape, WholePack, draw_pack
from hsap_hf.comm import Traffic, share_heads
from hsap_hf.comm.axis import Pending
from hsap_hf.planner import Plan, compile_plan

Run = Callable[[], object]


@dataclass
class FreeAxis:
    """An axis whose messages arrive at once: received rows are random numbers drawn beforehand."""

    rank: int
    size: int
    traffic: Traffic = field(default_factory=Traffic)
    _drawn: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def all_to_all(self, send: Tensor, send_rows: list[int], receive_rows: list[int], purpose: str) -> Pending:
        shape = (sum(receive_rows), *send.shape[1:])
        if shape not in self._drawn:
            self._drawn[shape] = torch.randn(shape, device=send.device).to(send.dtype)
        return Pending(self._drawn[shape], None)


def time_slots(lengths: list[int], context_size: int, shape: Shape, repeats: int) -> dict[str, Any]:
    """Median times in ms of the whole pack on one device divided by the slots ("ideal"), and of the slowest slot.

    The whole and the slots take turns, because a device's speed drifts while it gets warm.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pack = draw_pack(lengths, shape, device)
    out, lse = pack.forward()
    plan = compile_plan(lengths, context_size)
    runs: list[tuple[Run, Run]] = [(pack.forward, lambda: pack.backward(out, lse))]
    runs += [_slot_runs(pack, plan, slot, shape) for slot in range(context_size)]

    def median(run: Run) -> float:
        return median_ms(run, -(-repeats // ROUNDS), device)

    rounds = [[[median(run) for run in both] for both in runs] for _ in range(ROUNDS)]
    whole, *slots = torch.tensor(rounds).median(0).values.tolist()
    ideal_forward, ideal_backward = (ms / context_size for ms in whole)
    return {
        "kernel": pack.kernel.name,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "dtype": str(pack.grad.dtype).removeprefix("torch."),
        "slots": context_size,
        "ideal_forward_ms": ideal_forward,
        "ideal_backward_ms": ideal_backward,
        "forward_ms": max(forward_ms for forward_ms, _ in slots),
        "backward_ms": max(backward_ms for _, backward_ms in slots),
        "ratio": (ideal_forward + ideal_backward) / max(map(sum, slots)),
    }


def _slot_runs(pack: WholePack, plan: Plan, slot: int, shape: Shape) -> tuple[Run, Run]:
    """Forward and backward of one slot. Its rows are the pack's first: what they hold does not change times."""
    rows, device = plan.tokens(slot), pack.grad.device
    tables = compile_tables(plan, slot, None, device)
    share = share_heads(shape.heads, shape.kv_heads, 1, device)
    axes = FreeAxis(slot, plan.context_size), FreeAxis(0, 1)
    call = Call(tables, *axes, [rows], share, pack.kernel, pack.problem.scores)
    q, k, v, grad = (x[:rows] for x in (pack.problem.q, pack.problem.k, pack.problem.v, pack.grad))
    _, saved = forward(call, q, k, v, None)
    return lambda: forward(call, q, k, v, None), lambda: backward(call, saved, grad)
