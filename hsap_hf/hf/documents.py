"""Reading what a rank brought: any stock batch becomes one row of whole documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hsap_hf.errors import PackError

IGNORED_LABEL = -100
_PER_TOKEN = ("input_ids", "attention_mask", "position_ids", "labels", "shift_labels", "seq_idx")
_PER_PACK = ("cu_seqlens", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "num_items_in_batch")


@dataclass(frozen=True)
class Brought:
    """The documents of one rank's batch, padding dropped."""

    lengths: list[int]
    """Tokens of each document, in row order."""
    tokens: Tensor
    """[T, 3] int64: input id, position id, label of the next token."""
    shape: tuple[int, int]
    """Rows and columns of the caller's batch."""
    kept: Tensor | None
    """[T] places of the tokens in the flattened batch; None: all of them, in order."""
    has_labels: bool
    shifted: bool
    """The caller had shifted the labels itself."""
    num_supervised: int
    """Tokens whose label counts."""


def read_batch(batch: Mapping[str, Any]) -> Brought:
    """The documents of a batch as collators make them.

    input_ids [B, C]; optional labels or shift_labels, position_ids, attention_mask [B, C], and cu_seqlens or
    cu_seq_lens_q [documents + 1] with one row. A row of a padded batch is a document; inside a row a new document
    starts at the edges of cu_seqlens, or else wherever position_ids do not count on. Labels are shifted inside their
    row, as Transformers does. Raises PackError for anything that is not a set of whole documents.
    """
    ids = batch.get("input_ids")
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        got = "nothing" if ids is None else f"shape {list(getattr(ids, 'shape', []))}"
        raise PackError(f"input_ids: got {got}, needs token ids [rows, columns]; inputs_embeds cannot be dealt.")
    _refuse_unknown(batch, ids)
    mask = _mask(batch.get("attention_mask"), ids)
    positions, starts = _positions_and_starts(batch, ids)
    tokens = torch.stack([ids.to(torch.int64), positions, _next_labels(batch, ids)], -1).flatten(0, 1)
    kept = None
    if mask is not None:
        rises = mask & ~F.pad(mask[:, :-1], (1, 0))
        holes = (rises.sum(1) > 1).nonzero().flatten().tolist()
        if holes:
            raise PackError(
                f"attention_mask has holes in row {holes[0]}: kept tokens must stand together. Pad at one end, or "
                f"drop the masked tokens; HSAP cannot hide single tokens of a document."
            )
        kept = mask.flatten().nonzero().flatten()
        if bool((tokens[~mask.flatten()][:, 2] != IGNORED_LABEL).any()):
            raise PackError(
                f"padding is trained on: a masked token has a next label. Give padding, and the first token of a "
                f"left-padded row, the label {IGNORED_LABEL}."
            )
        starts, tokens = (starts | rises).flatten()[kept], tokens[kept]
    edges = [*starts.flatten().nonzero().flatten().tolist(), len(tokens)]
    lengths = [stop - start for start, stop in pairwise(edges)]
    num_supervised = int((tokens[:, 2] != IGNORED_LABEL).sum())
    has_labels = batch.get("labels") is not None or batch.get("shift_labels") is not None
    return Brought(
        lengths,
        tokens,
        (ids.shape[0], ids.shape[1]),
        kept,
        has_labels,
        batch.get("shift_labels") is not None,
        num_supervised,
    )


def _refuse_unknown(batch: Mapping[str, Any], ids: Tensor) -> None:
    for name in ("past_key_values", "inputs_embeds", "token_type_ids"):
        if batch.get(name) is not None:
            raise PackError(f"{name} cannot be dealt. Leave it out of batches with labels, or call disable_hsap().")
    for name in ("output_attentions", "output_hidden_states", "logits_to_keep"):
        value = batch.get(name)
        if isinstance(value, Tensor) or value:
            raise PackError(f"{name}={value!r} asks for values of tokens that HSAP has dealt to other ranks.")
    for name in ("position_ids", "labels", "shift_labels"):
        value = batch.get(name)
        row = (1, ids.shape[1]) if name == "position_ids" else ids.shape
        if value is not None and getattr(value, "shape", None) not in (ids.shape, row):
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise PackError(f"{name} has shape {got}; needs that of input_ids, {list(ids.shape)}.")
    if batch.get("output_router_logits"):
        raise PackError("output_router_logits adds a loss that is not a sum over tokens. Leave it out.")
    for name, value in batch.items():
        if isinstance(value, Tensor) and value.dim() > 0 and name not in _PER_TOKEN + _PER_PACK:
            raise PackError(
                f"{name} {list(value.shape)} would stay behind when tokens are dealt to other ranks. Drop it."
            )


def _mask(mask: Any, ids: Tensor) -> Tensor | None:
    """The padding mask as bool [B, C]; None where nothing is masked."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.shape != ids.shape:
        got = f"{mask.dim()}-D mask {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise PackError(
            f"attention_mask is a {got}; needs a padding mask of 0 and 1 with the shape of input_ids "
            f"{list(ids.shape)}. For packed documents give position_ids or cu_seqlens instead of a mask."
        )
    if bool(((mask != 0) & (mask != 1)).any()):
        raise PackError("attention_mask holds values besides 0 and 1. For packed documents give position_ids instead.")
    kept = mask.bool()
    return None if bool(kept.all()) else kept


def _positions_and_starts(batch: Mapping[str, Any], ids: Tensor) -> tuple[Tensor, Tensor]:
    """Position ids [B, C] as the stock model would use them, and where documents start [B, C]."""
    columns = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    positions = batch.get("position_ids")
    edges = batch.get("cu_seqlens")
    edges = batch.get("cu_seq_lens_q") if edges is None else edges
    if edges is not None:
        starts = _edges_to_starts(edges, ids)
        begun = torch.where(starts, columns, 0).cummax(-1).values
        return (columns - begun if positions is None else positions.expand_as(ids)).to(torch.int64), starts
    if positions is None:
        return columns, columns == 0
    positions = positions.expand_as(ids).to(torch.int64)
    return positions, (columns == 0) | F.pad(positions.diff(dim=-1) != 1, (1, 0), value=True)[:, : ids.shape[1]]


def _edges_to_starts(edges: Tensor, ids: Tensor) -> Tensor:
    values = edges.flatten().tolist()
    growing = all(a < b for a, b in pairwise(values))
    if ids.shape[0] != 1 or not values or values[0] != 0 or values[-1] != ids.shape[1] or not growing:
        raise PackError(
            f"cu_seqlens must rise from 0 to the number of tokens of one row: got {len(values)} edges from "
            f"{values[:1]} to {values[-1:]} for input_ids {list(ids.shape)}. Empty documents are left out."
        )
    starts = torch.zeros_like(ids, dtype=torch.bool)
    starts[0, edges.flatten()[:-1].long()] = True
    return starts


def _next_labels(batch: Mapping[str, Any], ids: Tensor) -> Tensor:
    """Label of the next token, shifted inside the row."""
    if batch.get("shift_labels") is not None:
        return batch["shift_labels"].to(torch.int64)
    if batch.get("labels") is None:
        return torch.full_like(ids, IGNORED_LABEL, dtype=torch.int64)
    return F.pad(batch["labels"].to(torch.int64), (0, 1), value=IGNORED_LABEL)[:, 1:]
