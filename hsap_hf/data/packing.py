"""Which documents share a pack, and which rank brings which of them. Integers only; every rank computes the same."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from hsap_hf.errors import PackError

WINDOW_PACKS = 64
"""Packs filled together. More of them level better, fewer keep the composition random."""


class Span(NamedTuple):
    """Tokens `start` to `stop` of document `doc`."""

    doc: int
    start: int
    stop: int

    @property
    def tokens(self) -> int:
        """Tokens in the span."""
        return self.stop - self.start


Pack = tuple[Span, ...]


def pack_documents(lengths: Sequence[int], pack_tokens: int, seed: int = 0) -> tuple[Pack, ...]:
    """Packs of at most `pack_tokens` tokens that hold every token of every document exactly once.

    Documents come in a seeded random order, enough for 64 packs at a time, and these are dealt to their packs
    longest first, each to the emptiest; what finds no room waits for the next 64. So every pack mixes long and short
    documents as the data does, and the packs are about equally full. A document longer than `pack_tokens` becomes
    spans of equal length, which leave room for short ones beside them. An empty document is in no pack.
    Same arguments, same packs.

    Raises PackError for a negative length or a pack of no tokens.
    """
    if pack_tokens < 1:
        raise PackError(f"pack_tokens is {pack_tokens}; a pack holds at least 1 token.")
    spans = [span for doc, length in enumerate(lengths) for span in _cut(doc, length, pack_tokens)]
    random.Random(f"packs {seed}").shuffle(spans)  # noqa: S311  (repeatable order, not cryptography)
    packs: list[Pack] = []
    window: list[Span] = []
    room = WINDOW_PACKS * pack_tokens
    for span in spans:
        if span.tokens > room:
            filled, window = _fill(window, pack_tokens, WINDOW_PACKS)
            packs += filled
            room = WINDOW_PACKS * pack_tokens - sum(left.tokens for left in window)
        window.append(span)
        room -= span.tokens
    left = window
    num_packs = -(-sum(span.tokens for span in window) // pack_tokens)
    while left:  # the last packs share what is left evenly: no tiny pack at the end
        filled, left = _fill(window, pack_tokens, num_packs)
        num_packs += 1
    return tuple(packs + (filled if window else []))


def _fill(spans: Sequence[Span], pack_tokens: int, num_packs: int) -> tuple[list[Pack], list[Span]]:
    """`num_packs` packs, and the spans that found no room in them."""
    packs: list[list[int]] = [[] for _ in range(num_packs)]
    loads = [(0, pack) for pack in range(len(packs))]
    left: list[Span] = []
    for index in _longest_first(spans):
        tokens, pack = loads[0]
        if tokens + spans[index].tokens > pack_tokens:
            left.append(spans[index])
        else:
            packs[pack].append(index)
            heapq.heapreplace(loads, (tokens + spans[index].tokens, pack))
    return [tuple(spans[index] for index in sorted(pack)) for pack in packs], left


def _longest_first(spans: Sequence[Span]) -> list[int]:
    return sorted(range(len(spans)), key=lambda index: (-spans[index].tokens, index))


def _cut(doc: int, length: int, pack_tokens: int) -> Iterator[Span]:
    if length < 0:
        raise PackError(f"document {doc} has a length of {length} tokens; lengths are 0 or more.")
    count = -(-length // pack_tokens)
    for part in range(count):
        yield Span(doc, part * length // count, (part + 1) * length // count)


def order_packs(num_packs: int, seed: int, epoch: int) -> list[int]:
    """The order in which an epoch reads the packs: a permutation of range(num_packs)."""
    order = list(range(num_packs))
    random.Random(f"epoch {seed} {epoch}").shuffle(order)  # noqa: S311  (repeatable order, not cryptography)
    return order


def deal_parts(pack: Iterable[Span], num_parts: int) -> tuple[Pack, ...]:
    """The pack's spans, whole, in `num_parts` parts of similar token counts; a part may be empty.

    Longest first to the lightest part: no part exceeds the mean by more than the longest span. Inside a part the
    order is the pack's.
    """
    spans = tuple(pack)
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    loads = [(0, part) for part in range(num_parts)]
    for index in _longest_first(spans):
        tokens, part = loads[0]
        parts[part].append(index)
        heapq.heapreplace(loads, (tokens + spans[index].tokens, part))
    return tuple(tuple(spans[index] for index in sorted(part)) for part in parts)
