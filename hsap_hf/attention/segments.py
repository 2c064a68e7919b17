"""Segments of varlen calls: which rows ask, and which keys they are asked of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from hsap_hf.comm.rows import RowSums
from hsap_hf.comm.spans import index_tensor, span_rows


@dataclass(frozen=True)
class Segments:
    """Independent attention problems, one after the other. None of them is empty."""

    q_lengths: tuple[int, ...]
    k_lengths: tuple[int, ...]
    cu_q: Tensor
    """Edges of the segments on the query axis, [num + 1] int32."""
    cu_k: Tensor

    @cached_property
    def max_q(self) -> int:
        return max(self.q_lengths)

    @cached_property
    def max_k(self) -> int:
        return max(self.k_lengths)

    @cached_property
    def _lengths(self) -> np.ndarray:
        return np.array([self.q_lengths, self.k_lengths], dtype=np.int64)

    def pairs_in_tiles(self, rows: int) -> int:
        """Query-key pairs where queries come in tiles of so many rows, the last of a segment filled up."""
        queries, keys = self._lengths
        return int((-(-queries // rows) * rows * keys).sum())


@dataclass(frozen=True)
class Part:
    """One varlen call: neighbouring rows of the slot against some keys, attended in place."""

    segments: Segments
    start: int
    stop: int
    """Of the slot's rows that ask."""
    causal: bool

    def take(self, x: Tensor, dim: int = 0) -> Tensor:
        """These rows of `x`, as a view."""
        return x.narrow(dim, self.start, self.stop - self.start)


@dataclass(frozen=True)
class Gather:
    """Keys picked from the slot's own rows and from those that a message brought."""

    rows: Tensor
    """In the order of the call's segments: rows of the slot, and from `num_own` on borrowed ones."""
    num_own: int
    own_stop: int
    """Rows of the slot from here on are not among them."""
    sums: RowSums
    """The adjoint: onto the slot's own rows, then the borrowed ones. A row that several segments see gets several."""


Keys = slice | Gather
"""The keys of a remote call: borrowed rows as they arrive, or a gather."""


def make_part(
    start: int, q_lengths: Sequence[int], k_lengths: Sequence[int], causal: bool, device: torch.device
) -> Part:
    """A part whose segments follow each other from row `start` of the slot on."""
    cu_q, cu_k = (
        index_tensor(np.concatenate([[0], np.cumsum(lengths)]), device).to(torch.int32)
        for lengths in (q_lengths, k_lengths)
    )
    segments = Segments(tuple(q_lengths), tuple(k_lengths), cu_q, cu_k)
    return Part(segments, start, start + sum(q_lengths), causal)


def make_keys(sources: list[tuple[bool, int, int]], own: int, borrowed: int, device: torch.device) -> Keys:
    """sources: (is own, row in its source, length) of every run of keys. own, borrowed: rows of the sources."""
    is_own, row, length = np.array(sources, dtype=np.int64).reshape(-1, 3).T
    rows = span_rows(row + np.where(is_own, 0, own), length)
    if len(rows) and rows[0] >= own and (np.diff(rows) == 1).all():
        return slice(int(rows[0]) - own, int(rows[-1]) + 1 - own)
    own_stop = int(rows[rows < own].max(initial=-1)) + 1
    index = index_tensor(rows, device)
    return Gather(index, own, own_stop, RowSums(index, own + borrowed))
