"""Adding many rows into few, in float32 and in a fixed order: how gradients of borrowed keys come together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowSums:
    """Which source rows are added to which target row. Built on the device, without waiting for it."""

    targets: Tensor
    """[R] the target of every source row."""
    sources: Tensor
    """[R] source rows, grouped by target, in their own order within it."""
    edges: Tensor
    """[S + 1] where each target's group starts in `sources`."""


def compile_row_sums(targets: Tensor, num_targets: int) -> RowSums:
    """Tables for `add_rows`. targets: [R] int64 below `num_targets`."""
    grouped, sources = torch.sort(targets, stable=True)
    return RowSums(targets, sources, torch.searchsorted(grouped, torch.arange(num_targets + 1, device=targets.device)))


def add_rows(total: Tensor, source: Tensor, sums: RowSums) -> Tensor:
    """`total` [S, G, H] plus the rows of `source` [R, G, H] at their targets, each sum in at least float32.

    On CUDA in place and without atomics, so that equal inputs give equal bits.
    """
    if not len(sums.sources):
        return total
    if total.is_cuda:
        from hsap_hf.comm.row_sums_triton import add_rows_triton

        return add_rows_triton(total, source, sums.sources, sums.edges)
    wide = torch.promote_types(total.dtype, torch.float32)
    return total.to(wide).index_add_(0, sums.targets, source.to(wide)).to(total.dtype)
