"""The documents of a pack laid end to end, shortest first: a token axis on which any share can be weighed."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence

import numpy as np

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

    def __init__(self, lengths: Sequence[int], shares: Mapping[int, int] | None = None) -> None:
        """shares: tokens of the documents to lay out, where that is not all of all of them."""
        chosen = lengths if shares is None else [lengths[doc] for doc in shares]
        full = np.array(chosen, dtype=np.int64)  # numpy sorts and sums 4,096 documents in 0.25 ms, lists in 0.66
        order = np.argsort(full, kind="stable")
        full = full[order]
        sizes = full if shares is None else np.array(list(shares.values()), dtype=np.int64)[order]
        self.docs: list[int] = order.tolist() if shares is None else np.array(list(shares), np.int64)[order].tolist()
        """Documents, ascending by length."""
        self.starts: list[int] = [0, *np.cumsum(sizes).tolist()]
        """First token of every document, and the number of all tokens."""
        self._weights: list[int] = [0, *np.cumsum(sizes * (full + 1)).tolist()]
        self._densities: list[int] = [*(full + 1).tolist(), 0]

    def index(self, token: int) -> int:
        """Position of the document that holds `token`."""
        return bisect_right(self.starts, token) - 1

    def weight(self, token: int) -> int:
        """Weight of the tokens before `token`."""
        i = bisect_right(self.starts, token) - 1
        return self._weights[i] + (token - self.starts[i]) * self._densities[i]
