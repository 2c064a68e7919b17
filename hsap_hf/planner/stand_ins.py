"""Stand-ins for the placements of other tools, as far as tokens, work and fetched keys go; for comparison only.

Written from the public sources of the tools named in each docstring. Rules on lengths and padding of the originals are
left out, which flatters them.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise

from hsap_hf.planner.documents import pairs
from hsap_hf.planner.load import Load
from hsap_hf.planner.pieces import Piece
from hsap_hf.planner.plan import Plan
from hsap_hf.planner.traffic import Traffic

HEAP_CHUNKS = 8
"""Chunks a slot in `equal_chunks` (MagiAttention's default)."""


Rows = Sequence[Sequence[tuple[int, int, int]]]


def contiguous(lengths: Sequence[int], context_size: int, ranks_per_node: int | None = None) -> Load:
    """Consecutive tokens of the row to consecutive slots, exact need fetched (Automodel blockdiag_cp)."""
    total = sum(lengths)
    edges = [total * slot // context_size for slot in range(context_size + 1)]
    return _exact_need(lengths, [list(_rows(lengths, a, b)) for a, b in pairwise(edges)], ranks_per_node)


def zigzag_ring(lengths: Sequence[int], context_size: int, ranks_per_node: int | None = None) -> Load:
    """Whole row in 2C chunks, slot i has chunks i and 2C-1-i, every key goes around (torch context parallel)."""
    total, chunks = sum(lengths), 2 * context_size
    edges = [total * chunk // chunks for chunk in range(chunks + 1)]
    rows = [
        [*_rows(lengths, edges[i], edges[i + 1]), *_rows(lengths, edges[chunks - 1 - i], edges[chunks - i])]
        for i in range(context_size)
    ]
    return _all_keys(rows, total, ranks_per_node)


def document_zigzag_ring(lengths: Sequence[int], context_size: int, ranks_per_node: int | None = None) -> Load:
    """Every document in 2C chunks dealt zigzag, every key goes around (TransformerEngine THD, ms-swift)."""
    rows: list[list[tuple[int, int, int]]] = [[] for _ in range(context_size)]
    for doc, length in enumerate(lengths):
        for slot, start, stop in _zigzag(length, context_size):
            rows[slot].append((doc, start, stop))
    return _all_keys(rows, sum(lengths), ranks_per_node)


def equal_chunks(lengths: Sequence[int], context_size: int, ranks_per_node: int | None = None) -> Load:
    """Equal chunks of the row, largest area first onto the lightest slot with a free place, exact need fetched
    (MagiAttention's min-heap dispatch)."""
    total, chunks = sum(lengths), HEAP_CHUNKS * context_size
    edges = [total * chunk // chunks for chunk in range(chunks + 1)]
    rows = [list(_rows(lengths, a, b)) for a, b in pairwise(edges)]
    areas = [sum(pairs(start, stop) for _, start, stop in chunk) for chunk in rows]
    slots: list[list[tuple[int, int, int]]] = [[] for _ in range(context_size)]
    heap = [(0, slot, HEAP_CHUNKS) for slot in range(context_size)]
    for chunk in sorted(range(chunks), key=lambda chunk: (-areas[chunk], chunk)):
        area, slot, free = heapq.heappop(heap)
        slots[slot] += rows[chunk]
        if free > 1:
            heapq.heappush(heap, (area + areas[chunk], slot, free - 1))
    return _exact_need(lengths, slots, ranks_per_node)


def power_of_two_groups(lengths: Sequence[int], context_size: int, ranks_per_node: int | None = None) -> Load:
    """Every document on the smallest aligned power-of-two group of slots that holds it, longest first onto the group
    with the least work, zigzag inside (Megatron hybrid context parallel, FlexSP)."""
    room = -(-sum(lengths) // context_size)
    tokens, work, fetched = [0] * context_size, [0] * context_size, [0] * context_size
    largest = [1] * context_size
    for doc in sorted(range(len(lengths)), key=lambda doc: (-lengths[doc], doc)):
        size = 1
        while size * room < lengths[doc] and size * 2 <= context_size:
            size *= 2
        firsts = range(0, context_size - size + 1, size)
        first = min(firsts, key=lambda first: (max(work[first : first + size]), first))
        for slot, start, stop in _zigzag(lengths[doc], size):
            tokens[first + slot] += stop - start
            work[first + slot] += pairs(start, stop)
            fetched[first + slot] -= stop - start
        for slot in range(first, first + size):
            fetched[slot] += lengths[doc]
            largest[slot] = max(largest[slot], size)
    return Load(tuple(tokens), tuple(work), tuple(work), _around(fetched, largest, ranks_per_node))


STAND_INS: tuple[tuple[str, Callable[[Sequence[int], int, int | None], Load]], ...] = (
    ("contiguous", contiguous),
    ("zigzag ring", zigzag_ring),
    ("zigzag per document", document_zigzag_ring),
    ("equal chunks, heap", equal_chunks),
    ("power-of-two groups", power_of_two_groups),
)


def _rows(lengths: Sequence[int], first: int, last: int) -> Iterator[tuple[int, int, int]]:
    """(doc, start, stop) of tokens [first, last) of the row."""
    for doc, (end, length) in enumerate(zip(accumulate(lengths), lengths, strict=True)):
        start, stop = max(first - (end - length), 0), min(last - (end - length), length)
        if start < stop:
            yield doc, start, stop


def _zigzag(length: int, size: int) -> Iterator[tuple[int, int, int]]:
    """(slot, start, stop) of one document in 2 * size chunks dealt there and back."""
    edges = [length * chunk // (2 * size) for chunk in range(2 * size + 1)]
    for chunk in range(2 * size):
        if edges[chunk] < edges[chunk + 1]:
            yield min(chunk, 2 * size - 1 - chunk), edges[chunk], edges[chunk + 1]


def _exact_need(lengths: Sequence[int], rows: Rows, ranks_per_node: int | None) -> Load:
    slots = tuple(tuple(Piece(*row) for row in sorted(mine)) for mine in rows)
    return Plan(tuple(lengths), len(rows), slots).load(ranks_per_node)


def _all_keys(rows: Rows, total: int, ranks_per_node: int | None) -> Load:
    tokens = tuple(sum(stop - start for _, start, stop in mine) for mine in rows)
    work = tuple(sum(pairs(start, stop) for _, start, stop in mine) for mine in rows)
    passed = [total - mine for mine in tokens]
    return Load(tokens, work, work, _around(passed, [len(rows)] * len(rows), ranks_per_node))


def _around(passed: Sequence[int], sizes: Sequence[int], ranks_per_node: int | None) -> Traffic:
    """Keys handed on in rings of `sizes` slots: a ring over several nodes goes at the pace of its slowest link."""
    far = [keys if ranks_per_node and size > ranks_per_node else 0 for keys, size in zip(passed, sizes, strict=True)]
    return Traffic(passed, passed, far, far)
