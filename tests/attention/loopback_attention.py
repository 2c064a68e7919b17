"""Runs HSAP attention on N ranks in this process and brings outputs and gradients back into pack order."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hsap_hf.attention.function import Call, backward, forward
from hsap_hf.attention.kernels import Scores, choose_kernel
from hsap_hf.attention.reference import reference_attention
from hsap_hf.attention.tables import compile_tables
from hsap_hf.comm.deal import rank_rows
from hsap_hf.comm.loopback import loopback_grid, run_ranks
from hsap_hf.comm.ulysses import share_heads
from hsap_hf.planner import Plan, compile_plan


@dataclass
class Pack:
    """Random q, k, v of a pack, an upstream gradient, and how scores are made."""

    lengths: list[int]
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    grad: torch.Tensor
    scores: Scores
    sinks: torch.Tensor | None = None


def random_pack(
    lengths,
    *,
    heads=4,
    kv_heads=2,
    dim=8,
    value_dim=None,
    dtype=torch.float64,
    device="cpu",
    seed=0,
    sinks=False,
    **scores,
) -> Pack:
    draw = torch.Generator().manual_seed(seed)
    tokens, value_dim = sum(lengths), value_dim or dim
    q, k, v, grad = (
        torch.randn(tokens, n, h, generator=draw, dtype=torch.float64).to(device, dtype)
        for n, h in ((heads, dim), (kv_heads, dim), (kv_heads, value_dim), (heads, value_dim))
    )
    sink = torch.randn(heads, generator=draw, dtype=torch.float64).to(device, dtype) if sinks else None
    return Pack(list(lengths), q, k, v, grad, Scores(dim**-0.5, **scores), sink)


def by_reference(pack: Pack):
    """(out, grad_q, grad_k, grad_v[, grad_sinks]) of the dense definition, in float64."""
    leaves = [x.double().requires_grad_() for x in (pack.q, pack.k, pack.v)]
    sinks = None if pack.sinks is None else pack.sinks.double().requires_grad_()
    scores = pack.scores
    out = reference_attention(
        *leaves, pack.lengths, scale=scores.scale, window=scores.window, softcap=scores.softcap, sinks=sinks
    )
    out.backward(pack.grad.double())
    return [out.detach(), *(x.grad for x in leaves), *([] if sinks is None else [sinks.grad])]


def by_loopback(
    pack: Pack,
    context_size: int,
    ulysses_size: int = 1,
    kernel: str = "auto",
    plan: Plan | None = None,
    keep_borrowed: bool = True,
    num_messages: int | None = None,
):
    """The same, by `context_size x ulysses_size` loopback ranks; tensors keep their dtype."""
    plan = plan or compile_plan(pack.lengths, context_size)
    starts, device = torch.tensor([0, *pack.lengths]).cumsum(0).tolist(), pack.q.device
    slot_rows = [
        torch.cat([torch.arange(starts[d] + a, starts[d] + b) for d, a, b in pieces] or [torch.arange(0)])
        for pieces in plan.slots
    ]
    rows_of_rank = [
        part.to(device) for rows in slot_rows for part in torch.split(rows, rank_rows(len(rows), ulysses_size))
    ]
    grid = loopback_grid(context_size, ulysses_size)
    dtype = str(pack.q.dtype).removeprefix("torch.")
    chosen = choose_kernel(kernel, pack.scores, pack.q.shape[-1], pack.v.shape[-1], dtype, device.type)

    def rank(number: int):
        _, context, ulysses = grid[number]
        call = Call(
            compile_tables(plan, context.rank, pack.scores.window, device, num_messages=num_messages),
            context,
            ulysses,
            rank_rows(plan.tokens(context.rank), ulysses_size),
            share_heads(pack.q.shape[1], pack.k.shape[1], ulysses_size, device),
            chosen,
            pack.scores,
            keep_borrowed,
        )
        mine = rows_of_rank[number]
        with torch.no_grad():  # forward and backward by hand: one autograd thread per device cannot be N ranks
            out, saved = forward(call, pack.q[mine], pack.k[mine], pack.v[mine], pack.sinks)
            return out, *backward(call, saved, pack.grad[mine]), context.traffic

    results = run_ranks(len(grid), rank)
    order = torch.cat(rows_of_rank)
    whole = [
        torch.empty_like(like).index_copy_(0, order, torch.cat([result[i] for result in results]))
        for i, like in enumerate((pack.grad, pack.q, pack.k, pack.v))
    ]
    if pack.sinks is not None:
        whole.append(sum(result[4] for result in results))
    return whole, [result[5] for result in results]


def largest_difference(got, want) -> float:
    return max(
        (float((a.double() - b.double()).abs().max()) if a.numel() else 0.0) for a, b in zip(got, want, strict=True)
    )


def relative_errors(got, want) -> list[float]:
    """||got - want|| / ||want|| of every tensor; the plain error where `want` is 0."""
    errors = []
    for ours, exact in zip(got, want, strict=True):
        exact = exact.double()
        errors.append(float((ours.double() - exact).norm() / (exact.norm() or 1.0)))
    return errors
