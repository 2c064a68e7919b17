"""Two partial attentions over different keys become one, in at least float32."""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS = 16_384
"""Rows that are widened at a time."""


def merge_rows(out: Tensor, lse: Tensor, part_out: Tensor, part_lse: Tensor) -> None:
    """Fold a partial result into that of the same rows, `out` [R, N, H] and `lse` [N, R], in place.

    A row of `out` that saw no key yet has lse = -inf and counts for nothing; a part has always seen a key.
    """
    if out.is_cuda:
        from hsap_hf.attention.merge_triton import merge_rows_triton

        return merge_rows_triton(out, lse, part_out, part_lse)
    after = torch.logaddexp(lse, part_lse)
    old, new = ((x - after).exp().transpose(0, 1)[..., None] for x in (lse, part_lse))
    out.copy_(out * old + part_out * new)
    lse.copy_(after)
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
