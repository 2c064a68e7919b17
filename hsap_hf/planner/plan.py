"""A plan: which rows of which document every slot of a group computes."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hsap_hf.errors import PlanError
from hsap_hf.planner.documents import checked_lengths, checked_slots
from hsap_hf.planner.load import Load
from hsap_hf.planner.pieces import Owned, Piece
from hsap_hf.planner.placement import place
from hsap_hf.planner.slots import Slots
from hsap_hf.planner.traffic import exchanged, own_work

__all__ = ["Fetch", "Owned", "Piece", "Plan", "compile_plan"]


class Fetch(NamedTuple):
    """Rows [start, stop) of document `doc` whose keys and values `from_slot` owns and sends."""

    from_slot: int
    doc: int
    start: int
    stop: int


@dataclass(frozen=True)
class Plan:
    """Frozen placement of one pack on `context_size` slots; equal inputs give equal plans everywhere."""

    lengths: tuple[int, ...]
    """Tokens of every document; a document's id is its index here."""
    context_size: int
    """Number of slots; some may be empty."""
    slots: Sequence[tuple[Piece, ...]]
    """Per slot its pieces in local row order; pieces of one document are adjacent and ascend by start."""

    @cached_property
    def _lengths(self) -> NDArray[np.int64]:
        return np.array(self.lengths, dtype=np.int64)

    @cached_property
    def table(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All pieces, slot after slot, as int64[pieces, 3] of doc, start and stop; and how many every slot has."""
        if isinstance(self.slots, Slots):
            return self.slots.table(self._lengths)
        rows = np.array(list(chain.from_iterable(self.slots)), dtype=np.int64).reshape(-1, 3)
        return rows, np.array(list(map(len, self.slots)), dtype=np.int64)

    @cached_property
    def fingerprint(self) -> int:
        """63-bit number over lengths, context_size and slots, equal on every process and platform."""
        rows, counts = self.table
        digest = hashlib.blake2b(digest_size=8)
        for numbers in (np.array([len(self.lengths), self.context_size]), self._lengths, counts, rows):
            digest.update(numbers.astype("<i4").tobytes())
        return int.from_bytes(digest.digest(), "little") >> 1

    @cached_property
    def cut_documents(self) -> dict[int, tuple[Owned, ...]]:
        """Documents that lie on more than one slot or in more than one piece: their pieces in row order."""
        lengths = self.lengths
        found = [
            (doc, start, stop, slot)
            for slot, pieces in enumerate(self.slots)
            for doc, start, stop in pieces
            if stop - start != lengths[doc]
        ]
        owned: dict[int, list[Owned]] = {}
        for doc, start, stop, slot in sorted(found):
            owned.setdefault(doc, []).append(Owned(start, stop, slot))
        return {doc: tuple(rows) for doc, rows in owned.items()}

    def cut_pieces(self, slot: int) -> Sequence[Piece]:
        """The pieces of cut documents on `slot`, in local row order."""
        if isinstance(self.slots, Slots):
            return self.slots.cut(slot)
        return [piece for piece in self.slots[slot] if piece.doc in self.cut_documents]

    def most_fetched(self, window: int | None = None) -> int:
        """Rows that the slot which fetches most needs from others; with a window, at most so many."""
        if window is None:
            return max(exchanged(self.cut_documents.values(), self.context_size).fetched)
        fetched = [0] * self.context_size
        for rows in self.cut_documents.values():
            for start, _, slot in rows:
                fetched[slot] += min(start, window - 1)
        return max(fetched)

    def load(self, ranks_per_node: int | None = None) -> Load:
        """What every slot has, with so many consecutive slots in a node (None: all of them)."""
        pieces, per_slot = self.table
        _, start, stop = pieces.T
        slots = np.repeat(np.arange(self.context_size), per_slot)
        totals = np.zeros((self.context_size, 2), dtype=np.int64)
        np.add.at(totals, slots, np.stack([stop - start, (stop - start) * (start + stop + 1)], axis=1))
        tokens, work = totals.T.tolist()
        cut = self.cut_documents.values()
        own = own_work(cut, work)
        traffic = exchanged(cut, self.context_size, ranks_per_node)
        return Load(tuple(tokens), tuple(pairs // 2 for pairs in work), tuple(pairs // 2 for pairs in own), traffic)

    @cached_property
    def slot_tokens(self) -> tuple[int, ...]:
        """Tokens that every slot computes."""
        pieces, per_slot = self.table
        ends = np.concatenate([[0], np.cumsum(pieces[:, 2] - pieces[:, 1])])
        last = np.cumsum(per_slot)
        return tuple((ends[last] - ends[last - per_slot]).tolist())

    def tokens(self, slot: int) -> int:
        """Tokens that `slot` computes."""
        return self.slot_tokens[slot]

    def work(self, slot: int) -> int:
        """Query-key pairs of the rows of `slot`: row p of a document sees p + 1 keys."""
        return sum([(stop - start) * (start + stop + 1) for _, start, stop in self.slots[slot]]) // 2


def compile_plan(lengths: Sequence[int], context_size: int, *, ranks_per_node: int | None = None) -> Plan:
    """The plan for a pack: equal tokens and work on every slot, few cut documents, little to fetch.

    lengths: tokens of every document, ints >= 1; may be empty. ranks_per_node: how many consecutive slots share a node
    (its ranks / ulysses_size), so that documents stay inside one where they fit; None: all slots do. PlanError on
    lengths, slots or nodes outside limits.
    """
    checked = checked_lengths(lengths)
    if ranks_per_node is not None and (type(ranks_per_node) is not int or ranks_per_node < 1):
        raise PlanError(f"ranks_per_node is {ranks_per_node!r}; it must be an int >= 1, or None for a single node.")
    draft = place(checked, checked_slots(context_size), ranks_per_node)
    plan = Plan(checked, context_size, Slots(draft, checked))
    vars(plan)["cut_documents"] = {doc: tuple(rows) for doc, rows in draft.cut.items()}  # known: spares a pass
    return plan
