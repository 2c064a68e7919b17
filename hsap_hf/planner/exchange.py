"""Who fetches which keys from whom: exact causal need."""

from collections.abc import Sequence
from typing import NamedTuple

from hsap_hf.planner.plan import Fetch, Owned, Plan


class Send(NamedTuple):
    """Rows [start, stop) of document `doc` whose keys and values go to `to_slot`."""

    to_slot: int
    doc: int
    start: int
    stop: int


def fetches(plan: Plan, slot: int, window: int | None = None) -> tuple[Fetch, ...]:
    """Keys that `slot` needs and does not own, by (from_slot, doc, start).

    window: keys that a row may see, itself included (None: all before it). Rows [s, e) need the keys
    [max(0, s - window + 1), e) of their own document. What slot r sends here is exactly the entries with from_slot r.
    """
    found = []
    for doc, rows in _cut_documents_on(plan, slot):
        needed = _needed([row for row in rows if row.slot == slot], window)
        for row in rows:
            if row.slot != slot:
                found += [Fetch(row.slot, doc, start, stop) for start, stop in _overlaps(row, needed)]
    return tuple(sorted(found))


def sends(plan: Plan, slot: int, window: int | None = None) -> tuple[Send, ...]:
    """Keys of `slot` that others need, by (to_slot, doc, start): per receiver the order of its own `fetches`."""
    found = []
    for doc, rows in _cut_documents_on(plan, slot):
        owned: dict[int, list[Owned]] = {}
        for row in rows:
            owned.setdefault(row.slot, []).append(row)
        mine = owned.pop(slot)
        for receiver, theirs in owned.items():
            needed = _needed(theirs, window)
            for row in mine:
                found += [Send(receiver, doc, start, stop) for start, stop in _overlaps(row, needed)]
    return tuple(sorted(found))


def _cut_documents_on(plan: Plan, slot: int) -> Sequence[tuple[int, Sequence[Owned]]]:
    """Cut documents with rows on `slot`, each once, with all their owners."""
    return [(doc, plan.cut_documents[doc]) for doc in dict.fromkeys([piece.doc for piece in plan.cut_pieces(slot)])]


def _needed(mine: Sequence[Owned], window: int | None) -> list[tuple[int, int]]:
    """Keys that rows `mine` (ascending) see, as disjoint ascending ranges that never touch."""
    if window is None:
        return [(0, mine[-1].stop)]
    needed: list[tuple[int, int]] = []
    for start, stop, _ in mine:
        first = max(0, start - window + 1)
        if needed and first <= needed[-1][1]:
            first = needed.pop()[0]
        needed.append((first, stop))
    return needed


def _overlaps(row: Owned, needed: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The parts of the owned rows that lie in `needed`."""
    start, stop, _ = row
    return [(max(start, first), min(stop, last)) for first, last in needed if start < last and first < stop]
