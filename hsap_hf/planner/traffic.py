"""How many keys every slot fetches and sends, counted without listing them."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from hsap_hf.planner.pieces import Owned


class Traffic(NamedTuple):
    """Keys that travel under full causal attention, per slot."""

    fetched: Sequence[int]
    """Received from other slots."""
    sent: Sequence[int]
    """Sent to other slots, once for each receiver."""
    far_fetched: Sequence[int]
    """Those of `fetched` that come from another node."""
    far_sent: Sequence[int]
    """Those of `sent` that go to another node."""

    def near_most(self) -> list[int]:
        """Per slot what travels inside its node: fetched or sent, whichever is more."""
        return [max(a - c, b - d) for a, b, c, d in zip(*self, strict=True)]

    def far_most(self) -> list[int]:
        """Per slot what travels between nodes: fetched or sent, whichever is more."""
        return list(map(max, self.far_fetched, self.far_sent))


def exchanged(
    cut_documents: Iterable[Sequence[Owned]], context_size: int, ranks_per_node: int | None = None
) -> Traffic:
    """Keys that every slot fetches and sends, with `ranks_per_node` consecutive slots in a node (None: all of them).

    cut_documents: for each cut document its owners' rows, ascending. A slot fetches all rows before its last one, minus
    its own; so a row goes to every other owner whose last row is behind it, and owners of early rows send most.
    """
    fetched, sent = [0] * context_size, [0] * context_size
    far_fetched, far_sent = [0] * context_size, [0] * context_size
    node_size = ranks_per_node or context_size
    for rows in cut_documents:
        last = {slot: stop for _, stop, slot in rows}
        stops = sorted(last.values())
        for start, stop, slot in rows:
            fetched[slot] -= stop - start
            sent[slot] += (stop - start) * (len(stops) - bisect_left(stops, stop) - 1)
        for slot, stop in last.items():
            fetched[slot] += stop
        if min(last) // node_size == max(last) // node_size:
            continue
        stops_of: dict[int, list[int]] = {}
        for slot, stop in last.items():
            stops_of.setdefault(slot // node_size, []).append(stop)
        for of_node in stops_of.values():
            of_node.sort()
        seen = dict.fromkeys(stops_of, 0)
        for start, stop, slot in rows:
            node = slot // node_size
            here = stops_of[node]
            behind = len(stops) - bisect_left(stops, stop) - (len(here) - bisect_left(here, stop))
            far_sent[slot] += (stop - start) * behind
            seen[node] += stop - start
            if last[slot] == stop:
                far_fetched[slot] += stop - seen[node]
    return Traffic(fetched, sent, far_fetched, far_sent)


def own_work(cut_documents: Iterable[Sequence[Owned]], work: Sequence[int]) -> list[int]:
    """What of `work`, doubled query-key pairs of every slot, needs no keys of others: it runs while keys travel.

    Of a cut document those are a slot's own rows against each other.
    """
    own = list(work)
    for rows in cut_documents:
        held: dict[int, int] = {}
        for start, stop, slot in rows:
            own[slot] -= (stop - start) * (start + stop + 1)
            held[slot] = held.get(slot, 0) + stop - start
        for slot, count in held.items():
            own[slot] += count * (count + 1)
    return own
