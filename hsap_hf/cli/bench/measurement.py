"""What all measurements of one rank share: what is asked, where, and who else measures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hsap_hf.cli.bench.request import Request
from hsap_hf.cli.bench.timing import Times, time_call
from hsap_hf.comm import HsapMesh

ROUNDS = 3


@dataclass(frozen=True)
class Bench:
    """What all measurements of this rank share."""

    request: Request
    device: torch.device
    meshes: dict[tuple[int, int], HsapMesh]
    """By split; all of them hold all ranks."""

    @property
    def mesh(self) -> HsapMesh:
        """Any of them, for what concerns all ranks."""
        return next(iter(self.meshes.values()))

    @property
    def size(self) -> int:
        return self.mesh.group.size

    def time(self, run: Callable[[], object]) -> Times:
        """Of this rank, with all ranks starting at once."""

        def together(number: float) -> float:
            return float(self.gather([number]).max())

        return time_call(run, -(-self.request.repeats // ROUNDS), self.device, together)

    def gather(self, numbers: Sequence[float]) -> Tensor:
        """Every rank's numbers, [ranks, n]. Whoever is early waits on the host and leaves its device idle."""
        return self.mesh.world_host.all_gather(torch.tensor(numbers, dtype=torch.float64), "gather measurements")
