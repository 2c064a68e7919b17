"""Attention over dealt tokens: forward and backward side by side. Queries stay; keys and values travel.

Shape suffixes: T tokens of this rank, S rows of its slot, R borrowed rows, N query heads, G key-value heads, H width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hsap_hf.attention.kernels import Kernel, Problem, Scores
from hsap_hf.attention.merge import add_sinks, merge_rows, sink_grads
from hsap_hf.attention.segments import Gather, Part, SlotTables
from hsap_hf.comm.axis import Axis
from hsap_hf.comm.exchange import fetch_keys, return_key_grads
from hsap_hf.comm.row_sums import add_rows
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


class HsapAttention(torch.autograd.Function):
    """`forward` and `backward` below, under autograd."""

    @staticmethod
    def forward(ctx: Any, call: Call, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> Tensor:
        out, saved = forward(call, q, k, v, sinks)
        ctx.call = call
        ctx.save_for_backward(*saved)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
        return None, *backward(ctx.call, ctx.saved_tensors, grad_out)


def forward(call: Call, q_TNH: Tensor, k_TGH: Tensor, v_TGH: Tensor, sinks_N: Tensor | None) -> tuple[Tensor, Saved]:
    """The output [T, N, Hv] and what `backward` needs."""
    tables, local, remote = call.tables, call.tables.local, call.tables.remote
    q = scatter_heads(q_TNH, call.rows, call.ulysses).contiguous()
    k, v = (x.contiguous() for x in _scatter_pair(call, k_TGH, v_TGH))
    pending = fetch_keys(k, v, tables.exchange, call.context)

    if local is not None and len(local.rows) == len(q):
        out, lse = call.kernel.forward(Problem(q, k, v, local.segments, True, call.scores))
    else:
        out = q.new_zeros((*q.shape[:2], v.shape[-1]))
        lse = q.new_full((q.shape[1], len(q)), -torch.inf, dtype=_wide(q))
        if local is not None:
            merge_rows(out, lse, local.rows, *_forward_part(call, local, q, local.take(k), local.take(v)))
    borrowed = pending.wait()
    if remote is not None:
        merge_rows(out, lse, remote.rows, *_forward_part(call, remote, q, *_far_keys(tables.gather, k, v, borrowed)))

    sinks = None if sinks_N is None else sinks_N.unflatten(0, (call.ulysses.size, -1))[call.ulysses.rank]
    if sinks is not None:
        out, lse = add_sinks(out, lse, sinks)
    kept = borrowed if call.keep_borrowed else None
    return gather_heads(out, call.rows, call.ulysses), (q, k, v, kept, out, lse, sinks)


def backward(call: Call, saved: Saved, grad_TNH: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(grad_q, grad_k, grad_v, grad_sinks). Cut documents first: gradients of borrowed rows travel meanwhile."""
    tables, gather, remote = call.tables, call.tables.gather, call.tables.remote
    q, k, v, borrowed, out, lse, sinks = saved
    again = fetch_keys(k, v, tables.exchange, call.context) if borrowed is None else None
    grad_out = scatter_heads(grad_TNH, call.rows, call.ulysses).contiguous()
    result = (grad_out, q, out, lse)

    if again is not None:  # keys travel beside the local part, and their gradients after it
        local_grads = _backward_local(call, *result, k, v)
        borrowed = again.wait()
    assert borrowed is not None
    grad_borrowed = torch.zeros_like(borrowed)
    if remote is not None:
        far_q, far_k, far_v = _backward_part(call, remote, *result, *_far_keys(gather, k, v, borrowed))
        far = torch.cat([far_k, far_v], -1)
        grad_borrowed = add_rows(grad_borrowed, far.index_select(0, gather.borrowed_at), gather.borrowed_sums)
    pending = return_key_grads(grad_borrowed, tables.exchange, call.context)
    if again is None:
        local_grads = _backward_local(call, *result, k, v)

    grad_q, grad_k, grad_v = local_grads
    if remote is not None:
        remote.add_to(grad_q, far_q)
        if len(gather.own_rows):
            own_k, own_v = _split(far.index_select(0, gather.own_at), k.shape[-1])
            grad_k, grad_v = add_rows(grad_k, own_k, gather.own_sums), add_rows(grad_v, own_v, gather.own_sums)
    if not tables.exchange.silent:
        home_k, home_v = _split(pending.wait(), k.shape[-1])
        grad_k = add_rows(grad_k, home_k, tables.exchange.returns)
        grad_v = add_rows(grad_v, home_v, tables.exchange.returns)

    grad_q = gather_heads(grad_q, call.rows, call.ulysses)
    grad_k, grad_v = _gather_pair(call, grad_k, grad_v)
    return grad_q, grad_k, grad_v, _all_sink_grads(call, *result, sinks)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _split(kv: Tensor, key_dim: int) -> tuple[Tensor, Tensor]:
    return kv[..., :key_dim], kv[..., key_dim:]


