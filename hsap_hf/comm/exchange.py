"""Exchange: keys and values of cut documents travel to the slots that need them; their gradients travel back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hsap_hf.comm.axis import Axis, Pending
from hsap_hf.comm.rows import RowSums, take_rows
from hsap_hf.comm.spans import index_tensor, span_rows
from hsap_hf.planner import Fetch, Plan, fetches, sends


@dataclass(frozen=True)
class Exchange:
    """One slot's side of the exchange for one attention window, compiled once per batch."""

    send_order: Tensor
    """Slot rows in the order they are sent; a row that several slots need stands several times."""
    send_rows: list[int]
    receive_rows: list[int]
    fetched: tuple[Fetch, ...]
    """What the receive buffer holds, in order."""
    returns: RowSums
    """Where the gradients that come home belong: sent row by sent row, onto slot rows."""
    returns_stop: int
    """Slot rows from here on are not sent."""
    silent: bool
    """No slot of the group needs anything: nobody posts a collective."""


def compile_exchange(plan: Plan, slot: int, window: int | None, device: torch.device) -> Exchange:
    """Tables of one slot. All slots agree on `silent`, because all hold the same plan."""
    row = 0
    row_of: dict[int, list[tuple[int, int, int]]] = {}
    for piece in plan.slots[slot]:
        row_of.setdefault(piece.doc, []).append((piece.start, piece.stop, row))
        row += piece.stop - piece.start
    starts, lengths = [], []
    send_rows, receive_rows = [0] * plan.context_size, [0] * plan.context_size
    for send in sends(plan, slot, window):
        send_rows[send.to_slot] += send.stop - send.start
        for start, stop, at in row_of[send.doc]:
            low, high = max(start, send.start), min(stop, send.stop)
            if low < high:
                starts.append(at + low - start)
                lengths.append(high - low)
    fetched = fetches(plan, slot, window)
    for fetch in fetched:
        receive_rows[fetch.from_slot] += fetch.stop - fetch.start
    rows = span_rows(np.array(starts, dtype=np.int64), np.array(lengths, dtype=np.int64))
    order = index_tensor(rows, device)
    returns = RowSums(order, plan.tokens(slot))
    stop = int(rows.max(initial=-1)) + 1
    return Exchange(order, send_rows, receive_rows, fetched, returns, stop, not plan.cut_documents)


def fetch_keys(k_SGH: Tensor, v_SGH: Tensor, exchange: Exchange, axis: Axis) -> Pending:
    """Start bringing borrowed rows, keys and values in one message: [rows received, G, H + Hv], by sending slot."""
    if exchange.silent:
        return Pending(torch.cat([k_SGH[:0], v_SGH[:0]], -1), None)
    send = take_rows((k_SGH, v_SGH), None, exchange.send_order)
    return axis.all_to_all(send, exchange.send_rows, exchange.receive_rows, "exchange keys and values")


def return_key_grads(grad_RGH: Tensor, exchange: Exchange, axis: Axis) -> Pending:
    """The adjoint: gradients of borrowed rows start home; `wait()` gives [rows sent, G, H + Hv].

    Their owner adds them to its own with `sum_rows(grads, split(returned, H), exchange.returns)`.
    """
    if exchange.silent:
        return Pending(grad_RGH, None)
    return axis.all_to_all(grad_RGH, exchange.receive_rows, exchange.send_rows, "return gradients of keys and values")
