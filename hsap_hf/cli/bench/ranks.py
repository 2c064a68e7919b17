"""One rank of `hsap bench attention --nproc N`: started by torch.distributed.run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hsap_hf.cli.bench.job import answer
from hsap_hf.cli.bench.peers import llama3_way, missing_peer, zigzag_way
from hsap_hf.cli.bench.request import Request
from hsap_hf.cli.bench.timing import Times, time_call
from hsap_hf.cli.bench.trace import trace
from hsap_hf.cli.bench.ways import Received, Way, hsap_way
from hsap_hf.cli.bench.whole_pack import WholePack, draw_pack
from hsap_hf.comm import HsapMesh, build_mesh
from hsap_hf.config import HsapPlugin

RESULTS = ("out", "dq", "dk", "dv")
_WAIT_SECONDS = 24 * 3600.0
"""Ranks wait for the slowest one's measurement, as long as that takes."""


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

        return time_call(run, self.request.repeats, self.device, together)

    def gather(self, numbers: Sequence[float]) -> Tensor:
        """Every rank's numbers, [ranks, n]. Whoever is early waits on the host and leaves its device idle."""
        return self.mesh.world_host.all_gather(torch.tensor(numbers, dtype=torch.float64), "gather measurements")


def measure(request: Request, device: torch.device, ranks: int) -> list[dict[str, Any]]:
    """The rows of all packs; the same on every rank."""
    splits = list(request.splits)
    if request.shape.heads % ranks == 0:
        splits.append((1, ranks))
    meshes = {split: build_mesh(_plugin(*split), device.type) for split in dict.fromkeys(splits)}
    bench = Bench(request, device, meshes)
    constants = {
        "ranks": ranks,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "link": _link(device),
        "heads": request.shape.heads,
        "kv_heads": request.shape.kv_heads,
        "head_dim": request.shape.head_dim,
    }
    rows = []
    for name, lengths in request.packs.items():
        pack = draw_pack(lengths, request.shape, device)
        known = {"pack": name, "tokens": sum(lengths), "documents": len(lengths), **constants}
        known |= {"kernel": pack.kernel.name, "dtype": str(pack.grad.dtype).removeprefix("torch.")}
        rows += [known | row for row in _measure_pack(bench, pack, name)]
    return rows


def _plugin(context_size: int, ulysses_size: int) -> HsapPlugin:
    return HsapPlugin(context_size=context_size, ulysses_size=ulysses_size, timeout_seconds=_WAIT_SECONDS)


def _link(device: torch.device) -> str:
    if device.type != "cuda":
        return "gloo"
    return "nccl without peer-to-peer" if os.environ.get("NCCL_P2P_DISABLE") == "1" else "nccl"


def _measure_pack(bench: Bench, pack: WholePack, pack_name: str) -> list[dict[str, Any]]:
    out, lse = pack.forward()
    results = (out, *pack.backward(out, lse))
    whole = [_time_whole(bench, pack, out, lse)]
    shape, size, rank = bench.request.shape, bench.size, bench.mesh.group.rank
    rows: list[dict[str, Any]] = []

    def add(name: str, split: str | None, *ways: Callable[[], Way], note: str | None = None) -> None:
        """Of several settings of one way the fastest counts."""
        label = " ".join(filter(None, (pack_name, name, split))).replace(" ", "-")
        labels = [f"{label}-{setting}" if len(ways) > 1 else label for setting in range(len(ways))]
        runs = zip(ways, labels, strict=True)
        found = [_measure_way(bench, way(), results, label) for way, label in runs] or [_nothing(note)]
        best = min(found, key=lambda row: (row["forward_ms"] or 0) + (row["backward_ms"] or 0))
        rows.append({"way": name, "split": split, **best})

    for context, ulysses in bench.request.splits:
        for form in bench.request.forms:
            name = "hsap" if form == "auto" else f"hsap {form}"
            add(name, f"{context}x{ulysses}", lambda: hsap_way(pack, shape, bench.meshes[context, ulysses], form))  # noqa: B023
    whole.append(_time_whole(bench, pack, out, lse))
    if shape.heads % size == 0:
        add("ulysses", f"1x{size}", lambda: hsap_way(pack, shape, bench.meshes[1, size]))
    else:
        add("ulysses", f"1x{size}", note=f"{size} ranks do not divide {shape.heads} query heads")
    missing = missing_peer(bench.device, pack.kernel)
    if missing is not None:
        add("ring zigzag", None, note=missing)
        add("ring llama3", None, note=missing)
    else:
        add("ring zigzag", None, lambda: zigzag_way(pack, rank, size))
        strides = [n for n in range(1, shape.kv_heads + 1) if shape.kv_heads % n == 0]
        add("ring llama3", None, *(lambda n=n: llama3_way(pack, rank, size, n) for n in strides))
    return [_beside(row, torch.stack(whole)) for row in rows]


