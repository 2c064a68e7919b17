"""Memory of another GPU, which this one may read without asking."""

from __future__ import annotations

import torch
from torch.distributed import _symmetric_memory as symmetric

from hsap_hf.comm.axis import ProcessAxis


class PeerMemory:
    """Bytes on every rank of an axis; `theirs` [num_bytes] are those of the next one, for as long as this object lives.

    Every rank of the axis must make it, on GPUs that may read each other's memory.
    """

    def __init__(self, num_bytes: int, device: torch.device, axis: ProcessAxis) -> None:
        self._own = symmetric.empty(num_bytes, dtype=torch.uint8, device=device)
        shared = symmetric.rendezvous(self._own, axis.group)
        self.theirs = shared.get_buffer((axis.rank + 1) % axis.size, self._own.shape, torch.uint8)
