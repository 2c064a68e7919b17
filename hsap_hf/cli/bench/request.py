"""What `hsap bench attention --nproc N` asks of its ranks: checked before one starts."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import typer

from hsap_hf.cli.bench.job import SLOW_LINK, ask
from hsap_hf.cli.bench.whole_pack import Shape
from hsap_hf.errors import ConfigError

RANKS_PROGRAM = "hsap_hf.cli.bench.ranks"


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything a rank needs to know."""

    packs: dict[str, list[int]]
    splits: list[tuple[int, int]]
    """(context, ulysses): ranks that own a share of the pack each, times ranks that share one by heads."""
    shape: Shape
    repeats: int
    messages: list[int] | None = None
    """Numbers of messages of an exchange, each a row of its own; None: what is predicted to be fastest."""
    beside_copies: bool = False
    """Also the whole pack beside small copies; see beside_copies."""
    zeros: bool = False
    """All tensors are zeros, on which a GPU draws far less power. Nothing wrong would be seen then."""
    trace_folder: str | None = None
    """Where a profiler's trace of every way and rank goes."""

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Request:
        """From what `asdict` makes of it, through JSON."""
        splits = [(context, ulysses) for context, ulysses in content["splits"]]
        return cls(**{**content, "shape": Shape(**content["shape"]), "splits": splits})


def read_splits(texts: Sequence[str] | None, ranks: int) -> list[tuple[int, int]]:
    """Splits as users give them; all ranks on the context axis where there is none. ConfigError lists every bad one."""
    splits, problems = [], []
    for text in texts or [f"{ranks}x1"]:
        found = re.fullmatch(r"(\d+)x(\d+)", text)
        split = (int(found[1]), int(found[2])) if found else (0, 0)
        if split[0] * split[1] != ranks:
            got = f" = {split[0] * split[1]}" if found else ""
            problems.append(
                f"--split {text}{got}: context x ulysses must be the {ranks} ranks of --nproc, like {ranks}x1. "
                f"Change one of the two options."
            )
        splits.append(split)
    if problems:
        raise ConfigError("\n".join(problems))
    return list(dict.fromkeys(splits))


def check_sizes(shape: Shape, packs: Mapping[str, Sequence[int]]) -> None:
    """Raise ConfigError for heads that cannot be, and for a pack with nothing to time."""
    if min(shape.heads, shape.kv_heads, shape.head_dim) < 1 or shape.heads % shape.kv_heads:
        raise ConfigError(
            f"--heads {shape.heads}, --kv-heads {shape.kv_heads}, --head-dim {shape.head_dim}: all at least 1, and "
            f"query heads a multiple of key-value heads."
        )
    for name, lengths in packs.items():
        if not sum(lengths):
            raise ConfigError(f"pack {name} has no token, so there is nothing to time.")


def measure(request: Request, ranks: int, *, slow_link: bool) -> list[dict[str, Any]]:
    """Start the ranks and return their rows. Raises ConfigError for what cannot run, before any rank starts."""
    _check(request, ranks, slow_link)
    code, rows = ask(RANKS_PROGRAM, asdict(request), ranks, SLOW_LINK if slow_link else {})
    if code:
        raise typer.Exit(code)
    return rows


def _check(request: Request, ranks: int, slow_link: bool) -> None:
    import torch

    from hsap_hf.cli.bench.whole_pack import bench_kernel
    from hsap_hf.comm import share_heads
    from hsap_hf.planner import compile_plan

    shape, cuda = request.shape, torch.cuda.is_available()
    if cuda and ranks > torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError(f"--nproc {ranks}: one rank a GPU, and there are {count}. Ask for at most {count}.")
    if request.beside_copies and (slow_link or not _read_each_other(ranks)):
        raise ConfigError(
            "--beside-copies needs two GPUs or more that read each other's memory, so neither CPUs nor --slow-link. "
            "Leave it out."
        )
    bench_kernel(shape, torch.device("cuda" if cuda else "cpu"))
    for context, ulysses in request.splits:
        share_heads(shape.heads, shape.kv_heads, ulysses, torch.device("cpu"))
        for lengths in request.packs.values():
            compile_plan(lengths, context)


def _read_each_other(ranks: int) -> bool:
    """Whether every rank's GPU may read the memory of the next one's."""
    import torch

    if ranks < 2 or not torch.cuda.is_available() or os.environ.get("NCCL_P2P_DISABLE") == "1":
        return False
    return all(torch.cuda.can_device_access_peer(rank, (rank + 1) % ranks) for rank in range(ranks))
