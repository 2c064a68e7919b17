"""One rank of `hsap bench attention --nproc N`: started by torch.distributed.run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from functools import partial
from itertools import groupby
from typing import Any, cast

import torch
import typer

from hsap_hf.cli.bench.entry import METERS, TRAFFIC, Entry
from hsap_hf.cli.bench.job import answer, link_of
from hsap_hf.cli.bench.measurement import ROUNDS, Bench
from hsap_hf.cli.bench.peers import llama3_way, missing_peer, zigzag_way
from hsap_hf.cli.bench.request import Request
from hsap_hf.cli.bench.table import said
from hsap_hf.cli.bench.ways import Way, hsap_way, whole_way
from hsap_hf.cli.bench.whole_pack import Shape, WholePack, draw_pack
from hsap_hf.comm import build_mesh
from hsap_hf.comm.axis import ProcessAxis
from hsap_hf.config import HsapPlugin

_WAIT_SECONDS = 24 * 3600.0
"""Ranks wait for the slowest one's measurement, as long as that takes."""


def measure(request: Request, device: torch.device, ranks: int) -> list[dict[str, Any]]:
    """The rows of all packs; the same on every rank."""
    splits = list(request.splits)
    if request.shape.heads % ranks == 0:
        splits.append((1, ranks))
    meshes = {split: build_mesh(_plugin(*split), device.type) for split in dict.fromkeys(splits)}
    bench = Bench(request, device, meshes)
    constants = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "ranks": ranks,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "link": link_of(device.type),
        "heads": request.shape.heads,
        "kv_heads": request.shape.kv_heads,
        "head_dim": request.shape.head_dim,
    }
    rows = []
    for name, lengths in request.packs.items():
        pack = draw_pack(lengths, request.shape, device, zeros=request.zeros)
        known = {"pack": name, "tokens": sum(lengths), "documents": len(lengths), "zeros": request.zeros, **constants}
        known |= {"kernel": pack.kernel.name, "kernel_version": pack.kernel.version()}
        known |= {"dtype": str(pack.grad.dtype).removeprefix("torch."), "tflop": _tflop(lengths, request.shape)}
        rows_of_pack = [known | row for row in _measure_pack(bench, pack, name)]
        if bench.mesh.group.rank == 0:
            for row in rows_of_pack:  # minutes pass, and whoever stops it keeps what was measured
                typer.echo(said(row), err=True)
        rows += rows_of_pack
    return rows


def _tflop(lengths: Sequence[int], shape: Shape) -> tuple[float, float]:
    """Of the pack's attention, forward and backward: two and five products over the pairs that are seen."""
    pairs = sum(length * (length + 1) for length in lengths) / 2
    product = 2e-12 * shape.heads * shape.head_dim * pairs
    return 2 * product, 5 * product


def _plugin(context_size: int, ulysses_size: int) -> HsapPlugin:
    return HsapPlugin(context_size=context_size, ulysses_size=ulysses_size, timeout_seconds=_WAIT_SECONDS)


def _measure_pack(bench: Bench, pack: WholePack, pack_name: str) -> list[dict[str, Any]]:
    """Correctness and bytes first, then the times: in rounds, because a device's speed drifts by some percent within
    seconds, and what is compared should drift together; every second one backwards, so that none always comes after the
    same one. Last the traces, where asked for."""
    whole = Entry("whole pack", None, whole_way(pack, bench.size), None, {})
    out, _ = whole.way.forward()
    results = (out, *whole.way.backward(None))
    entries = [Entry.checked(bench, name, split, way(), results) for name, split, way in _ways(bench, pack)]
    del out, results
    turns = [whole, *entries]
    for _ in range(ROUNDS):
        for entry in turns:
            entry.time(bench)
        turns.reverse()
    rows = []
    for (name, split), found in groupby(entries, lambda entry: (entry.name, entry.split)):
        settings = list(found)
        best = min(settings, key=Entry.milliseconds)
        traced = best.trace(bench, pack_name) if bench.request.trace_folder is not None else {}
        rows.append({"way": name, "split": split, **_beside(best.row() | traced, whole)})
    return rows + [row | _beside({}, whole) for row in _left_out(bench, pack)]


def _ways(bench: Bench, pack: WholePack) -> Iterator[tuple[str, str | None, Callable[[], Way]]]:
    """Name, split, and how to make it. Neighbours with one name and split are settings: the fastest counts."""
    shape, size, rank = bench.request.shape, bench.size, bench.mesh.group.rank
    for context, ulysses in bench.request.splits:
        for count in bench.request.messages or [None]:
            name = "hsap" if count is None else f"hsap, messages: {count}"
            yield name, f"{context}x{ulysses}", partial(hsap_way, pack, shape, bench.meshes[context, ulysses], count)
    if shape.heads % size == 0:
        yield "ulysses", f"1x{size}", partial(hsap_way, pack, shape, bench.meshes[1, size])
    if bench.request.beside_copies:
        # on an interface of torch that may change
        from hsap_hf.cli.bench.beside_copies import beside_copies_way, beside_own_copies_way

        yield "whole pack beside copies", None, partial(beside_copies_way, pack, cast(ProcessAxis, bench.mesh.group))
        yield "whole pack beside own copies", None, partial(beside_own_copies_way, pack, size)
    if missing_peer(bench.device, pack.kernel) is None:
        yield "ring zigzag", None, partial(zigzag_way, pack, rank, size)
        for stride in range(1, shape.kv_heads + 1):
            if shape.kv_heads % stride == 0:
                yield "ring llama3", None, partial(llama3_way, pack, rank, size, stride)


def _left_out(bench: Bench, pack: WholePack) -> Iterator[dict[str, Any]]:
    """Rows of the ways that cannot run here, with the reason."""
    heads, size = bench.request.shape.heads, bench.size
    if heads % size:
        yield _nothing("ulysses", f"1x{size}", f"{size} ranks do not divide {heads} query heads")
    missing = missing_peer(bench.device, pack.kernel)
    if missing is not None:
        yield _nothing("ring zigzag", None, missing)
        yield _nothing("ring llama3", None, missing)


def _beside(row: dict[str, Any], whole: Entry) -> dict[str, Any]:
    """A row beside the ideal: the mean over ranks, which differ a little, and the median of rounds; and what the GPUs
    did then."""
    ideals = torch.stack(whole.times)[..., :2]
    forward_ms, backward_ms = ideals.mean(1).median(0).values.tolist()
    ideal = {"ideal_forward_ms": forward_ms, "ideal_backward_ms": backward_ms, "ideals_ms": ideals.sum(-1).tolist()}
    ideal |= {f"ideal_{name}": column for name, column in whole.met().items()}
    if row:
        row = row | {"ratio": (forward_ms + backward_ms) / (row["forward_ms"] + row["backward_ms"])}
    return row | ideal


def _nothing(name: str, split: str | None, note: str) -> dict[str, Any]:
    """The row of a way that cannot run here."""
    empty = ("forward_ms", "backward_ms", "launch_ms", "by_rank_ms", "ratio", "differences", *METERS, *TRAFFIC)
    return {"way": name, "split": split, "note": note, **dict.fromkeys(empty)}


def _answer(request: dict[str, Any]) -> list[dict[str, Any]]:
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    return measure(Request.of(request), state.device, state.num_processes)


if __name__ == "__main__":
    sys.exit(answer(sys.argv[1:], _answer))
