"""From spans of rows to row indices: the step between a plan and what a device can gather."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]


def span_rows(starts: Ints, lengths: Ints) -> Ints:
    """Row numbers of the spans [start, start + length), one after the other: [sum(lengths)]."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total, dtype=np.int64) + np.repeat(starts - (ends - lengths), lengths)


def offsets(lengths: Ints) -> Ints:
    """Where each of the consecutive spans of these lengths starts: [0, l0, l0 + l1, ...], as long as `lengths`."""
    return np.cumsum(lengths) - lengths


def index_tensor(rows: Ints, device: torch.device) -> Tensor:
    """An int64 index on `device`; the copy does not wait for the device."""
    index = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64))
    if device.type == "cuda":
        return index.pin_memory().to(device, non_blocking=True)
    return index
