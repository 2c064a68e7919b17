"""Attention over dealt tokens: forward and backward side by side. Queries stay; keys and values travel.

Shape suffixes: T tokens of this rank, S rows of its slot, R borrowed rows, N query heads, G key-value heads, H width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hsap_hf.attention.kernels import Kernel, Problem, Scores
from hsap_hf.attention.lane import Lane
from hsap_hf.attention.merge import add_sinks, merge_rows, sink_grads
from hsap_hf.attention.segments import Keys, Part
from hsap_hf.attention.tables import SlotTables
from hsap_hf.comm.axis import Axis, Pending
from hsap_hf.comm.exchange import fetch_keys, return_key_grads
from hsap_hf.comm.pairs import Pair, split
from hsap_hf.comm.rows import sum_rows, take_rows
from hsap_hf.comm.ulysses import HeadShare, gather_heads, scatter_heads, sum_replicas


@dataclass(frozen=True)
class Call:
    """Everything one attention call needs besides its tensors."""

    tables: SlotTables
    context: Axis
    ulysses: Axis
    rows: list[int]
    """Rows of the slot that each ulysses rank holds outside attention."""
    heads: HeadShare
    kernel: Kernel
    scores: Scores
    keep_borrowed: bool = True
    """Keep borrowed rows for the backward; else they are fetched again, which costs an exchange and saves memory.
    The same on all slots."""


def attend(call: Call, q_TNH: Tensor, k_TGH: Tensor, v_TGH: Tensor, sinks_N: Tensor | None = None) -> Tensor:
    """Causal attention inside every document of the pack, wherever its rows are: [T, N, Hv]. Differentiable."""
    return HsapAttention.apply(call, q_TNH, k_TGH, v_TGH, sinks_N)


Saved = tuple[Tensor, Tensor, Tensor, "Tensor | None", Tensor, Tensor, "Tensor | None"]
"""q, k, v, borrowed rows where they are kept, out, lse, sinks"""
Grads = tuple[Tensor, Tensor, Tensor]
"""Of queries, keys and values."""


class HsapAttention(torch.autograd.Function):
    """`forward` and `backward` below, under autograd."""

    @staticmethod
    def forward(ctx: Any, call: Call, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):  # kernels know what to compute in
            out, saved = forward(call, q, k, v, sinks)
        ctx.call = call
        ctx.save_for_backward(*saved)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
        with torch.autocast(grad_out.device.type, enabled=False):
            return None, *backward(ctx.call, ctx.saved_tensors, grad_out)


def forward(call: Call, q_TNH: Tensor, k_TGH: Tensor, v_TGH: Tensor, sinks_N: Tensor | None) -> tuple[Tensor, Saved]:
    """The output [T, N, Hv] and what `backward` needs."""
    local, exchange = call.tables.local, call.tables.exchange
    k, v = _scatter_pair(call, k_TGH, v_TGH)
    borrowed, arriving = fetch_keys(k, v, exchange, call.context)
    q = scatter_heads(q_TNH, call.rows, call.ulysses).contiguous()
    results = None
    if not _is_all(local, len(q)):  # else the local part's results are those of the slot
        lse_dtype = torch.promote_types(q.dtype, torch.float32)
        results = q.new_empty((*q.shape[:2], v.shape[-1])), q.new_empty((q.shape[1], len(q)), dtype=lse_dtype)
    lane = Lane(q.device, idle=exchange.silent)
    out, lse = _forward_local(call, q, k, v, results)
    with lane:
        for remote, message in zip(call.tables.remotes, arriving, strict=True):
            message.wait()
            theirs = split(borrowed[remote.borrowed], k.shape[-1])
            for part, keys in remote.calls:
                problem = _problem(call, part, q, *_far_keys(keys, (k, v), theirs))
                if call.tables.apart:
                    _attend_into(call, part, problem, out, lse)
                else:
                    far = call.kernel.forward(problem)
                    lane.follow()  # the local part's results are merged with
                    merge_rows(part.take(out), part.take(lse, 1), *far)
    lane.join()

    sinks = None if sinks_N is None else sinks_N.unflatten(0, (call.ulysses.size, -1))[call.ulysses.rank]
    if sinks is not None:
        out, lse = add_sinks(out, lse, sinks)
    kept = borrowed if call.keep_borrowed else None
    return gather_heads(out, call.rows, call.ulysses), (q, k, v, kept, out, lse, sinks)


def backward(call: Call, saved: Saved, grad_TNH: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(grad_q, grad_k, grad_v, grad_sinks). Gradients of borrowed rows travel beside the local part."""
    local, exchange = call.tables.local, call.tables.exchange
    q, k, v, borrowed, out, lse, sinks = saved
    arriving: list[Pending] = []
    if not call.keep_borrowed:
        borrowed, arriving = fetch_keys(k, v, exchange, call.context)
    assert borrowed is not None
    grad_out = scatter_heads(grad_TNH, call.rows, call.ulysses).contiguous()
    grads = None
    if not _is_all(local, len(q)):  # else the local part's gradients are those of the slot
        grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    lane = Lane(q.device, idle=exchange.silent)
    # On a GPU the lane overtakes what was launched before it; elsewhere the first to run decides what travels beside
    # the local part: keys that are fetched again, or the gradients of kept ones.
    local_first = q.is_cuda or not call.keep_borrowed
    if local_first:
        local_grads = _backward_local(call, saved, grad_out, grads)
    with lane:
        returning, home, far_grads = _backward_remotes(call, saved, borrowed, arriving, grad_out, grads)
    if not local_first:
        local_grads = _backward_local(call, saved, grad_out, grads)
    lane.join()
    grad_q, grad_k, grad_v = local_grads
    for part, far_q in far_grads:
        part.take(grad_q).add_(far_q)  # one rounding a message and row
    for message in returning:
        message.wait()
    if not exchange.silent:
        sent = grad_k[: exchange.returns_stop], grad_v[: exchange.returns_stop]
        sum_rows(sent, split(home, k.shape[-1]), exchange.returns)
    lane.follow()  # so that memory of the lane, which is read here, is not unmapped before

    every_sink = _all_sink_grads(call, grad_out, q, out, lse, sinks)
    grad_q = gather_heads(grad_q, call.rows, call.ulysses)
    grad_k, grad_v = _gather_pair(call, grad_k, grad_v)
    return grad_q, grad_k, grad_v, every_sink


