"""The pieces of every slot of a draft, made slot by slot when they are asked for."""

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from hsap_hf.planner.draft import Draft
from hsap_hf.planner.pieces import Piece


class Slots(Sequence[tuple[Piece, ...]]):
    """Per slot its pieces: cut documents, then whole ones, longest first.

    A rank looks at its own slot, and thousands of pieces of others would cost a third of the time of a plan.

    Cut documents that wait for keys come first, so that their rows are neighbours and can be attended in place; among
    them those that begin here, whose head alone waits for nothing. Kernels start segments in this order, and what
    starts last should be short: else one long document keeps a few cores busy while the others are done.
    """

    def __init__(self, draft: Draft, lengths: Sequence[int]) -> None:
        self._whole, self._lengths = draft.whole, lengths
        self._cut: list[list[Piece]] = [[] for _ in draft.work]
        places: tuple[list[tuple[int, Piece]], ...] = ([], [], [])
        for doc in sorted(draft.cut, key=lambda doc: (-lengths[doc], doc)):
            rows = draft.cut[doc]
            begins, ends = rows[0].slot, {slot: stop for _, stop, slot in rows}
            for start, stop, slot in rows:
                waits = slot != begins or ends[slot] != rows[0].stop
                places[(0 if slot == begins else 1) if waits else 2].append((slot, Piece(doc, start, stop)))
        for place in places:
            for slot, piece in place:
                self._cut[slot].append(piece)
        self._made: dict[int, tuple[Piece, ...]] = {}

    def __len__(self) -> int:
        return len(self._cut)

    @overload
    def __getitem__(self, index: int) -> tuple[Piece, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[tuple[Piece, ...], ...]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(self[slot] for slot in range(*index.indices(len(self))))
        slot = range(len(self))[index]
        if slot not in self._made:
            lengths = self._lengths
            longest_first = sorted(self._whole[slot], key=lambda doc: (-lengths[doc], doc))
            self._made[slot] = (*self._cut[slot], *(Piece(doc, 0, lengths[doc]) for doc in longest_first))
        return self._made[slot]

    def cut(self, slot: int) -> Sequence[Piece]:
        """Of a slot's pieces those of cut documents, which come first; makes no others."""
        return self._cut[slot]

    def __iter__(self) -> Iterator[tuple[Piece, ...]]:
        return map(self.__getitem__, range(len(self)))

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, Slots | tuple) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))

    def table(self, lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All pieces, slot after slot, as int64[pieces, 3]; and how many each slot has. Makes no Piece.

        lengths: of the documents, once more, as an array.
        """
        num_slots, num_documents = len(self), len(self._lengths)
        num_whole = np.array(list(map(len, self._whole)), dtype=np.int64)
        num_cut = np.array(list(map(len, self._cut)), dtype=np.int64)
        counts = num_whole + num_cut
        slot_of = np.full(num_documents, num_slots, dtype=np.int64)
        slot_of[np.array([doc for docs in self._whole for doc in docs], dtype=np.int64)] = np.repeat(
            np.arange(num_slots), num_whole
        )
        docs = np.lexsort((-lengths, slot_of))[: num_whole.sum()]  # by slot, then longest first, as in __getitem__
        rows = np.zeros((counts.sum(), 3), dtype=np.int64)
        at = np.arange(len(docs)) + np.repeat(np.cumsum(num_cut), num_whole)
        rows[at, 0], rows[at, 2] = docs, lengths[docs]
        cut = [piece for pieces in self._cut for piece in pieces]
        at = np.arange(len(cut)) + np.repeat(np.cumsum(num_whole) - num_whole, num_cut)
        rows[at] = np.array(cut, dtype=np.int64).reshape(-1, 3)
        return rows, counts
