"""The documents of a pack laid end to end, shortest first: a token axis on which any share can be weighed."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from copy import copy

import numpy as np
from numpy.typing import NDArray

from hsap_hf.errors import PlanError

MAX_DOCUMENTS = 1_000_000
MAX_TOKENS = 2**31 - 1
MAX_SLOTS = 65_536


def checked_lengths(lengths: Sequence[int]) -> tuple[int, ...]:
    """The lengths as a tuple of ints >= 1; PlanError names what was got and what is allowed."""
    if len(lengths) > MAX_DOCUMENTS:
        raise PlanError(
            f"A pack of {len(lengths):,} documents is over the limit of {MAX_DOCUMENTS:,}. "
            "Bring smaller batches, or join documents that may see each other."
        )
    checked = tuple(lengths)
    if checked and set(map(type, checked)) != {int}:
        doc, length = next((doc, length) for doc, length in enumerate(checked) if type(length) is not int)
        raise PlanError(f"Document {doc} has length {length!r} ({type(length).__name__}); lengths are ints >= 1.")
    if checked and min(checked) < 1:
        doc, length = next((doc, length) for doc, length in enumerate(checked) if length < 1)
        raise PlanError(f"Document {doc} has {length} tokens; a document has at least 1. Leave empty documents out.")
    if sum(checked) > MAX_TOKENS:
        raise PlanError(
            f"A pack of {sum(checked):,} tokens is over the limit of {MAX_TOKENS:,} (positions are int32). "
            "Bring smaller batches, or use more replicas and fewer ranks in a group."
        )
    return checked


def checked_slots(context_size: int) -> int:
    """The number of slots as an int in 1..MAX_SLOTS; PlanError otherwise."""
    if type(context_size) is not int or not 1 <= context_size <= MAX_SLOTS:
        raise PlanError(f"context_size is {context_size!r}; it must be an int from 1 to {MAX_SLOTS:,}.")
    return context_size


def pairs(start: int, stop: int) -> int:
    """Query-key pairs of rows [start, stop) of one document: row p sees p + 1 keys."""
    return (stop - start) * (start + stop + 1) // 2


class TokenAxis:
    """Documents sorted by length, end to end; weights are doubled pairs, so they are whole numbers.

    A token of a document of length l weighs l + 1 wherever it stands: cut from the outside to the inside (`fold`),
    a share of n tokens holds n(l + 1)/2 pairs (the fold lemma, docs/concepts.md).
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self._lengths = np.array(lengths, dtype=np.int64)  # numpy sorts and sums 4,096 in 0.25 ms, lists in 0.66
        self._lay(np.arange(len(lengths)), self._lengths)

    def part(self, whole: Sequence[int], shares: Mapping[int, int]) -> "TokenAxis":
        """The axis of `whole` documents and of some tokens of others."""
        docs = np.array([*whole, *shares], dtype=np.int64)
        sizes = self._lengths[docs]
        sizes[len(whole) :] = list(shares.values())
        part = copy(self)
        part._lay(docs, sizes)
        return part

    def _lay(self, docs: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
        full = self._lengths[docs]
        order = np.argsort(full, kind="stable")
        full, sizes = full[order], sizes[order]
        self.docs: list[int] = docs[order].tolist()
        """Documents, ascending by length."""
        stops = np.cumsum(sizes)
        self.starts: list[int] = [0, *stops.tolist()]
        """First token of every document, and the number of all tokens."""
        slopes = full + 1
        weights = np.cumsum(sizes * slopes)
        self._levels: list[int] = [*(weights - stops * slopes).tolist(), *(weights[-1:].tolist() or [0])]
        """The tokens before token t of a document weigh its level + t * its slope."""
        self._slopes: list[int] = [*slopes.tolist(), 0]

    def index(self, token: int) -> int:
        """Position of the document that holds `token`."""
        return bisect_right(self.starts, token) - 1

    def weight(self, token: int) -> int:
        """Weight of the tokens before `token`."""
        i = bisect_right(self.starts, token) - 1
        return self._levels[i] + token * self._slopes[i]
