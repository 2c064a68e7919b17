"""Two levels: the window construction deals the pack to nodes, and then every node's share to its slots.

At most 2(N - 1) documents are cut between N nodes, all others stay inside one; with the cuts inside the nodes that is
still at most 2(C - 1) documents. A document that several nodes own is folded over all its slots at once, so that its
early rows, which everyone fetches, are sent by all of them.
"""

from collections.abc import Sequence

from hsap_hf.planner.documents import TokenAxis
from hsap_hf.planner.draft import Draft
from hsap_hf.planner.pieces import Owned, Share, fold
from hsap_hf.planner.window import window


def by_node(lengths: Sequence[int], axis: TokenAxis, tokens: Sequence[int], ranks_per_node: int) -> Draft:
    """A draft whose slots are settled already: node after node, `ranks_per_node` slots each.

    tokens: of every slot, largest first.
    """
    wanted = [tokens[first : first + ranks_per_node] for first in range(0, len(tokens), ranks_per_node)]
    nodes = window(lengths, axis, list(map(sum, wanted)))
    if len(tokens) % ranks_per_node == 0:  # a smaller last node must stay the last
        nodes = nodes.settled(lengths)
    held = [Held(lengths) for _ in wanted]
    for doc, rows in nodes.cut.items():
        for start, stop, node in rows:
            held[node][doc] = held[node].get(doc, 0) + stop - start
    whole: list[list[int]] = []
    cut: dict[int, list[Owned]] = {}
    work: list[int] = []
    shares: dict[int, list[Share]] = {doc: [] for doc in nodes.cut}
    for docs, partial, of_slots in zip(nodes.whole, held, wanted, strict=True):
        own = axis.part(docs, partial)
        fewest, spare = divmod(own.starts[-1], len(of_slots))
        level = [fewest + (slot < spare) for slot in range(len(of_slots))]
        inner = window(partial, own, level).settled(partial)
        first = len(whole)
        whole += inner.whole
        for doc in partial.keys() - inner.cut.keys():  # one slot has all that the node has
            slot = next(slot for slot, docs in enumerate(inner.whole, first) if doc in docs)
            shares[doc].append(Share(partial[doc], slot))
            whole[slot].remove(doc)
        for doc, rows in inner.cut.items():
            if doc in shares:
                shares[doc] += [Share(count, first + slot) for slot, count in _tokens(rows).items()]
            else:
                cut[doc] = [Owned(start, stop, first + slot) for start, stop, slot in rows]
        work += inner.work
    cut |= {doc: fold(shares[doc], 0, lengths[doc]) for doc in shares}
    return Draft(whole, {doc: sorted(cut[doc]) for doc in sorted(cut)}, work)


class Held(dict[int, int]):
    """Tokens that a node has of each document: those of partial ones are entries, all others are whole.

    Only `[doc]` knows whole documents; keys, `in` and `get` tell of the partial ones.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self._lengths = lengths

    def __missing__(self, doc: int) -> int:
        return self._lengths[doc]


def _tokens(rows: Sequence[Owned]) -> dict[int, int]:
    """Tokens by slot."""
    counts: dict[int, int] = {}
    for start, stop, slot in rows:
        counts[slot] = counts.get(slot, 0) + stop - start
    return counts
