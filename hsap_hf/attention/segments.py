"""What one slot attends to, as the segment tables that varlen kernels take. Compiled once per batch and window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from hsap_hf.attention.form import apart_is_faster, best_num_messages
from hsap_hf.comm.exchange import Exchange, compile_exchange
from hsap_hf.comm.rows import RowSums
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

    def room(self, total: Tensor) -> Tensor | None:
        """Where a kernel may write these rows of `total` itself: a view; None where they are no neighbours."""
        return None if self.run is None else self.take(total)

    def write(self, total: Tensor, part: Tensor, dim: int = 0) -> None:
        """Make `part` these rows of `total`."""
        if self.run is None:
            total.index_copy_(dim, self.rows, part)
        else:
            self.take(total, dim).copy_(part)

    def add_to(self, total: Tensor, part: Tensor) -> None:
        """Add `part` to these rows of `total`, in place; one rounding a row."""
        if self.run is None:
            total.index_copy_(0, self.rows, total.index_select(0, self.rows) + part)
        else:
            total[self.run] += part


@dataclass(frozen=True)
class Gather:
    """The keys of a remote call, picked from the slot's own rows and from those that its messages brought."""

    rows: Tensor
    """In the order of the call's segments: rows of the slot, and from `num_own` on borrowed ones."""
    in_place: bool
    """They are the borrowed rows as they arrive."""
    num_own: int
    own_stop: int
    """Rows of the slot from here on are not among them."""
    sums: RowSums
    """The adjoint: onto the slot's own rows, then the borrowed ones. A row that several segments see gets several."""


@dataclass(frozen=True)
class Remote:
    """Rows of cut documents against borrowed keys, once some messages have come."""

    messages: slice
    """Of the exchange."""
    borrowed: slice
    """The rows they bring."""
    part: Part | None
    """None: no row needs them."""
    gather: Gather


@dataclass(frozen=True)
class SlotTables:
    """All that the layers with one window need to know about a slot.

    Two forms. *Apart*: each piece of a document that waits for keys is one causal segment of the remote call, over all
    the keys it needs, own ones among them; the local call has the other rows, and nothing is computed twice or merged.
    *Merged*: the local call takes every row in place (own keys of a cut document, head and tail joined, are one causal
    segment), a remote call for each message adds full rectangles of its keys, and rows with both are merged. A window
    measures distance inside the document, which joined pieces do not keep, so layers with one are always apart.
    """

    exchange: Exchange
    local: Part | None
    """The slot's rows against its own keys; needs nothing from others."""
    remotes: tuple[Remote, ...]
    """Every message belongs to one of them."""
    apart: bool
    """No row is in two parts."""


def compile_tables(
    plan: Plan,
    slot: int,
    window: int | None,
    device: torch.device,
    *,
    apart: bool | None = None,
    num_messages: int | None = None,
    near_slots: int | None = None,
) -> SlotTables:
    """Tables of `slot` for layers that see the last `window` keys of a document (None: all of them).

    apart: the form; None takes the one predicted to be faster: merged on a CPU, whose kernel would need a mask for
    causal segments of more keys than queries. num_messages: of the exchange, the same on all slots; None takes what is
    predicted to be fastest, one on a CPU. near_slots: see HsapMesh.
    """
    predicts = device.type == "cuda" and window is None
    if num_messages is None:
        num_messages = best_num_messages(plan, near_slots) if predicts else 1
    exchange = compile_exchange(plan, slot, window, device, num_messages)
    if apart is None or window is not None:
        apart = window is not None or (predicts and apart_is_faster(plan, slot, exchange, near_slots))
    pieces = plan.slots[slot]
    own = _by_document([(piece, row) for piece, row in zip(pieces, _rows_of(pieces), strict=True)])
    waiting = {fetch.doc for fetch in exchange.fetched} if apart else set()
    local_spans = [
        (mine[0][1], sum(piece.stop - piece.start for piece, _ in mine))
        for doc, mine in own.items()
        if doc not in waiting
    ]
    lengths = [length for _, length in local_spans]
    count = len(exchange.messages)
    together = [slice(0, count)] if apart and count else [slice(number, number + 1) for number in range(count)]
    return SlotTables(
        exchange=exchange,
        local=_part(lengths, lengths, local_spans, True, device),
        remotes=tuple(
            _remote(exchange, messages, own, window, apart, plan.tokens(slot), device) for messages in together
        ),
        apart=apart,
    )


def _remote(
    exchange: Exchange,
    messages: slice,
    own: dict[int, list[tuple[Piece, int]]],
    window: int | None,
    apart: bool,
    tokens: int,
    device: torch.device,
) -> Remote:
    """The call that these messages allow. own: pieces and first rows of the slot's documents."""
    first, last = exchange.messages[messages][0].borrowed, exchange.messages[messages][-1].borrowed
    place = slice(first.start, last.stop)
    spans = [Piece(fetch.doc, fetch.start, fetch.stop) for fetch in exchange.fetched]
    arrived = [(span, row - place.start) for span, row in zip(spans, _rows_of(spans), strict=True)]
    borrowed = _by_document([(span, row) for span, row in arrived if 0 <= row < place.stop - place.start])
    asking: list[tuple[int, int]] = []
    key_lengths: list[int] = []
    sources: list[tuple[bool, int, int]] = []
    for doc, mine in own.items():
        theirs = borrowed.get(doc, [])
        for piece, row in mine if theirs else []:
            low = 0 if window is None else max(0, piece.start - window + 1)
            keys = _overlaps([(False, *entry) for entry in theirs], low, piece.stop)
            if apart:
                keys = sorted(keys + _overlaps([(True, *entry) for entry in mine], low, piece.stop))
            if keys:
                asking.append((row, piece.stop - piece.start))
                key_lengths.append(sum(length for *_, length in keys))
                sources += [(is_own, at, length) for _, is_own, at, length in keys]
    part = _part([length for _, length in asking], key_lengths, asking, apart, device)
    return Remote(messages, place, part, _gather(sources, tokens, place.stop - place.start, device))


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
    is_own, row, length = np.array(sources, dtype=np.int64).reshape(-1, 3).T
    rows = span_rows(row + np.where(is_own, 0, own), length)
    in_place = len(rows) == borrowed and bool((rows == np.arange(own, own + borrowed)).all())
    own_stop = int(rows[rows < own].max(initial=-1)) + 1
    index = index_tensor(rows, device)
    return Gather(index, in_place, own, own_stop, RowSums(index, own + borrowed))
