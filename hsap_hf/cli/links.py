"""One rank of `hsap doctor --calibrate FILE --nproc N`: how fast ranks of this machine exchange rows."""

from __future__ import annotations

import sys
from typing import Any

import torch
from accelerate import PartialState

from hsap_hf.cli.bench.job import answer
from hsap_hf.cli.bench.timing import time_call
from hsap_hf.comm import build_mesh
from hsap_hf.config import HsapPlugin

_REPEATS = 10
_BYTES = {"cuda": 256 * 2**20, "cpu": 4 * 2**20}
"""What every rank receives from the others in a large exchange."""
_WIDTH = 4_096
"""Bytes of a row: keys and values of 8 heads of 128 in bfloat16."""


def measure(request: dict[str, Any]) -> dict[str, float]:
    """`message_seconds` and `node_bytes` of planner.machine.Machine, for all ranks of the job at once."""
    state = PartialState(cpu=not torch.cuda.is_available())
    device = state.device
    mesh = build_mesh(HsapPlugin(context_size=state.num_processes), device.type)
    axis = mesh.context

    def most(number: float) -> float:
        return float(mesh.world_host.all_gather(torch.tensor([number]), "gather measurements").max())

    def seconds(rows: int) -> float:
        """Of an exchange in which everyone sends everyone so many rows; the slowest rank's."""
        counts = [rows] * axis.size
        send = torch.zeros((rows * axis.size, _WIDTH), dtype=torch.uint8, device=device)
        exchange = lambda: axis.all_to_all(send, counts, counts, "measure links").wait()  # noqa: E731
        return 1e-3 * most(time_call(exchange, _REPEATS, device, most).device)

    rows = _BYTES[device.type] // _WIDTH // (axis.size - 1)
    small, large = seconds(1), seconds(rows)
    return {"message_seconds": small, "node_bytes": rows * (axis.size - 1) * _WIDTH / max(large - small, 1e-9)}


if __name__ == "__main__":
    sys.exit(answer(sys.argv[1:], measure))
