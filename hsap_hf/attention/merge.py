"""Two partial attentions over different keys become one, in at least float32."""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS = 16_384
"""Rows that are widened at a time."""


def merge_rows(out: Tensor, lse: Tensor, rows: Tensor, part_out: Tensor, part_lse: Tensor) -> None:
    """Fold a partial result for some rows into `out` [T, N, H] and `lse` [N, T], in place.

    rows: [R], distinct; part_out: [R, N, H]; part_lse: [N, R]. A row of `out` that saw no key yet has lse = -inf and
    counts for nothing; a part has always seen a key.
    """
    if out.is_cuda:
        from hsap_hf.attention.merge_triton import merge_rows_triton

        return merge_rows_triton(out, lse, rows, part_out, part_lse)
    before = lse.index_select(1, rows)
    after = torch.logaddexp(before, part_lse)
    old, new = ((x - after).exp().transpose(0, 1)[..., None] for x in (before, part_lse))
    merged = out.index_select(0, rows) * old + part_out * new
    out.index_copy_(0, rows, merged.to(out.dtype))
    lse.index_copy_(1, rows, after)
    return None


def add_sinks(out: Tensor, lse: Tensor, sinks: Tensor) -> tuple[Tensor, Tensor]:
    """Give every query one more key of score `sinks` [N] and value 0, once, after all partial results are merged.

    `out` is changed in place.
    """
    after = torch.logaddexp(lse, sinks.to(lse.dtype)[:, None])
    return out.mul_((lse - after).exp().transpose(0, 1)[..., None]), after


def sink_grads(grad_out: Tensor, out: Tensor, lse: Tensor, sinks: Tensor) -> Tensor:
    """[N]: the sink's weight is exp(sink - lse) and its value 0, so only the normalisation feels it."""
    pairs = zip(grad_out.split(_ROWS), out.split(_ROWS), strict=True)
    delta = torch.cat([(grad.to(lse.dtype) * one.to(lse.dtype)).sum(-1) for grad, one in pairs]).transpose(0, 1)
    return -((sinks.to(lse.dtype)[:, None] - lse).exp() * delta).sum(1).to(sinks.dtype)
