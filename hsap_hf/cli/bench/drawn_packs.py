"""Packs with given document lengths and random tokens: what to train on when only lengths matter."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from hsap_hf.data.collator import IGNORED
from hsap_hf.data.packing import Span, deal_parts


class DrawnPacks(Dataset[dict[str, Any]]):
    """Item i is part `i mod num_parts` of pack `i div num_parts`, as in PackedDataset.

    Every pack has its documents in an order of its own, so that a plan serves once.
    """

    def __init__(self, packs: Sequence[Sequence[int]], num_parts: int, vocab_size: int) -> None:
        self.packs, self.num_parts, self.vocab_size = packs, num_parts, vocab_size

    @property
    def num_packs(self) -> int:
        return len(self.packs)

    def __len__(self) -> int:
        return self.num_packs * self.num_parts

    def pack(self, index: int) -> tuple[Span, ...]:
        """The pack's documents, whole."""
        spans = [Span(doc, 0, length) for doc, length in enumerate(self.packs[index])]
        random.Random(f"drawn {index}").shuffle(spans)  # noqa: S311  (repeatable order, not cryptography)
        return tuple(spans)

    def __getitem__(self, item: int) -> dict[str, list[int]]:
        index, part = divmod(range(len(self))[item], self.num_parts)
        spans = deal_parts(self.pack(index), self.num_parts)[part]
        positions = np.concatenate([np.zeros(0, np.int64), *(np.arange(span.tokens) for span in spans)])
        ids = np.random.default_rng(item).integers(self.vocab_size, size=len(positions))
        labels = np.where(positions == 0, IGNORED, ids)
        return {"input_ids": ids.tolist(), "labels": labels.tolist(), "position_ids": positions.tolist()}
