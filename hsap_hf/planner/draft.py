"""A placement being drawn up: who owns every whole document, and the rows of every cut one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import eq

from hsap_hf.planner.documents import TokenAxis
from hsap_hf.planner.pieces import Owned, Share, fold

Lengths = Sequence[int] | Mapping[int, int]
"""Tokens by document."""


@dataclass(frozen=True)
class Draft:
    """One way to place a pack; several are drawn and the cheapest becomes the plan."""

    whole: list[list[int]]
    """Per slot the documents it owns alone."""
    cut: dict[int, list[Owned]]
    """Rows of the documents that several slots own, ascending, touching rows of one slot joined."""
    work: list[int]
    """Doubled query-key pairs of every slot."""

    def settled(self, lengths: Lengths) -> "Draft":
        """The same draft with its slots renumbered: each beside the other owners of the longest document it shares."""
        shared: list[list[int]] = [[] for _ in self.work]
        for rank, doc in enumerate(sorted(self.cut, key=lambda doc: (-lengths[doc], doc))):
            for slot in {row.slot for row in self.cut[doc]}:
                shared[slot].append(rank)
        last = len(self.cut)
        # by the longest shared document; those that share the next longest too come last, beside its other owners
        keys = [(ranks[0], last - ranks[1] if ranks[1:] else 0) if ranks else (last, 0) for ranks in shared]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        place = sorted(range(len(order)), key=order.__getitem__)
        cut = {doc: [Owned(a, b, place[slot]) for a, b, slot in self.cut[doc]] for doc in sorted(self.cut)}
        return Draft([self.whole[slot] for slot in order], cut, [self.work[slot] for slot in order])


class Drawing:
    """Collects what slots take until every row has an owner.

    Documents on the axis are poured by the token; all others are taken by the row.
    """

    def __init__(self, lengths: Lengths, axis: TokenAxis, context_size: int) -> None:
        self.work = [0] * context_size
        """Doubled query-key pairs of every slot so far."""
        self._lengths, self._axis = lengths, axis
        self._whole: list[list[int]] = [[] for _ in range(context_size)]
        self._rows: dict[int, list[Owned]] = {}
        self._shares: dict[int, dict[int, int]] = {}

    def take(self, slot: int, doc: int, start: int, stop: int) -> None:
        """Rows [start, stop) of `doc` go to `slot`."""
        self.work[slot] += (stop - start) * (start + stop + 1)
        if stop - start == self._lengths[doc]:
            self._whole[slot].append(doc)
        else:
            self._rows.setdefault(doc, []).append(Owned(start, stop, slot))

    def pour(self, slot: int, start: int, stop: int) -> None:
        """Tokens [start, stop) of the axis go to `slot`; documents cut by such edges are folded in the end."""
        if start == stop:
            return
        axis = self._axis
        self.work[slot] += axis.weight(stop) - axis.weight(start)
        first, last = axis.index(start), axis.index(stop)
        if axis.starts[first] < start:
            self._share(slot, axis.docs[first], min(stop, axis.starts[first + 1]) - start)
            first += 1
        if first <= last:
            self._whole[slot] += axis.docs[first:last]
            if axis.starts[last] < stop:
                self._share(slot, axis.docs[last], stop - axis.starts[last])

    def finished(self) -> Draft:
        """The draft; work of folded rows counts at the mean density of their document."""
        cut = {}
        for doc, shares in self._shares.items():
            self._rows[doc] = fold([Share(count, slot) for slot, count in shares.items()], 0, self._lengths[doc])
        for doc, rows in self._rows.items():
            rows.sort()
            owners = [slot for _, _, slot in rows]
            cut[doc] = list(_joined(rows)) if any(map(eq, owners, owners[1:])) else rows
            if len(cut[doc]) == 1:
                self._whole[cut.pop(doc)[0].slot].append(doc)
        return Draft(self._whole, cut, self.work)

    def _share(self, slot: int, doc: int, tokens: int) -> None:
        shares = self._shares.setdefault(doc, {})
        shares[slot] = shares.get(slot, 0) + tokens


def _joined(rows: Sequence[Owned]) -> Iterator[Owned]:
    """Ascending rows, with touching rows of one slot made one."""
    start, end, owner = rows[0]
    for row in rows[1:]:
        if row.slot != owner:
            yield Owned(start, end, owner)
            start, owner = row.start, row.slot
        end = row.stop
    yield Owned(start, end, owner)
