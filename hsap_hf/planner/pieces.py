"""Pieces of documents, and the fold that turns shares of a document into pieces of equal density."""

from collections.abc import Sequence
from typing import NamedTuple


class Piece(NamedTuple):
    """Rows [start, stop) of document `doc`."""

    doc: int
    start: int
    stop: int


class Owned(NamedTuple):
    """Rows [start, stop) of a cut document, and the slot that owns them."""

    start: int
    stop: int
    slot: int


class Share(NamedTuple):
    """`tokens` of one document, for `slot`; which rows is left to `fold`."""

    tokens: int
    slot: int


def fold(shares: Sequence[Share], start: int, stop: int) -> list[Owned]:
    """Rows [start, stop) dealt from the outside to the inside, larger shares outside, so that all have one density.

    Every owner but the innermost gets a head and an equal tail; a pair of rows i and (start + stop - 1 - i) always
    costs start + stop + 1 pairs (the fold lemma). Odd shares alternate the side of their spare row.
    """
    owned = []
    spare = 0
    *outer, inner = sorted(shares, key=lambda share: (-share.tokens, share.slot))
    for tokens, slot in outer:
        head = (tokens + spare) // 2
        spare ^= tokens & 1
        if head:
            owned.append(Owned(start, start + head, slot))
        if tokens > head:
            owned.append(Owned(stop - (tokens - head), stop, slot))
        start, stop = start + head, stop - (tokens - head)
    owned.append(Owned(start, stop, inner.slot))
    return owned
