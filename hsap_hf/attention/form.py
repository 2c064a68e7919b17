"""Which form of a slot's tables is predicted to be faster on a GPU: apart or merged (see segments.SlotTables)."""

from __future__ import annotations

from hsap_hf.comm.exchange import Exchange
from hsap_hf.planner import Plan
from hsap_hf.planner.documents import pairs

_PAIRS_A_ROW, _PAIRS_A_FAR_ROW, _PAIRS_A_MESSAGE, _PAIRS_A_MERGED_ROW = 2_000, 7_400, 6_000_000, 1_700
"""Query-key pairs whose forward takes as long as: a row that travels over NVLink, or over a network; an exchange of
next to nothing with its launches; a row in both parts, forward and backward.

Measured (docs/performance.md): of 32 query and 8 key-value heads of 128, flash-attn 4 on an H100 computes a pair in 24
ps; 4 KiB take 47 ns at 87 GB/s, NVLink with few multiprocessors, and 178 ns at 23 GB/s; a small exchange takes 0.15 ms,
a row in both parts 41 ns. Other heads, links and kernels, and keys that are fetched again, are not told apart."""
_BACKWARD = 2.8
"""Times the forward that the backward of a pair takes."""


def apart_is_faster(plan: Plan, slot: int, exchange: Exchange, near_slots: int | None = None) -> bool:
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
    message = _message_pairs(slot, exchange, near_slots or plan.context_size)
    waits = max(0, message - beside) + max(0, message - _BACKWARD * beside)
    return waits <= _PAIRS_A_MERGED_ROW * rows


def _message_pairs(slot: int, exchange: Exchange, near_slots: int) -> int:
    """The exchange in pairs; both kinds of link, and both ways, work side by side."""
    near, far = [0, 0], [0, 0]
    for way, peers in enumerate((exchange.receive_rows, exchange.send_rows)):
        for peer, rows in enumerate(peers):
            (near if peer // near_slots == slot // near_slots else far)[way] += rows
    return _PAIRS_A_MESSAGE + max(_PAIRS_A_ROW * max(near), _PAIRS_A_FAR_ROW * max(far))
