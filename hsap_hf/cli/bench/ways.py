"""Ways to compute one pack on all ranks, each from the side of one rank; here those on HSAP's own functions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hsap_hf.attention import Call, compile_tables
from hsap_hf.attention.function import backward, forward
from hsap_hf.cli.bench.whole_pack import Shape, WholePack
from hsap_hf.comm import HsapMesh, rank_rows, share_heads
from hsap_hf.comm.spans import index_tensor, span_rows
from hsap_hf.planner import Plan, compile_plan, fetches, sends


@dataclass(frozen=True)
class Received:
    """What a rank receives from others in one forward and one backward."""

    rows: int
    """Keys and values of one token, or their gradients, from another slot."""
    num_bytes: int
    """Those rows, and what ulysses trades."""


@dataclass(frozen=True)
class Way:
    """One way to compute a pack, on this rank."""

    rows: Tensor
    """The rows of the pack that this rank computes, in its own order."""
    own: Tensor | slice
    """Where they are in this rank's results; the rest is padding."""
    forward: Callable[[], tuple[Tensor, Any]]
    """The output, and what `backward` needs."""
    backward: Callable[[Any], tuple[Tensor, Tensor, Tensor]]
    """(grad_q, grad_k, grad_v)"""
    planned: Received | None = None
    """None where nobody counts."""
    counted: Callable[[], Received] | None = None
    """All that was received so far."""
    copies: int = 1
    """How often the ranks together compute the pack: times are divided by it."""
    during: Callable[[], AbstractContextManager[object]] = nullcontext
    """What goes on while it is timed."""


def hsap_way(pack: WholePack, shape: Shape, mesh: HsapMesh, num_messages: int | None = None) -> Way:
    """HSAP on the mesh's split; plain Ulysses on the same kernel where all ranks are on the ulysses axis."""
    q, device = pack.problem.q, pack.problem.q.device
    slot, ulysses = mesh.context.rank, mesh.ulysses
    plan = compile_plan(pack.lengths, mesh.context.size, ranks_per_node=mesh.slots_per_node)
    ranks = rank_rows(plan.tokens(slot), ulysses.size)
    start = sum(ranks[: ulysses.rank])
    rows = _pack_rows(plan, slot, device)[start : start + ranks[ulysses.rank]]
    call = Call(
        tables=compile_tables(
            plan,
            slot,
            None,
            device,
            num_messages=num_messages,
            near_slots=mesh.near_slots,
            ulysses_size=ulysses.size,
        ),
        context=mesh.context,
        ulysses=ulysses,
        rows=ranks,
        heads=share_heads(shape.heads, shape.kv_heads, ulysses.size, device),
        kernel=pack.kernel,
        scores=pack.problem.scores,
    )
    own_q, own_k, own_v, own_grad = (x[rows] for x in (q, pack.problem.k, pack.problem.v, pack.grad))
    context = mesh.context.traffic
    return Way(
        rows=rows,
        own=slice(None),
        forward=lambda: forward(call, own_q, own_k, own_v, None),
        backward=lambda saved: backward(call, saved, own_grad)[:3],
        planned=planned_traffic(plan, slot, ulysses.rank, ulysses.size, shape, q.element_size()),
        counted=lambda: Received(context.rows, context.num_bytes + ulysses.traffic.num_bytes),
    )


def whole_way(pack: WholePack, copies: int) -> Way:
    """The whole pack on each of so many ranks, each by itself: the ideal."""
    out, lse = pack.forward()
    return Way(
        rows=torch.arange(len(out), device=out.device),
        own=slice(None),
        forward=lambda: (pack.forward()[0], None),
        backward=lambda saved: pack.backward(out, lse),
        copies=copies,
    )


def planned_traffic(
    plan: Plan, slot: int, ulysses_rank: int, ulysses_size: int, shape: Shape, element_bytes: int
) -> Received:
    """What the plan has one rank receive, computed from its fetches alone.

    Forward brings borrowed keys and values, backward the gradients of lent ones. Ulysses brings the rank's heads of the
    slot's other tokens (queries, keys with values, and the output's gradient) and takes other ranks' heads of its own
    tokens back (the output, the gradients of queries and of keys with values). Key-value heads that ranks cannot share
    evenly are sent once for every rank, or for every query head, that needs them.
    """
    heads = shape.heads // ulysses_size
    if shape.kv_heads % ulysses_size == 0:
        kv_heads = shape.kv_heads // ulysses_size
    else:
        kv_heads = 1 if ulysses_size % shape.kv_heads == 0 else heads
    borrowed = sum(fetch.stop - fetch.start for fetch in fetches(plan, slot))
    lent = sum(send.stop - send.start for send in sends(plan, slot))
    tokens = plan.tokens(slot)
    own = rank_rows(tokens, ulysses_size)[ulysses_rank]
    traded = (tokens - own) + own * (ulysses_size - 1)
    elements = (borrowed + lent) * 2 * kv_heads + traded * (2 * heads + 2 * kv_heads)
    return Received(borrowed + lent, elements * shape.head_dim * element_bytes)


def _pack_rows(plan: Plan, slot: int, device: torch.device) -> Tensor:
    """The pack's row of every row of the slot."""
    starts = np.cumsum([0, *plan.lengths])
    pieces = np.array(plan.slots[slot], dtype=np.int64).reshape(-1, 3)
    rows = span_rows(starts[pieces[:, 0]] + pieces[:, 1], pieces[:, 2] - pieces[:, 1])
    return index_tensor(rows, device)
