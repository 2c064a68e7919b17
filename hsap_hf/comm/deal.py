"""Deal: every token moves once from the rank that brought it to the rank that computes it, and back if asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from hsap_hf.comm.axis import Axis
from hsap_hf.comm.spans import Ints, index_tensor, offsets, span_rows
from hsap_hf.planner import Plan


@dataclass(frozen=True)
class Deal:
    """One rank's side of the deal, compiled once per batch."""

    send_order: Tensor
    """Brought rows in the order they are sent: by receiving rank, then as the receiver keeps them."""
    send_rows: list[int]
    receive_rows: list[int]
    kept_at: Tensor
    """For every dealt row, its place in the receive buffer."""

    def to_slots(self, axis: Axis, brought: Tensor) -> Tensor:
        """[brought tokens, ...] -> [dealt tokens, ...]"""
        received = axis.all_to_all(
            brought.index_select(0, self.send_order), self.send_rows, self.receive_rows, "deal tokens"
        ).wait()
        return received.index_select(0, self.kept_at)

    def to_owners(self, axis: Axis, dealt: Tensor) -> Tensor:
        """The adjoint: [dealt tokens, ...] -> [brought tokens, ...]"""
        sent = torch.empty_like(dealt).index_copy_(0, self.kept_at, dealt)
        received = axis.all_to_all(sent, self.receive_rows, self.send_rows, "return results").wait()
        return torch.empty_like(received).index_copy_(0, self.send_order, received)


def rank_rows(slot_tokens: int, ulysses_size: int) -> list[int]:
    """How many consecutive rows of a slot each of its ulysses ranks computes outside attention."""
    edges = [slot_tokens * u // ulysses_size for u in range(ulysses_size + 1)]
    return [stop - start for start, stop in pairwise(edges)]


def compile_deal(
    plan: Plan, documents_per_rank: Sequence[int], ulysses_size: int, rank: int, device: torch.device
) -> Deal:
    """Tables of group rank `rank`. Documents are numbered by rank that brought them, then in the order of its row."""
    pieces, _ = plan.table
    doc, start, length = pieces[:, 0], pieces[:, 1], pieces[:, 2] - pieces[:, 1]
    bounds = np.cumsum([n for tokens in plan.slot_tokens for n in rank_rows(tokens, ulysses_size)])

    # All slots' rows form one axis. Its edges are those of the pieces and those between ranks.
    piece_at = offsets(length)
    edges = np.union1d(np.concatenate([piece_at, piece_at + length]), np.concatenate([[0], bounds]))
    at, size = edges[:-1], np.diff(edges)
    piece = np.searchsorted(piece_at + length, at, side="right")
    to_rank = np.searchsorted(bounds, at, side="right")

    lengths = np.array(plan.lengths, dtype=np.int64)
    brought_by = np.repeat(np.arange(len(documents_per_rank)), documents_per_rank)
    brought_tokens = np.bincount(brought_by, weights=lengths, minlength=len(documents_per_rank)).astype(np.int64)
    row_of_document = offsets(lengths) - offsets(brought_tokens)[brought_by]
    from_rank = brought_by[doc[piece]]
    from_row = row_of_document[doc[piece]] + start[piece] + at - piece_at[piece]

    def rows_by(ranks: Ints, mine: Ints) -> list[int]:
        counts = np.bincount(ranks[mine], weights=size[mine], minlength=len(documents_per_rank))
        return [int(count) for count in counts]

    sent, kept = from_rank == rank, to_rank == rank
    by_source = np.argsort(from_rank[kept], kind="stable")
    buffer_at = np.empty(len(by_source), dtype=np.int64)
    buffer_at[by_source] = offsets(size[kept][by_source])
    return Deal(
        send_order=index_tensor(span_rows(from_row[sent], size[sent]), device),
        send_rows=rows_by(to_rank, sent),
        receive_rows=rows_by(from_rank, kept),
        kept_at=index_tensor(span_rows(buffer_at, size[kept]), device),
    )
