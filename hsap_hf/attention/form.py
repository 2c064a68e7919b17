"""Which form of a slot's tables is predicted to be faster on a GPU: apart or merged (see segments.SlotTables)."""

from __future__ import annotations

from hsap_hf.comm.exchange import Exchange
from hsap_hf.planner import Plan
from hsap_hf.planner.documents import pairs

_PAIRS_A_ROW, _PAIRS_A_FAR_ROW, _PAIRS_A_MESSAGE, _PAIRS_A_MERGED_ROW = 1_700, 7_400, 6_000_000, 1_250
"""Query-key pairs whose forward takes as long as: a row that travels over NVLink, or over a network; an exchange of
next to nothing with its launches; a row in both parts, forward and backward.

Of 32 query and 8 key-value heads of 128, flash-attn 4 on an H100 computes a pair in 24 ps; 4 KiB take 41 ns at the 100
GB/s that NVLink carries with few multiprocessors and 178 ns at 23 GB/s, a small exchange 0.15 ms, a row in both parts
30 ns (0.7 ms of 22,000 rows on the hybrid pack of docs/performance.md). With more key-value heads, or over a slower
link, a slot may choose apart and wait."""
_BACKWARD = 2.8
"""Times the forward that the backward of a pair takes."""


def apart_is_faster(plan: Plan, slot: int, exchange: Exchange, *, far: bool = False) -> bool:
    """Whether waiting for what documents without foreign keys do not hide costs less than rows in both parts.

    far: keys travel over a network.
    """
    waiting = {fetch.doc for fetch in exchange.fetched}
    rows = beside = 0
    for piece in plan.slots[slot]:
        if piece.doc in waiting:
            rows += piece.stop - piece.start
        else:
            beside += pairs(piece.start, piece.stop)
    travelling = max(sum(exchange.receive_rows), sum(exchange.send_rows))
    message = _PAIRS_A_MESSAGE + travelling * (_PAIRS_A_FAR_ROW if far else _PAIRS_A_ROW)
    waits = max(0, message - beside) + max(0, message - _BACKWARD * beside)
    return waits <= _PAIRS_A_MERGED_ROW * rows
