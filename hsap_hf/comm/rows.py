"""Rows of keys and values: picked into one message, and their gradients summed, in float32 and in a fixed order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hsap_hf.comm.pairs import Pair


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


def take_rows(own: Pair, more: Pair | None, rows: Tensor) -> Tensor:
    """[R, G, H + Hv]: keys and values of these rows, side by side. Rows from len(own) on are those of `more`."""
    if own[0].is_cuda:
        from hsap_hf.comm.rows_triton import take_rows_triton

        return take_rows_triton(own, more, rows)
    joined = torch.cat(own, -1)
    return (joined if more is None else torch.cat([joined, torch.cat(more, -1)])).index_select(0, rows)


def sum_rows(totals: Pair, sources: Pair, sums: RowSums, *, first: int = 0, add: bool = True) -> None:
    """Target row first + i of `sums` goes to row i of `totals`, in place, each sum in at least float32.

    add: on top of what stands there; else in its place. Targets without a source row are left alone. On CUDA without
    atomics, so that equal inputs give equal bits.
    """
    if not len(totals[0]) or not len(sums.targets):
        return
    if totals[0].is_cuda:
        from hsap_hf.comm.rows_triton import sum_rows_triton

        return sum_rows_triton(totals, sources, *sums.grouped, first, add)
    at = sums.targets - first
    mine = (at >= 0) & (at < len(totals[0]))
    at = at[mine]
    for total, source in zip(totals, sources, strict=True):
        wide = total.to(torch.promote_types(total.dtype, torch.float32))
        if not add:
            wide = wide.index_fill(0, at, 0.0)
        total.copy_(wide.index_add(0, at, source[mine].to(wide.dtype)))
