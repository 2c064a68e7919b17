"""Exchange: keys and values of cut documents travel to the slots that need them; their gradients travel back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor

from hsap_hf.comm.axis import Axis, Pending
from hsap_hf.comm.rows import RowSums, take_rows
from hsap_hf.comm.spans import index_tensor, span_rows
from hsap_hf.planner import Fetch, Plan, Send, fetches, sends

_GRAIN = 128
"""Rows by which messages are told apart: kernels take keys in tiles of so many."""


@dataclass(frozen=True)
class Message:
    """One slot's side of one all-to-all."""

    sent: slice
    """Of the rows that are sent in all messages."""
    borrowed: slice
    """Of the rows that are received in all messages."""
    send_rows: list[int]
    receive_rows: list[int]


@dataclass(frozen=True)
class Exchange:
    """One slot's side of the exchange for one attention window, compiled once per batch."""

    messages: tuple[Message, ...]
    """In the order they are posted; as many on all slots. None: no slot of the group needs anything."""
    send_order: Tensor
    """Slot rows in the order they are sent; a row that several slots need stands several times."""
    fetched: tuple[Fetch, ...]
    """What the borrowed rows are, in order."""
    returns: RowSums
    """Where the gradients that come home belong: sent row by sent row, onto slot rows."""
    returns_stop: int
    """Slot rows from here on are not sent."""

    @property
    def silent(self) -> bool:
        """Nobody posts a collective."""
        return not self.messages

    @property
    def num_borrowed(self) -> int:
        """Rows that this slot receives."""
        return self.messages[-1].borrowed.stop if self.messages else 0


def compile_exchange(
    plan: Plan, slot: int, window: int | None, device: torch.device, num_messages: int = 1
) -> Exchange:
    """Tables of one slot. All slots agree on the messages, because all hold the same plan.

    What one slot sends another comes in the order of the receiver's own rows, so that between two slots kernels mostly
    take it as it arrives, and is shared among the messages as evenly as whole grains allow.
    """
    row = 0
    row_of: dict[int, list[tuple[int, int, int]]] = {}
    for piece in plan.slots[slot]:
        row_of.setdefault(piece.doc, []).append((piece.start, piece.stop, row))
        row += piece.stop - piece.start
    wanted = sends(plan, slot, window)
    ranked = {receiver: _ranked(plan, receiver) for receiver in {slot, *(send.to_slot for send in wanted)}}
    sent = sorted(wanted, key=lambda run: (run.to_slot, ranked[run.to_slot][run.doc], run.start))
    fetched = sorted(fetches(plan, slot, window), key=lambda run: (run.from_slot, ranked[slot][run.doc], run.start))
    starts, lengths = [], []
    messages, in_order = [], []
    num_sent = num_borrowed = 0
    for number in range(num_messages if plan.cut_documents else 0):
        send_rows, receive_rows = [0] * plan.context_size, [0] * plan.context_size
        for to_slot, doc, first, last in _shares(sent, number, num_messages):
            send_rows[to_slot] += last - first
            for start, stop, at in row_of[doc]:
                low, high = max(start, first), min(stop, last)
                if low < high:
                    starts.append(at + low - start)
                    lengths.append(high - low)
        for run in _shares(fetched, number, num_messages):
            fetch = Fetch(*run)
            receive_rows[fetch.from_slot] += fetch.stop - fetch.start
            in_order.append(fetch)
        before = num_sent, num_borrowed
        num_sent, num_borrowed = num_sent + sum(send_rows), num_borrowed + sum(receive_rows)
        places = slice(before[0], num_sent), slice(before[1], num_borrowed)
        messages.append(Message(*places, send_rows, receive_rows))
    rows = span_rows(np.array(starts, dtype=np.int64), np.array(lengths, dtype=np.int64))
    order = index_tensor(rows, device)
    returns = RowSums(order, plan.tokens(slot))
    return Exchange(tuple(messages), order, tuple(in_order), returns, int(rows.max(initial=-1)) + 1)


def _ranked(plan: Plan, slot: int) -> dict[int, int]:
    """The slot's cut documents, numbered as its rows hold them."""
    return {doc: rank for rank, doc in enumerate(dict.fromkeys(piece.doc for piece in plan.cut_pieces(slot)))}


def _shares(runs: Sequence[Send] | Sequence[Fetch], number: int, count: int) -> Iterator[tuple[int, int, int, int]]:
    """Share `number` of `count` of what each two slots exchange. runs: (other slot, doc, start, stop), by slot."""
    if count == 1:
        yield from runs
        return
    for _, of_peer in groupby(runs, key=itemgetter(0)):
        mine = list(of_peer)
        total = sum(stop - start for *_, start, stop in mine)
        low, high = (min(total, round(total * edge / count / _GRAIN) * _GRAIN) for edge in (number, number + 1))
        yield from _cut(mine, low, total if number + 1 == count else high)


def _cut(runs: Iterable[tuple[int, int, int, int]], low: int, high: int) -> Iterator[tuple[int, int, int, int]]:
    """Rows [low, high) of all the rows of `runs`, one run after the other."""
    at = 0
    for peer, doc, start, stop in runs:
        first, last = max(low - at, 0), min(high - at, stop - start)
        if first < last:
            yield peer, doc, start + first, start + last
        at += stop - start


def fetch_keys(k_SGH: Tensor, v_SGH: Tensor, exchange: Exchange, axis: Axis) -> tuple[Tensor, list[Pending]]:
    """Start bringing the borrowed rows [R, G, H + Hv], keys and values side by side: those of a message are there
    once it has been waited for. One list entry for each message."""
    borrowed = k_SGH.new_empty((exchange.num_borrowed, k_SGH.shape[1], k_SGH.shape[2] + v_SGH.shape[2]))
    if exchange.silent:
        return borrowed, []
    send = take_rows((k_SGH, v_SGH), None, exchange.send_order)
    return borrowed, [
        axis.all_to_all(
            send[message.sent],
            message.send_rows,
            message.receive_rows,
            "exchange keys and values",
            borrowed[message.borrowed],
        )
        for message in exchange.messages
    ]


def return_key_grads(grad_RGH: Tensor, home: Tensor, message: Message, axis: Axis) -> Pending:
    """The adjoint: gradients of a message's borrowed rows start home. grad_RGH: of all borrowed rows; home
    [rows sent, G, H + Hv]: where those of all messages arrive.

    Their owner adds them to its own with `sum_rows(grads, split(home, H), exchange.returns)`, once all are there.
    """
    return axis.all_to_all(
        grad_RGH[message.borrowed],
        message.receive_rows,
        message.send_rows,
        "return gradients of keys and values",
        home[message.sent],
    )
