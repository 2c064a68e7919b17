"""One way to compute a pack on this rank: checked first, then timed round by round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hsap_hf.cli.bench.measurement import Bench
from hsap_hf.cli.bench.meter import Meter
from hsap_hf.cli.bench.trace import trace
from hsap_hf.cli.bench.ways import Received, Way

RESULTS = ("out", "dq", "dk", "dv")
METERS = ("clock_mhz", "watts", "links_awake")
TRAFFIC = ("received_rows", "planned_rows", "received_bytes", "planned_bytes")


@dataclass
class Entry:
    """One way on this rank, and what is known of it."""

    name: str
    split: str | None
    way: Way
    saved: Any
    known: dict[str, Any]
    times: list[Tensor] = field(default_factory=list)
    """Of every round: forward, backward, launching them, and what the GPU did, of every rank: [ranks, 7]."""

    @classmethod
    def checked(cls, bench: Bench, name: str, split: str | None, way: Way, expected: Sequence[Tensor]) -> Entry:
        """Its results against the one device's, its bytes against the plan's."""
        before = way.counted() if way.counted is not None else Received(0, 0)
        out, saved = way.forward()
        results = (out, *way.backward(saved))
        after = way.counted() if way.counted is not None else Received(0, 0)
        planned = way.planned or Received(0, 0)
        numbers = [_difference(x[way.own], y, way.rows) for x, y in zip(results, expected, strict=True)]
        numbers += [after.rows - before.rows, planned.rows, after.num_bytes - before.num_bytes, planned.num_bytes]
        table = bench.gather(numbers)
        differences = dict(zip(RESULTS, table[:, : len(RESULTS)].amax(0).tolist(), strict=True))
        traffic = table[:, len(RESULTS) :].long().T.tolist() if way.planned is not None else [None] * len(TRAFFIC)
        return cls(name, split, way, saved, {"differences": differences, **dict(zip(TRAFFIC, traffic, strict=True))})

    def time(self, bench: Bench) -> None:
        """One more round."""
        with Meter(bench.device) as meter, self.way.during():
            forward, backward = bench.time(self.way.forward), bench.time(lambda: self.way.backward(self.saved))
        device = [time.device / self.way.copies for time in (forward, backward)]
        self.times.append(bench.gather([*device, forward.host, backward.host, *meter.reading()]))

    def milliseconds(self) -> float:
        """Forward and backward on the slower rank."""
        return float(_median(self.times).amax(0)[:2].sum())

    def trace(self, bench: Bench, pack_name: str) -> dict[str, Any]:
        """Of this way, with the file it writes."""
        label = " ".join(filter(None, (pack_name, self.name, self.split))).replace(" ", "-")
        path = Path(bench.request.trace_folder or "", f"{label}-rank{bench.mesh.group.rank}.json")
        return {"trace": trace(lambda: self.way.backward(self.way.forward()[1]), path)}

    def row(self) -> dict[str, Any]:
        """The median of the rounds; the largest of all ranks counts."""
        table = _median(self.times)
        forward_ms, backward_ms, forward_host, backward_host = table[:, :4].amax(0).tolist()
        return {
            "note": None,
            "forward_ms": forward_ms,
            "backward_ms": backward_ms,
            "launch_ms": forward_host + backward_host,
            "by_rank_ms": table[:, :2].tolist(),
            **self.met(),
            **self.known,
        }

    def met(self) -> dict[str, list[float] | None]:
        """What every rank's GPU did; None where nobody could tell."""
        readings = _median(self.times)[:, 4:]
        return {
            name: None if column.isnan().any() else column.tolist()
            for name, column in zip(METERS, readings.unbind(1), strict=True)
        }


def _median(rounds: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(rounds)).median(0).values


def _difference(found: Tensor, expected: Tensor, rows: Tensor) -> float:
    """The largest difference on this rank's rows, relative to the largest entry of the whole pack."""
    if not len(rows):
        return 0.0
    least = torch.finfo(torch.float32).tiny  # documents of one token have gradients of 0
    largest = expected.abs().max().float().clamp_min(least)
    return float((found.float() - expected[rows].float()).abs().max() / largest)
