"""Timing one slot after the other on a single device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hsap_hf.attention import compile_tables
from hsap_hf.attention.function import Call, backward, forward
from hsap_hf.cli.bench.timing import median_ms
from hsap_hf.cli.bench.whole_pack import Shape, draw_pack
from hsap_hf.comm import Traffic, share_heads
from hsap_hf.comm.axis import Pending
from hsap_hf.planner import compile_plan


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
    """Median times in ms of the whole pack on one device divided by the slots ("ideal"), and of the slowest slot."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pack = draw_pack(lengths, shape, device)
    q, k, v, grad = pack.problem.q, pack.problem.k, pack.problem.v, pack.grad
    out, lse = pack.forward()
    ideal_forward = median_ms(pack.forward, repeats, device)
    ideal_backward = median_ms(lambda: pack.backward(out, lse), repeats, device)
    plan = compile_plan(lengths, context_size)
    forwards, backwards = [], []
    for slot in range(context_size):
        rows = plan.tokens(slot)
        tables = compile_tables(plan, slot, None, device)
        share = share_heads(shape.heads, shape.kv_heads, 1, device)
        axes = FreeAxis(slot, context_size), FreeAxis(0, 1)
        call = Call(tables, *axes, [rows], share, pack.kernel, pack.problem.scores)
        own_q, own_k, own_v, own_grad = (x[:rows] for x in (q, k, v, grad))
        _, saved = forward(call, own_q, own_k, own_v, None)
        forwards.append(median_ms(lambda: forward(call, own_q, own_k, own_v, None), repeats, device))  # noqa: B023
        backwards.append(median_ms(lambda: backward(call, saved, own_grad), repeats, device))  # noqa: B023
    both = max(f + b for f, b in zip(forwards, backwards, strict=True))
    return {
        "kernel": pack.kernel.name,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "dtype": str(q.dtype).removeprefix("torch."),
        "slots": context_size,
        "ideal_forward_ms": ideal_forward / context_size,
        "ideal_backward_ms": ideal_backward / context_size,
        "forward_ms": max(forwards),
        "backward_ms": max(backwards),
        "ratio": (ideal_forward + ideal_backward) / context_size / both,
    }
