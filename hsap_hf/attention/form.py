"""Which form of a slot (see tables.SlotTables) is predicted to be faster on a GPU."""

from __future__ import annotations

from hsap_hf.comm.exchange import Exchange
from hsap_hf.planner import Plan
from hsap_hf.planner.cost import attention_seconds, exchange_seconds, merging_seconds, waiting_seconds
from hsap_hf.planner.documents import pairs
from hsap_hf.planner.machine import unknown
from hsap_hf.planner.model import LLAMA3_8B


def apart_is_faster(
    plan: Plan, slot: int, exchange: Exchange, near_slots: int | None = None, ulysses_size: int = 1
) -> bool:
    """Whether waiting for what documents without foreign keys do not hide costs less than rows in both parts.

    Predicted for 32 query and 8 key-value heads of 128: others, other kernels, and keys that are fetched again are not
    told apart. near_slots: neighbouring slots whose keys travel over NVLink; None: all.
    """
    waiting = {fetch.doc for fetch in exchange.fetched}
    rows = work = beside = 0
    for piece in plan.slots[slot]:
        size = pairs(piece.start, piece.stop)
        work += size
        if piece.doc in waiting:
            rows += piece.stop - piece.start
        else:
            beside += size
    near, far = _travelling(slot, exchange, near_slots or plan.context_size)
    machine = unknown(ulysses_size)
    attention = attention_seconds(0, work, LLAMA3_8B, machine)
    travel = exchange_seconds(near, far, LLAMA3_8B, machine)
    travel += 2 * machine.message_seconds * max(0, len(exchange.messages) - 1)
    waits = waiting_seconds(attention, beside / max(work, 1), travel, machine) - attention
    return waits <= merging_seconds(rows, LLAMA3_8B, machine)


def _travelling(slot: int, exchange: Exchange, near_slots: int) -> tuple[int, int]:
    """Rows that the slot receives or sends, whichever are more, over NVLink and over a network."""
    near, far = [0, 0], [0, 0]
    for message in exchange.messages:
        for way, peers in enumerate((message.receive_rows, message.send_rows)):
            for peer, rows in enumerate(peers):
                (near if peer // near_slots == slot // near_slots else far)[way] += rows
    return max(near), max(far)