def _time_whole(bench: Bench, pack: WholePack, out: Tensor, lse: Tensor) -> Tensor:
    """[ranks, 2]: the whole pack on every rank, forward and backward, divided by the ranks."""
    runs = (pack.forward, lambda: pack.backward(out, lse))
    return bench.gather([bench.time(run).device for run in runs]) / bench.size


def _beside(row: dict[str, Any], whole: Tensor) -> dict[str, Any]:
    """A row beside the ideal: the mean over ranks, which differ by a percent or two, and over [times, ranks, 2]."""
    forward_ms, backward_ms = whole.mean((0, 1)).tolist()
    ideal = {"ideal_forward_ms": forward_ms, "ideal_backward_ms": backward_ms}
    ideal["ideals_ms"] = whole.sum(-1).tolist()
    if row["note"] is None:
        row = row | {"ratio": (forward_ms + backward_ms) / (row["forward_ms"] + row["backward_ms"])}
    return row | ideal


def _measure_way(bench: Bench, way: Way, expected: Sequence[Tensor], label: str) -> dict[str, Any]:
    """Correctness and bytes first, then the times; the largest of all ranks counts. Last a trace, where asked for."""
    before = way.counted() if way.counted is not None else Received(0, 0)
    out, saved = way.forward()
    results = (out, *way.backward(saved))
    after = way.counted() if way.counted is not None else Received(0, 0)
    planned = way.planned or Received(0, 0)
    numbers = [_difference(x[way.own], y, way.rows) for x, y in zip(results, expected, strict=True)]
    forward, backward = bench.time(way.forward), bench.time(lambda: way.backward(saved))
    numbers += [forward.device, backward.device, forward.host, backward.host]
    numbers += [after.rows - before.rows, planned.rows, after.num_bytes - before.num_bytes, planned.num_bytes]
    table = bench.gather(numbers)
    *differences, forward_ms, backward_ms, forward_host, backward_host = table[:, : len(RESULTS) + 4].amax(0).tolist()
    traffic = table[:, len(RESULTS) + 4 :].long().T.tolist() if way.planned is not None else [None] * 4
    names = ("received_rows", "planned_rows", "received_bytes", "planned_bytes")
    traced = {}
    if bench.request.trace_folder is not None:
        path = Path(bench.request.trace_folder, f"{label}-rank{bench.mesh.group.rank}.json")
        traced = {"trace": trace(lambda: way.backward(way.forward()[1]), path)}
    return {
        **traced,
        "note": None,
        "forward_ms": forward_ms,
        "backward_ms": backward_ms,
        "launch_ms": forward_host + backward_host,
        "by_rank_ms": table[:, len(RESULTS) : len(RESULTS) + 2].tolist(),
        "differences": dict(zip(RESULTS, differences, strict=True)),
        **dict(zip(names, traffic, strict=True)),
    }


def _difference(found: Tensor, expected: Tensor, rows: Tensor) -> float:
    """The largest difference on this rank's rows, relative to the largest entry of the whole pack."""
    if not len(rows):
        return 0.0
    largest = (
        expected.abs().max().float().clamp_min(torch.finfo(torch.float32).tiny)
    )  # 0 where documents have one token
    return float((found.float() - expected[rows].float()).abs().max() / largest)


def _nothing(note: str | None) -> dict[str, Any]:
    """The row of a way that cannot run here."""
    empty = ("forward_ms", "backward_ms", "launch_ms", "by_rank_ms", "ratio", "differences")
    traffic = ("received_rows", "planned_rows", "received_bytes", "planned_bytes")
    return {"note": note, **dict.fromkeys((*empty, *traffic))}


def _answer(request: dict[str, Any]) -> list[dict[str, Any]]:
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    return measure(Request.of(request), state.device, state.num_processes)


if __name__ == "__main__":
    sys.exit(answer(sys.argv[1:], _answer))