def _scatter_pair(call: Call, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values trade heads for tokens in one message."""
    if call.ulysses.size == 1:
        return k, v
    return _split(scatter_heads(torch.cat([k, v], -1), call.rows, call.ulysses, call.heads.kv_index), k.shape[-1])


def _gather_pair(call: Call, grad_k: Tensor, grad_v: Tensor) -> tuple[Tensor, Tensor]:
    """The adjoint of `_scatter_pair`; gradients of replicated heads are summed."""
    if call.ulysses.size == 1:
        return grad_k, grad_v
    both = sum_replicas(gather_heads(torch.cat([grad_k, grad_v], -1), call.rows, call.ulysses), call.heads)
    return _split(both.to(grad_k.dtype), grad_k.shape[-1])


def _forward_part(call: Call, part: Part, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return call.kernel.forward(Problem(part.take(q), k, v, part.segments, part.causal, call.scores))


def _backward_local(call: Call, grad_out: Tensor, q: Tensor, out: Tensor, lse: Tensor, k: Tensor, v: Tensor) -> Grads:
    """Of queries, keys and values of the whole slot; zeros where a row has no local part."""
    local = call.tables.local
    if local is not None and len(local.rows) == len(q):
        return call.kernel.backward(Problem(q, k, v, local.segments, True, call.scores), grad_out, out, lse)
    grads = q.new_zeros(q.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)
    if local is not None:
        parts = _backward_part(call, local, grad_out, q, out, lse, local.take(k), local.take(v))
        for grad, part in zip(grads, parts, strict=True):
            grad.index_copy_(0, local.rows, part)
    return grads


def _backward_part(
    call: Call, part: Part, grad_out: Tensor, q: Tensor, out: Tensor, lse: Tensor, k: Tensor, v: Tensor
) -> Grads:
    problem = Problem(part.take(q), k, v, part.segments, part.causal, call.scores)
    return call.kernel.backward(problem, part.take(grad_out), part.take(out), part.take(lse, 1))


def _far_keys(gather: Gather, k: Tensor, v: Tensor, borrowed: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of the remote call, in the order of its segments."""
    far = borrowed.index_select(0, gather.borrowed_rows)
    if len(gather.own_rows):
        own = torch.cat([x.index_select(0, gather.own_rows) for x in (k, v)], -1)
        mixed = far.new_empty((gather.num_rows, *far.shape[1:]))
        far = mixed.index_copy_(0, gather.borrowed_at, far).index_copy_(0, gather.own_at, own)
    return _split(far, k.shape[-1])


def _all_sink_grads(
    call: Call, grad: Tensor, q: Tensor, out: Tensor, lse: Tensor, sinks: Tensor | None
) -> Tensor | None:
    if sinks is None:
        return None
    own = sink_grads(grad, out, lse, sinks)
    every = own.new_zeros((call.ulysses.size, len(own)))
    every[call.ulysses.rank] = own
    return every.flatten()
