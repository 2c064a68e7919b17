"""What is predicted to be fastest on a GPU: a slot's form (see tables.SlotTables), and the number of messages."""

from __future__ import annotations

import numpy as np

from hsap_hf.comm.exchange import Exchange
from hsap_hf.planner import Plan
from hsap_hf.planner.documents import pairs
from hsap_hf.planner.messages import COUNTS, wait
from hsap_hf.planner.traffic import exchanged, own_work

_PAIRS_A_ROW, _PAIRS_A_FAR_ROW, _PAIRS_A_MESSAGE, _PAIRS_A_MERGED_ROW = 2_000, 7_400, 6_000_000, 1_700
"""Query-key pairs whose forward takes as long as: a row that travels over NVLink, or over a network; an exchange of
next to nothing with its launches; a row in both parts, forward and backward.

Measured (docs/performance.md): of 32 query and 8 key-value heads of 128, flash-attn 4 on an H100 computes a pair in 24
ps; 4 KiB take 47 ns at 87 GB/s, NVLink with few multiprocessors, and 178 ns at 23 GB/s; a small exchange takes 0.15 ms,
a row in both parts 41 ns. Other heads, links and kernels, and keys that are fetched again, are not told apart."""
_BACKWARD = 2.8
"""Times the forward that the backward of a pair takes."""
_WORTH = 1.02
"""What more messages than one must be predicted to save. Two lost a point on four GPUs over a slow link where 1.015 was
predicted, and won one to eight where it was 1.03 to 1.12."""


def apart_is_faster(
    plan: Plan, slot: int, exchange: Exchange, near_slots: int | None = None, ulysses_size: int = 1
) -> bool:
    """Whether waiting for what documents without foreign keys do not hide costs less than rows in both parts.

    near_slots: neighbouring slots whose keys travel over NVLink; None: all.
    """
    waiting = {fetch.doc for fetch in exchange.fetched}
    rows = beside = 0
    for piece in plan.slots[slot]:
        if piece.doc in waiting:
            rows += piece.stop - piece.start
        else:
            beside += pairs(piece.start, piece.stop)
    message = _message_pairs(slot, exchange, near_slots or plan.context_size, ulysses_size)
    waits = max(0, message - beside) + max(0, message - _BACKWARD * beside)
    return waits <= _PAIRS_A_MERGED_ROW * rows


def choose_num_messages(plan: Plan, near_slots: int | None = None, ulysses_size: int = 1) -> int:
    """Of messages of an exchange: with them the slowest slot is fastest, all slots merged. The same on all slots.

    In pairs, like the form, since a running job does not know its links; `planner.cost` predicts for a known machine.
    1 where all keys travel over NVLink: there two were slower on four GPUs, and on eight nobody measured them.
    """
    cut, count = plan.cut_documents.values(), plan.context_size
    if not cut or (near_slots or count) >= count:
        return 1
    pieces, per_slot = plan.table
    doubled = (pieces[:, 2] - pieces[:, 1]) * (pieces[:, 1] + pieces[:, 2] + 1)
    work = np.bincount(np.repeat(np.arange(count), per_slot), doubled, count).astype(np.int64).tolist()
    in_both = [0] * count
    for owned in cut:
        for start, stop, slot in owned:
            in_both[slot] += stop - start
    traffic = exchanged(cut, count, near_slots)
    travel = map(_travel_pairs, traffic.near_most(), traffic.far_most())
    slots = list(zip(work, own_work(cut, work), travel, in_both, strict=True))
    message = _PAIRS_A_MESSAGE * ulysses_size  # of heads, every rank has so few
    predicted = {messages: max(_merged_pairs(*slot, message, messages) for slot in slots) for messages in COUNTS}
    best = min(COUNTS, key=predicted.__getitem__)
    return best if predicted[best] * _WORTH < predicted[1] else 1


def _merged_pairs(work: int, own: int, travel: int, rows: int, message: int, count: int) -> float:
    """All that a slot does and waits for, in pairs of the forward. work, own: doubled, see planner.traffic.

    rows: at most so many are in both parts. A message takes its time on the link, and as long to launch all it needs.
    """
    here, rest = own / 2, (work - own) / 2
    waits = [wait(way * here, way * rest, travel + message, message, count) for way in (1.0, _BACKWARD)]
    return (1 + _BACKWARD) * work / 2 + sum(waits) + count * (_PAIRS_A_MERGED_ROW * rows + 2 * message)


def _message_pairs(slot: int, exchange: Exchange, near_slots: int, ulysses_size: int) -> int:
    """The exchange in pairs; both kinds of link, and both ways, work side by side."""
    near, far = [0, 0], [0, 0]
    for message in exchange.messages:
        for way, peers in enumerate((message.receive_rows, message.send_rows)):
            for peer, rows in enumerate(peers):
                (near if peer // near_slots == slot // near_slots else far)[way] += rows
    return _PAIRS_A_MESSAGE * ulysses_size * len(exchange.messages) + _travel_pairs(max(near), max(far))


def _travel_pairs(near_rows: int, far_rows: int) -> int:
    return max(_PAIRS_A_ROW * near_rows, _PAIRS_A_FAR_ROW * far_rows)
