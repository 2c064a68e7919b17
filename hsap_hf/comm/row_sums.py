"""Adding many rows into few, in float32 and in a fixed order: how gradients of borrowed keys come together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowSums:
    """Which source rows are added to which target row."""

    targets: Tensor
    """[R] the target of every source row, int64 below `num_targets`."""
    num_targets: int

    @cached_property
    def grouped(self) -> tuple[Tensor, Tensor]:
        """[R] source rows, grouped by target and in their own order within it, and [num_targets + 1] where each group
        starts. Made on the device at the first use, without waiting for it."""
        ascending, sources = torch.sort(self.targets, stable=True)
        return sources, torch.searchsorted(ascending, torch.arange(self.num_targets + 1, device=self.targets.device))


def add_rows(total: Tensor, source: Tensor, sums: RowSums) -> Tensor:
    """`total` [S, G, H] plus the rows of `source` [R, G, H] at their targets, each sum in at least float32.

    On CUDA in place and without atomics, so that equal inputs give equal bits.
    """
    if not len(sums.targets):
        return total
    if total.is_cuda:
        from hsap_hf.comm.row_sums_triton import add_rows_triton

        return add_rows_triton(total, source, *sums.grouped)
    wide = torch.promote_types(total.dtype, torch.float32)
    return total.to(wide).index_add_(0, sums.targets, source.to(wide)).to(total.dtype)
