"""What one slot attends to, as the segment tables that varlen kernels take. Compiled once per batch and window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from hsap_hf.comm.exchange import Exchange, compile_exchange
from hsap_hf.comm.row_sums import RowSums
from hsap_hf.comm.spans import index_tensor, offsets, span_rows
from hsap_hf.planner import Piece, Plan


@dataclass(frozen=True)
class Segments:
    """Independent attention problems, one after the other. None of them is empty."""

    q_lengths: tuple[int, ...]
    k_lengths: tuple[int, ...]
    cu_q: Tensor
    """Edges of the segments on the query axis, [num + 1] int32."""
    cu_k: Tensor

    @property
    def max_q(self) -> int:
        return max(self.q_lengths)

    @property
    def max_k(self) -> int:
        return max(self.k_lengths)


@dataclass(frozen=True)
class Part:
    """One varlen call: some rows of the slot against some keys."""

    segments: Segments
    rows: Tensor
    """The slot's rows that ask, ascending."""
    run: slice | None
    """The same as one run of neighbours, where they are: then they are attended in place."""
    causal: bool

    def take(self, x: Tensor, dim: int = 0) -> Tensor:
        """The rows of `x` this part asks for; a view where they are neighbours."""
        if self.run is None:
            return x.index_select(dim, self.rows)
        return x.narrow(dim, self.run.start, self.run.stop - self.run.start)

    def add_to(self, total: Tensor, part: Tensor) -> None:
        """Add `part` to these rows of `total`, in place; one rounding a row."""
        if self.run is None:
            total.index_copy_(0, self.rows, total.index_select(0, self.rows) + part)
        else:
            total[self.run] += part


@dataclass(frozen=True)
class Gather:
    """Builds the keys of the remote call from the slot's own rows and the borrowed ones."""

    num_rows: int
    own_rows: Tensor
    own_at: Tensor
    borrowed_rows: Tensor
    borrowed_at: Tensor
    own_sums: RowSums
    """The adjoint for own rows, from rows of the remote call at `own_at`."""
    borrowed_sums: RowSums
    """The adjoint for borrowed rows; one that several segments see gets several gradients."""


@dataclass(frozen=True)
class SlotTables:
    """All that the layers with one window need to know about a slot.

    Without a window the local call takes every row in place (own keys of a cut document, head and tail joined, are one
    causal segment) and the remote call adds full rectangles of borrowed keys. A window measures distance inside the
    document, which joined pieces do not keep: there each piece of a cut document is one causal remote segment over
    all the keys it needs, and the local call leaves those rows out.
    """

    exchange: Exchange
    local: Part | None
    """The slot's rows against its own keys; needs nothing from others."""
    remote: Part | None
    """Rows of cut documents against borrowed keys."""
    gather: Gather


def compile_tables(plan: Plan, slot: int, window: int | None, device: torch.device) -> SlotTables:
    """Tables of `slot` for layers that see the last `window` keys of a document (None: all of them)."""
    exchange = compile_exchange(plan, slot, window, device)
    pieces = plan.slots[slot]
    own = _by_document([(piece, row) for piece, row in zip(pieces, _rows_of(pieces), strict=True)])
    borrowed_spans = [Piece(fetch.doc, fetch.start, fetch.stop) for fetch in exchange.fetched]
    borrowed = _by_document(list(zip(borrowed_spans, _rows_of(borrowed_spans), strict=True)))

    local_spans: list[tuple[int, int]] = []
    remote_spans: list[tuple[int, int]] = []
    key_lengths: list[int] = []
    sources: list[tuple[bool, int, int]] = []
    for doc, mine in own.items():
        theirs = borrowed.get(doc, [])
        if window is None or not theirs:
            local_spans.append((mine[0][1], sum(piece.stop - piece.start for piece, _ in mine)))
        for piece, row in mine if theirs else []:
            low = 0 if window is None else max(0, piece.start - window + 1)
            keys = _overlaps([(False, *entry) for entry in theirs], low, piece.stop)
            if window is not None:
                keys = sorted(keys + _overlaps([(True, *entry) for entry in mine], low, piece.stop))
            if keys:
                remote_spans.append((row, piece.stop - piece.start))
                key_lengths.append(sum(length for *_, length in keys))
                sources += [(is_own, at, length) for _, is_own, at, length in keys]

    lengths = [length for _, length in local_spans]
    return SlotTables(
        exchange=exchange,
        local=_part(lengths, lengths, local_spans, True, device),
        remote=_part([n for _, n in remote_spans], key_lengths, remote_spans, window is not None, device),
        gather=_gather(sources, plan.tokens(slot), sum(exchange.receive_rows), device),
    )


def _rows_of(spans: Sequence[Piece]) -> list[int]:
    return offsets(np.array([span.stop - span.start for span in spans], dtype=np.int64)).tolist()


def _by_document(entries: list[tuple[Piece, int]]) -> dict[int, list[tuple[Piece, int]]]:
    entries = sorted(entries, key=lambda entry: entry[0][:2])
    found = {doc: list(group) for doc, group in groupby(entries, key=lambda entry: entry[0].doc)}
    return dict(sorted(found.items(), key=lambda item: item[1][0][1]))


def _overlaps(entries: list[tuple[bool, Piece, int]], low: int, high: int) -> list[tuple[int, bool, int, int]]:
    """Parts of `entries` inside rows [low, high), as (document row, is own, row in its source, length)."""
    parts = []
    for is_own, piece, row in entries:
        start, stop = max(low, piece.start), min(high, piece.stop)
        if start < stop:
            parts.append((start, is_own, row + start - piece.start, stop - start))
    return parts


def _part(
    q_lengths: list[int],
    k_lengths: list[int],
    spans: list[tuple[int, int]],
    causal: bool,
    device: torch.device,
) -> Part | None:
    if not q_lengths:
        return None
    cu_q, cu_k = (
        index_tensor(np.concatenate([[0], np.cumsum(lengths)]), device).to(torch.int32)
        for lengths in (q_lengths, k_lengths)
    )
    starts, lengths = np.array(spans, dtype=np.int64).T
    first, stop = int(starts[0]), int(starts[-1] + lengths[-1])
    run = slice(first, stop) if stop - first == lengths.sum() else None
    segments = Segments(tuple(q_lengths), tuple(k_lengths), cu_q, cu_k)
    return Part(segments, index_tensor(span_rows(starts, lengths), device), run, causal)


def _gather(sources: list[tuple[bool, int, int]], own: int, borrowed: int, device: torch.device) -> Gather:
    """`sources`: (is own, row in its source, length) of every run of keys; `own`, `borrowed`: rows of the sources."""
    table = np.array(sources, dtype=np.int64).reshape(-1, 3)
    is_own, row, length = table.T
    at, mine = offsets(length), is_own.astype(bool)
    own_rows, own_at, borrowed_rows, borrowed_at = (
        index_tensor(span_rows(start[chosen], length[chosen]), device)
        for chosen in (mine, ~mine)
        for start in (row, at)
    )
    own_sums, borrowed_sums = RowSums(own_rows, own), RowSums(borrowed_rows, borrowed)
    return Gather(int(length.sum()), own_rows, own_at, borrowed_rows, borrowed_at, own_sums, borrowed_sums)
