"""The data collator: this rank's examples in one row without padding, with the edges of its documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hsap_hf.errors import PackError

IGNORED = -100  # label that the loss skips, as in transformers


@dataclass(frozen=True)
class HsapDataCollator:
    """Packs this rank's examples into one row.

    An example holds `input_ids` and perhaps `labels`, `position_ids`, `attention_mask`, each a 1-D list, array or
    tensor. Without labels they are the input_ids. A document starts where `position_ids` stop counting up, or has the
    lengths `seq_lengths` (as trl.pack_dataset writes them; Trainer drops this column before it comes here, unless
    `remove_unused_columns=False`); without both an example is one document. Masked padding is dropped.

    Gives, for T tokens in n documents: `input_ids`, `labels`, `position_ids` int64[1, T] and `cu_seqlens` int32[n + 1].
    The first label of every document is -100: the last token of one document must not predict the next. T may be 0.

    Raises PackError naming the example and what is wrong with it, never its tokens.
    """

    max_tokens: int | None = None
    """Most tokens one call may pack; more raise PackError, nothing is ever cut off. None: no limit."""

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        rows = [_Row.read(example, index) for index, example in enumerate(examples)]
        input_ids, labels, position_ids, starts = (
            np.concatenate([np.zeros(0, np.int64), *(getattr(row, name) for row in rows)])
            for name in ("input_ids", "labels", "position_ids", "starts")
        )
        tokens = len(input_ids)
        if self.max_tokens is not None and tokens > self.max_tokens:
            raise PackError(
                f"{len(rows)} examples hold {tokens} tokens, max_tokens of the collator allows {self.max_tokens}. "
                f"Bring fewer examples per batch, cut the documents to fit, or raise max_tokens to at least {tokens}."
            )
        (edges,) = np.nonzero(starts)
        labels[edges] = IGNORED
        cu_seqlens = np.append(edges, tokens) if tokens else np.zeros(1)
        return {
            "input_ids": torch.from_numpy(input_ids)[None],
            "labels": torch.from_numpy(labels)[None],
            "position_ids": torch.from_numpy(position_ids)[None],
            "cu_seqlens": torch.from_numpy(cu_seqlens.astype(np.int32)),
        }


@dataclass(frozen=True)
class _Row:
    """One example without its padding: int64[tokens] each; `starts` is 1 where a document starts."""

    input_ids: np.ndarray
    labels: np.ndarray
    position_ids: np.ndarray
    starts: np.ndarray

    @classmethod
    def read(cls, example: Mapping[str, Any], index: int) -> _Row:
        if not isinstance(example, Mapping):
            raise PackError(f"example {index} is a {type(example).__name__}; needed is a mapping with input_ids.")
        if example.get("input_ids") is None:
            raise PackError(
                f"example {index} has no input_ids, only {sorted(example)}. Tokenize the data first; with Trainer, "
                "remove_unused_columns drops every column that the model's forward does not name."
            )
        input_ids = _integers(example["input_ids"], index, "input_ids")
        _refuse_other_words(example, index)
        given = {"labels": input_ids, "position_ids": _counted(example.get("seq_lengths"), len(input_ids), index)}
        for name in ("labels", "position_ids", "attention_mask"):
            if example.get(name) is not None:
                given[name] = _integers(example[name], index, name)
                if len(given[name]) != len(input_ids):
                    raise PackError(
                        f"example {index}: {len(input_ids)} input_ids but {len(given[name])} {name}. "
                        "Give every token one entry, or leave the field out."
                    )
        kept = _kept(given["attention_mask"], index) if "attention_mask" in given else slice(None)
        position_ids = given["position_ids"][kept]
        if len(position_ids) and position_ids.min() < 0:
            raise PackError(f"example {index}: a position_id is {position_ids.min()}; positions count from 0.")
        starts = np.diff(position_ids, prepend=-1) != 1  # position 0 never follows its predecessor by one
        starts[:1] = True
        return cls(input_ids[kept], given["labels"][kept], position_ids, starts.astype(np.int64))


def _refuse_other_words(example: Mapping[str, Any], index: int) -> None:
    """Raise PackError for columns of other collators that would be ignored without a word."""
    for name in ("assistant_masks", "completion_mask", "loss_mask"):
        if example.get(name) is not None and example.get("labels") is None:
            raise PackError(
                f"example {index}: {name} says which tokens count, and only labels do here. Give labels that are "
                f"{IGNORED} where it is 0, or drop it to train on every token."
            )
    for name in ("seq_idx", "segment_ids"):
        if example.get(name) is not None and example.get("position_ids") is None and "seq_lengths" not in example:
            raise PackError(
                f"example {index}: {name} tells documents apart, and only position_ids and seq_lengths do here. Give "
                f"position_ids that restart at 0 in each document, or drop it."
            )


def _counted(lengths: Any, tokens: int, index: int) -> np.ndarray:
    """Positions of documents of these lengths, or of one."""
    if lengths is None:
        return np.arange(tokens)
    counts = _integers(lengths, index, "seq_lengths")
    if counts.sum() != tokens or (counts < 0).any():
        raise PackError(f"example {index}: seq_lengths sum to {counts.sum()}, but there are {tokens} input_ids.")
    return np.arange(tokens) - np.repeat(counts.cumsum() - counts, counts)


def _integers(values: Any, index: int, name: str) -> np.ndarray:
    """`values` as int64[tokens], whatever holds them."""
    try:
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    except (ValueError, TypeError):  # ragged nesting, or a type numpy does not know (bfloat16)
        raise PackError(f"example {index}: {name} is not one list of whole numbers.") from None
    if array.size == 0 and array.ndim == 1:
        return np.zeros(0, np.int64)
    if array.ndim != 1:
        raise PackError(
            f"example {index}: {name} has shape {list(array.shape)}; needed is one list of whole numbers per example. "
            "Pass the examples one by one, without a batch dimension."
        )
    if array.dtype.kind not in ("iub" if name == "attention_mask" else "iu"):
        raise PackError(f"example {index}: {name} holds {array.dtype} values; needed are whole numbers.")
    return array.astype(np.int64)


def _kept(mask: np.ndarray, index: int) -> slice:
    """Where the mask is 1: one run of tokens."""
    if not np.isin(mask, (0, 1)).all():
        raise PackError(
            f"example {index}: attention_mask holds values other than 0 and 1. To tell documents apart give "
            "position_ids that restart at 0 in each of them."
        )
    (ones,) = np.nonzero(mask)
    if not len(ones):
        return slice(0)
    first, last = int(ones[0]), int(ones[-1])
    if last - first + 1 != len(ones):
        raise PackError(
            f"example {index}: attention_mask has {last - first + 1 - len(ones)} zeros between its first and last 1. "
            "HSAP computes whole documents: remove the masked tokens, or split the example there."
        )
    return slice(first, last + 1)
