"""What one slot attends to: its own keys at once, those of others as they come. Compiled once per batch and window."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import torch

from hsap_hf.attention.segments import Keys, Part, make_keys, make_part
from hsap_hf.comm.exchange import Exchange, compile_exchange
from hsap_hf.comm.spans import offsets
from hsap_hf.planner import Piece, Plan
from hsap_hf.planner.cost import best_num_messages


@dataclass(frozen=True)
class Remote:
    """What can be attended to once a message has come."""

    borrowed: slice
    """The rows it brings."""
    calls: tuple[tuple[Part, Keys], ...]
    """Rows of cut documents against borrowed keys, one call for each run of neighbours. No two need the same keys."""


@dataclass(frozen=True)
class SlotTables:
    """All that the layers with one window need to know about a slot.

    Two forms. *Merged*: the local call takes every row in place (own keys of a cut document, head and tail joined, are
    one causal segment), remote calls for each message add full rectangles of its keys, and rows with both are merged.
    *Apart*: each piece of a document that waits for keys is one causal segment of the one remote call, over all the
    keys it needs, own ones among them; the local call has the other rows, and nothing is merged. Merged was as
    fast or faster where both were measured. But a window is a distance inside the document, which joined pieces do not
    keep, so layers with one are apart, and only these.
    """

    exchange: Exchange
    local: tuple[Part, ...]
    """The slot's rows against its own keys, which needs nothing from others: one call for each run of neighbours."""
    remotes: tuple[Remote, ...]
    """One for each message of the exchange."""
    apart: bool
    """The form: no row is in two parts."""


def compile_tables(
    plan: Plan,
    slot: int,
    window: int | None,
    device: torch.device,
    *,
    num_messages: int | None = None,
    near_slots: int | None = None,
    ulysses_size: int = 1,
) -> SlotTables:
    """Tables of `slot` for layers that see the last `window` keys of a document (None: all of them).

    num_messages: of the exchange, the same on all slots; None takes what is predicted to be fastest, one on a CPU;
    layers with a window have one whatever is asked. near_slots: see HsapMesh.
    """
    on_gpu = device.type == "cuda"
    apart = window is not None
    if apart:
        num_messages = 1
    if num_messages is None:
        # then it is one: no need to count what travels
        all_near = not plan.cut_documents or (near_slots or plan.context_size) >= plan.context_size
        num_messages = 1 if all_near or not on_gpu else best_num_messages(plan.load(near_slots), ulysses_size)
    exchange = compile_exchange(plan, slot, window, device, num_messages)
    pieces = plan.slots[slot]
    own = _by_document([(piece, row) for piece, row in zip(pieces, _rows_of(pieces), strict=True)])
    waiting = {fetch.doc for fetch in exchange.fetched} if apart else set()
    local = [
        _Segment(mine[0][1], sum(piece.stop - piece.start for piece, _ in mine))
        for doc, mine in own.items()
        if doc not in waiting
    ]
    return SlotTables(
        exchange=exchange,
        local=tuple(_part(run, [segment.length for segment in run], True, device) for run in _runs(local)),
        remotes=tuple(
            _remote(exchange, message.borrowed, own, window, plan.tokens(slot), device) for message in exchange.messages
        ),
        apart=apart,
    )


def _remote(
    exchange: Exchange,
    place: slice,
    own: dict[int, list[tuple[Piece, int]]],
    window: int | None,
    tokens: int,
    device: torch.device,
) -> Remote:
    """The calls that a message allows. place: its borrowed rows. own: pieces and first rows of the slot's documents."""
    apart = window is not None
    fetched = [Piece(fetch.doc, fetch.start, fetch.stop) for fetch in exchange.fetched]
    arrived = [(span, row - place.start) for span, row in zip(fetched, _rows_of(fetched), strict=True)]
    borrowed = _by_document([(span, row) for span, row in arrived if 0 <= row < place.stop - place.start])
    segments: list[_Segment] = []
    for doc, mine in own.items():
        theirs = borrowed.get(doc, [])
        for piece, row in mine if theirs else []:
            low = 0 if window is None else max(0, piece.start - window + 1)
            keys = _overlaps([(False, *entry) for entry in theirs], low, piece.stop)
            if apart:
                keys = sorted(keys + _overlaps([(True, *entry) for entry in mine], low, piece.stop))
            else:  # all of them are seen by all rows, so that their order is free
                keys.sort(key=itemgetter(2))
            if keys:
                sources = [(is_own, at, length) for _, is_own, at, length in keys]
                segments.append(_Segment(row, piece.stop - piece.start, sources))
    calls = []
    for run in _runs(segments):
        part = _part(run, [sum(length for *_, length in segment.sources) for segment in run], apart, device)
        sources = [source for segment in run for source in segment.sources]
        calls.append((part, make_keys(sources, tokens, place.stop - place.start, device)))
    return Remote(place, tuple(calls))


class _Segment(NamedTuple):
    """Rows of the slot that ask, and (is own, row in its source, length) of every run of keys of a remote call."""

    row: int
    length: int
    sources: Sequence[tuple[bool, int, int]] = ()


def _part(run: list[_Segment], key_lengths: list[int], causal: bool, device: torch.device) -> Part:
    return make_part(run[0].row, [segment.length for segment in run], key_lengths, causal, device)


def _runs(segments: list[_Segment]) -> Iterator[list[_Segment]]:
    """Segments whose rows are neighbours, together."""
    run: list[_Segment] = []
    for segment in segments:
        if run and run[-1].row + run[-1].length != segment.row:
            yield run
            run = []
        run.append(segment)
    if run:
        yield run


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