def _problem(call: Call, part: Part, q: Tensor, keys: Tensor, values: Tensor) -> Problem:
    return Problem(part.take(q), keys, values, part.segments, part.causal, call.scores)


def _forward_local(
    call: Call, q: Tensor, k: Tensor, v: Tensor, results: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Output and lse of the whole slot: `results` with the local rows written, or new ones where all rows are local."""
    problems = [_problem(call, part, q, part.take(k), part.take(v)) for part in call.tables.local]
    if results is None:
        return call.kernel.forward(problems[0])
    for part, problem in zip(call.tables.local, problems, strict=True):
        _attend_into(call, part, problem, *results)
    return results


def _backward_local(call: Call, saved: Saved, grad_out: Tensor, grads: Grads | None) -> Grads:
    """Gradients of the whole slot: `grads` with the local rows written, or new ones where all rows are local."""
    q, k, v, _, out, lse, _ = saved
    for part in call.tables.local:
        problem = _problem(call, part, q, part.take(k), part.take(v))
        result = part.take(grad_out), part.take(out), part.take(lse, 1)
        if grads is None:
            return call.kernel.backward(problem, *result)
        call.kernel.backward(problem, *result, (part.take(grads[0]), part.take(grads[1]), part.take(grads[2])))
    assert grads is not None
    return grads


def _backward_remotes(
    call: Call,
    saved: Saved,
    borrowed: Tensor,
    arriving: list[Pending],
    grad_out: Tensor,
    grads: Grads | None,
) -> tuple[list[Pending], Tensor, list[tuple[Part, Tensor]]]:
    """Gradients of borrowed rows, on their way home; those of sent rows, once these are waited for; and those of
    queries, where they are to be added to local ones: of each run of rows, summed over messages."""
    exchange, head_dim = call.tables.exchange, saved[1].shape[-1]
    grad_borrowed = torch.empty_like(borrowed)
    home = borrowed.new_empty((len(exchange.send_order), *borrowed.shape[1:]))
    returning: list[Pending] = []
    far_grads: dict[tuple[int, int], tuple[Part, Tensor]] = {}
    for number, (remote, message) in enumerate(zip(call.tables.remotes, exchange.messages, strict=True)):
        if arriving:
            arriving[number].wait()
        theirs, to_them = (split(x[remote.borrowed], head_dim) for x in (borrowed, grad_borrowed))
        found = [_backward_remote(call, saved, *each, theirs, to_them, grad_out, grads) for each in remote.calls]
        returning.append(return_key_grads(grad_borrowed, home, message, call.context))
        for (part, _), far_q in zip(remote.calls, found, strict=True):
            if far_q is not None:
                _, total = far_grads.setdefault((part.start, part.stop), (part, far_q))
                if total is not far_q:
                    total += far_q
    return returning, home, list(far_grads.values())


def _backward_remote(
    call: Call,
    saved: Saved,
    part: Part,
    keys: Keys,
    theirs: Pair,
    to_them: Pair,
    grad_out: Tensor,
    grads: Grads | None,
) -> Tensor | None:
    """Writes the gradients of the rows that were borrowed for this call, and returns those of queries, where they are
    to be added to others.

    theirs, to_them: the remote's borrowed keys and values, and their gradients. grads: of the whole slot. Where parts
    are apart, the rows of the remote part are written there.
    """
    q, k, v, _, out, lse, _ = saved
    result = part.take(grad_out), part.take(out), part.take(lse, 1)
    room_q = part.take(grads[0]) if grads is not None else None
    problem = _problem(call, part, q, *_far_keys(keys, (k, v), theirs))
    room_kv = (to_them[0][keys], to_them[1][keys]) if isinstance(keys, slice) else (None, None)
    far_q, *far_kv = call.kernel.backward(problem, *result, (room_q, *room_kv))
    if not isinstance(keys, slice):
        far_pair = far_kv[0], far_kv[1]
        sum_rows(to_them, far_pair, keys.sums, first=keys.num_own, add=False)
        if grads is not None:
            sum_rows((grads[1][: keys.own_stop], grads[2][: keys.own_stop]), far_pair, keys.sums, add=False)
    return far_q if grads is None else None


def _is_all(parts: Sequence[Part], rows: int) -> bool:
    """Whether one part is all rows of the slot."""
    return [(part.start, part.stop) for part in parts] == [(0, rows)]


def _attend_into(call: Call, part: Part, problem: Problem, out: Tensor, lse: Tensor) -> None:
    """A part's result is that of its rows; the output is written in place."""
    _, part_lse = call.kernel.forward(problem, part.take(out))
    part.take(lse, 1).copy_(part_lse)


def _far_keys(keys: Keys, own: Pair, theirs: Pair) -> Pair:
    """Keys and values of a remote call, in the order of its segments."""
    if isinstance(keys, slice):
        return theirs[0][keys], theirs[1][keys]
    return split(take_rows(own, theirs, keys.rows), own[0].shape[-1])


def _scatter_pair(call: Call, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values trade heads for tokens, in one message, of which they are views."""
    if call.ulysses.size == 1:
        return k.contiguous(), v.contiguous()
    return split(scatter_heads(torch.cat([k, v], -1), call.rows, call.ulysses, call.heads.kv_index), k.shape[-1])


def _gather_pair(call: Call, grad_k: Tensor, grad_v: Tensor) -> tuple[Tensor, Tensor]:
    """The adjoint of `_scatter_pair`; gradients of replicated heads are summed."""
    if call.ulysses.size == 1:
        return grad_k, grad_v
    both = sum_replicas(gather_heads(torch.cat([grad_k, grad_v], -1), call.rows, call.ulysses), call.heads)
    return split(both.to(grad_k.dtype), grad_k.shape[-1])


def _all_sink_grads(
    call: Call, grad: Tensor, q: Tensor, out: Tensor, lse: Tensor, sinks: Tensor | None
) -> Tensor | None:
    if sinks is None:
        return None
    own = sink_grads(grad, out, lse, sinks)
    every = own.new_zeros((call.ulysses.size, len(own)))
    every[call.ulysses.rank] = own
    return every.flatten()
