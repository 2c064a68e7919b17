"""Documents as a dataset whose consecutive items are the parts of one pack, one part for each rank of a group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from hsap_hf.data.collator import IGNORED
from hsap_hf.data.packing import Span, deal_parts, order_packs, pack_documents
from hsap_hf.errors import PackError
from hsap_hf.planner.model import LLAMA3_8B
from hsap_hf.planner.replicas import balanced_steps, pack_work


class PackedDataset(Dataset):
    """Item i is part `i mod group_size` of pack `i div group_size` of the epoch.

    Read in order (`train_sampling_strategy="sequential"`, batch size 1), the round robin that accelerate's loader
    does anyway gives the ranks of a group the parts of one pack, so a group meets at most `pack_tokens` tokens at a
    time. The packs depend on documents, `pack_tokens` and `seed`; the epoch only permutes them; `group_size` only
    says in how many parts they come. With `num_replicas` groups, packs that are read at one time have nearly equal
    work, since the slowest replica sets the pace.

    documents: token ids per document: a sequence of 1-D integer lists or arrays, of mappings with `input_ids` and
        perhaps `labels` (prompt masking), or a datasets.Dataset with these columns.

    An item is `{"input_ids", "labels", "position_ids"}`: its documents one after the other as lists of int, positions
    counted from 0 in each document, the first label of each -100 (nothing comes before it). A part may be empty.

    Raises PackError where a document is not usable, naming its index.
    """

    def __init__(
        self,
        documents: Sequence[Any],
        *,
        pack_tokens: int,
        group_size: int = 1,
        num_replicas: int = 1,
        seed: int = 0,
    ) -> None:
        if group_size < 1:
            raise PackError(f"group_size is {group_size}; a group has at least 1 rank.")
        if num_replicas < 1:
            raise PackError(f"num_replicas is {num_replicas}; a job has at least 1 replica.")
        columns = getattr(documents, "column_names", None)
        if columns is not None:  # a datasets.Dataset
            lengths = _column_lengths(documents, columns)
            documents = documents.with_format("numpy")
        else:
            lengths = [_length(document, index) for index, document in enumerate(documents)]
        self.num_documents = len(lengths)
        self.num_tokens = sum(lengths)
        self.num_split_documents = sum(length > pack_tokens for length in lengths)
        if not self.num_tokens:
            raise PackError(f"the {self.num_documents} documents hold no tokens: there is nothing to train on.")
        self.group_size = group_size
        self.num_replicas = num_replicas
        self.seed = seed
        self._documents = documents
        self._packs = pack_documents(lengths, pack_tokens, seed)
        self._work = [pack_work([span.tokens for span in pack], LLAMA3_8B) for pack in self._packs]
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # also seen by workers that persist
        self._order: tuple[int, list[int]] = (0, self._order_of(0))

    @property
    def num_packs(self) -> int:
        """Packs in an epoch: what a data-parallel run would call its batches."""
        return len(self._packs)

    def __len__(self) -> int:
        return len(self._packs) * self.group_size

    def set_epoch(self, epoch: int) -> None:
        """Permute the packs anew. Accelerate's loader calls this when it starts an epoch."""
        self._epoch.fill_(epoch)

    def pack(self, index: int) -> tuple[Span, ...]:
        """The documents of the pack read at place `index` of the current epoch."""
        epoch = int(self._epoch)
        if self._order[0] != epoch:
            self._order = (epoch, self._order_of(epoch))
        return self._packs[self._order[1][index]]

    def _order_of(self, epoch: int) -> list[int]:
        if self.num_replicas == 1:
            return order_packs(len(self._packs), self.seed, epoch)
        steps = balanced_steps(self._work, self.num_replicas, f"epoch {self.seed} {epoch}")
        return [pack for step in steps for pack in step]

    def __getitem__(self, item: int) -> dict[str, list[int]]:
        index, part = divmod(range(len(self))[item], self.group_size)
        spans = deal_parts(self.pack(index), self.group_size)[part]
        pieces = [_read(self._documents[span.doc], span) for span in spans]
        return {
            "input_ids": _joined(input_ids for input_ids, _ in pieces),
            "labels": _joined(labels for _, labels in pieces),
            "position_ids": _joined(np.arange(span.tokens) for span in spans),
        }


def _read(document: Any, span: Span) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and labels of one span, int64[tokens] each."""
    fields = document if isinstance(document, Mapping) else {"input_ids": document}
    input_ids = np.asarray(fields["input_ids"][span.start : span.stop])
    if input_ids.ndim != 1 or input_ids.dtype.kind not in "iu":
        raise PackError(
            f"document {span.doc}: token ids have shape {input_ids.shape} and type {input_ids.dtype}; "
            "needed is one list of whole numbers. Tokenize the text first."
        )
    given = fields.get("labels")
    labels = np.array(input_ids if given is None else given[span.start : span.stop], dtype=np.int64)
    labels[0] = IGNORED
    return input_ids, labels


def _joined(arrays: Iterable[np.ndarray]) -> list[int]:
    return np.concatenate([np.zeros(0, np.int64), *arrays]).tolist()


def _length(document: Any, index: int) -> int:
    if not isinstance(document, Mapping):
        return len(document)
    if "input_ids" not in document:
        raise PackError(f"document {index} has no input_ids, only {sorted(document)}. Tokenize the text first.")
    labels = document.get("labels")
    return _checked(len(document["input_ids"]), None if labels is None else len(labels), index)


def _column_lengths(documents: Any, columns: Sequence[str]) -> list[int]:
    if "input_ids" not in columns:
        raise PackError(f"the dataset has no column input_ids, only {sorted(columns)}. Tokenize the text first.")
    import pyarrow.compute as arrow

    input_ids: list[int] = []
    labels: list[int | None] = []
    for table in documents.with_format("arrow").iter(batch_size=1000):
        lengths = arrow.list_value_length(table["input_ids"]).to_pylist()
        input_ids += lengths
        labels += arrow.list_value_length(table["labels"]).to_pylist() if "labels" in columns else [None] * len(lengths)
    return [_checked(tokens, own, index) for index, (tokens, own) in enumerate(zip(input_ids, labels, strict=True))]


def _checked(tokens: int | None, labels: int | None, index: int) -> int:
    if tokens is None:
        raise PackError(f"document {index}: input_ids is null. Remove the row, or give it tokens.")
    if labels is not None and labels != tokens:
        raise PackError(
            f"document {index}: {tokens} input_ids but {labels} labels. Give every token one label "
            f"({IGNORED} for tokens that are not trained), or leave labels out."
        )
    return tokens
