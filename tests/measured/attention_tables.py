"""What `hsap bench attention` wrote into docs/measured, as tables: a page of all, and two for performance.md."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

from hsap_hf.cli.bench.table import rates, way_label

Row = dict[str, Any]

NEWEST = {
    "attention_2xh100": ("2026-11-28", "By the newest engine, after 0.8 s. All on one machine; of 128k two packs."),
    "attention_2xh200": ("2026-11-28", "By the newest engine, after 0.8 s. All on one machine."),
    "attention_2xh200_again": ("2026-11-28", "By the newest engine, after 0.8 s. On another machine."),
    "attention_2xh200_fa3": (
        "2026-11-28",
        "By the newest engine, after 0.8 s, with flash-attn 3 (of xformers 0.0.34) and ring-flash-attention on it.",
    ),
    "attention_4xh200": ("2026-11-28", "By the newest engine, after 0.8 s. All on one machine; of 128k two packs."),
}
"""What performance.md shows of the four mixes."""
PACKS = {
    "attention_2xh200_reference": ("2026-11-28", "By the newest engine, after 0.8 s: packs of the reference file."),
    "attention_2xh200_64heads": (
        "2026-11-28",
        "By the newest engine, after 0.8 s: 64 query heads, documents of at most a quarter of the pack.",
    ),
    "attention_2xh200_width64": ("2026-11-28", "By the newest engine, after 0.8 s: heads of 64."),
}
"""What it shows of other packs."""
OLDER = {
    "attention_2xh200_power": (
        "2026-11-27, evening",
        """What awake links cost. All on one machine, after 0.8 s, by an engine whose borrowed keys did not always come
in the order of the rows that ask for them, and which could still attend rows that wait for keys apart. With `--zeros`
GPUs drew 407 to 451 W, without 690.""",
    ),
    "attention_2xh200_before": (
        "2026-11-27, morning",
        """With ring-flash-attention, and the slow link at 128k. On other H200s, after 0.8 s too. The exchange asked for
4 multiprocessors, not 8, rows that wait for keys could be attended apart, and `launch_ms` also holds what the host
waited for a full queue.""",
    ),
    "attention_4xh200_before": (
        "2026-11-27, not settled",
        """With ring-flash-attention, and the slow link in one and in two messages. Without the 0.8 s, by an engine with
4 multiprocessors a neighbour.""",
    ),
    "attention_2xh100_before": (
        "2026-11-27, not settled",
        """With ring-flash-attention, torch's kernel and the slow link. Without the 0.8 s, by the engine before keys
could come in several messages (between two GPUs they come in one still).""",
    ),
}
FILES = NEWEST | PACKS | OLDER
"""In the order of the page: when it was measured, and how."""

_TOP = """<!-- Written by `pytest tests/measured --write-docs`; do not edit. -->
# What was measured: attention

The files of this folder that are called `attention_*.json` are what `hsap bench attention --nproc N --json` wrote,
without ways that were not installed (the commands are in [performance.md](../performance.md#attention)), here as
tables. One layer's attention, bf16, medians,
torch 2.11.0+cu130, flash-attn 4.0.0b36, 32 query and 8 key-value heads of 128 where no others are named.

**Ideal** is the same kernel on one GPU with the whole pack, divided by the GPUs: ms, forward + backward. **hsap** is
this package: its share of the ideal, and the slowest rank's ms; of the other ways only the share. **MiB** is what the
rank that receives most received for ours, forward and backward: the plan's number, on every rank. **MHz** is the GPUs'
clock and **awake** the share of the time in which their first NVLink was at full power, means of all ranks: for the
ideal, for ours, and for the whole pack beside copies from the other GPU and beside a GPU's own, which are no ways to
share a pack: [performance.md](../performance.md#where-the-rest-goes).

In a file, a row also has every rank's times (`by_rank_ms`), every round's and rank's ideal (`ideals_ms`), the host's
time to launch (`launch_ms`), the largest differences from the one GPU's result relative to its largest entry
(`differences`), what was received and, but for attention_2xh100_before, what the plan says; ring-flash-attention's
bytes are not counted. "nccl" is NVLink, "nccl without peer-to-peer" is `--slow-link` (`NCCL_P2P_DISABLE=1`, 23 GB/s).
Rows called `hsap apart` in attention_2xh200_power are of a form that the command no longer has
([design-notes.md](../design-notes.md)); they are not shown. Of the other files of this folder, fsdp2_2xh100 belongs
to [compatibility.md](../compatibility.md), the rest to other parts of performance.md.
"""
_WAYS = ("hsap", "ulysses", "ring llama3", "ring zigzag", "whole pack beside copies", "whole pack beside own copies")
_GONE = "hsap apart"
_MIXES = ("one_long", "hybrid", "longtail", "all_short")


def page(folder: Path) -> str:
    """docs/measured/README.md."""
    text = _TOP
    for name, (day, note) in FILES.items():
        rows = _rows(folder, name)
        text += f"\n## {_gpus(rows[0])}: [{name}]({name}.json)\n\n{day[0].upper() + day[1:]}. {note}\n"
        for (kernel, link, zeros), found in _groups(rows, _kind):
            text += f"\n### {kernel}, {link}{', zeros' if zeros else ''}\n\n{_table(found)}"
    return text


def summary(folder: Path) -> str:
    """A line for every file, link, kernel and size of today's engine: the share of the ideal of ours, in every split,
    and of Ulysses."""
    head = ["day", "GPUs", "link", "kernel", "tokens", *_MIXES]
    lines = [head, ["---"] * len(head)]
    for name, (day, _) in NEWEST.items():
        for (link, kernel, size), rows in _groups(_rows(folder, name), _terms):
            for way in sorted({way_label(row) for row in rows if row["way"].startswith("hsap")}, reverse=True):
                shares = [_share(rows, f"{mix}_{size}", way) for mix in _MIXES]
                gpus = f"[{_gpus(rows[0])}](measured/{name}.json)" + way.removeprefix("hsap")
                lines.append([day, gpus, link, kernel, size, *shares])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def speeds(folder: Path) -> str:
    """A line for every other pack: TFLOP/s a GPU, forward and backward, of one GPU alone, of ours and of Ulysses."""
    head = ["day", "GPUs", "heads", "pack", "one GPU alone", "hsap", "of ideal", "ulysses", "of ideal"]
    lines = [head, ["---"] * len(head)]
    for name, (day, _) in PACKS.items():
        for pack, rows in _groups(_rows(folder, name), lambda row: row["pack"]):
            ours, ulysses = rows
            assert [row["way"] for row in rows] == ["hsap", "ulysses"]
            gpus = f"[{_gpus(ours)}](measured/{name}.json)"
            heads = f"{ours['heads']}/{ours['kv_heads']} of {ours['head_dim']}"
            lines.append([day, gpus, heads, pack, _speed(ours, "ideal_")])
            lines[-1] += [f"**{_speed(ours)}**", f"**{ours['ratio']:.3f}**", _speed(ulysses), f"{ulysses['ratio']:.3f}"]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _speed(row: Row, of: str = "") -> str:
    return " + ".join(f"{rate:,.0f}" for rate in rates(row, row[f"{of}forward_ms"], row[f"{of}backward_ms"]))


def _rows(folder: Path, name: str) -> list[Row]:
    """Those of ways that ran and that the command still has."""
    rows = json.loads((folder / f"{name}.json").read_text())
    return [row for row in rows if row["ratio"] is not None and row["way"] != _GONE]


def _gpus(row: Row) -> str:
    return f"{row['ranks']} {row['device'].removeprefix('NVIDIA ').split()[0]}s"


def _kind(row: Row) -> tuple[str, str, bool]:
    return row["kernel"], row["link"], row.get("zeros", False)


def _terms(row: Row) -> tuple[str, str, str]:
    link = "NVLink" if row["link"] == "nccl" else "23 GB/s"
    return link, row["kernel"], row["pack"].rpartition("_")[2]


def _share(rows: Iterable[Row], pack: str, way: str) -> str:
    shares = {way_label(row): row["ratio"] for row in rows if row["pack"] == pack}
    if way not in shares:
        return ""
    [ulysses] = [share for name, share in shares.items() if name.startswith("ulysses")]
    return f"**{shares[way]:.3f}** ({ulysses:.3f})"


def _groups(rows: Iterable[Row], key: Callable[[Row], Any]) -> list[tuple[Any, list[Row]]]:
    """Rows of one key, in the order in which keys first appear."""
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return list(found.items())


def _table(rows: list[Row]) -> str:
    ways = sorted({way_label(row) for row in rows}, key=_place)
    metered = all(row.get("clock_mhz") is not None for row in rows)
    head = ["pack", "ideal", *ways, "MiB", *(["MHz", "awake"] if metered else [])]
    lines = [head, ["---"] * len(head)]
    for (pack, _), found in groupby(rows, lambda row: (row["pack"], row["ideal_forward_ms"])):
        by_way = {way_label(row): row for row in found}
        ours = next(row for way, row in by_way.items() if way.startswith("hsap"))
        ideal = f"{ours['ideal_forward_ms']:.2f} + {ours['ideal_backward_ms']:.2f}"
        received = f"{max(ours['received_bytes']) / 2**20:,.0f}"
        lines.append([pack, ideal, *(_cell(way, by_way.get(way)) for way in ways), received])
        if metered:
            beside = [row for way, row in by_way.items() if way.startswith("whole pack")]
            lines[-1] += [_metered("clock_mhz", ours, beside, ",.0f"), _metered("links_awake", ours, beside, ".2f")]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _place(way: str) -> tuple[int, str]:
    return next(at for at, name in enumerate(_WAYS) if way.startswith(name)), way


def _cell(way: str, row: Row | None) -> str:
    if row is None:
        return ""
    share = f"{row['ratio']:.3f}"
    return f"**{share}** ({row['forward_ms']:.2f} + {row['backward_ms']:.2f})" if way.startswith("hsap") else share


def _metered(meter: str, ours: Row, beside: Iterable[Row], form: str) -> str:
    """Of the ideal, of ours, and of the whole pack beside copies."""
    readings = [ours[f"ideal_{meter}"], ours[meter], *(row[meter] for row in beside)]
    return " / ".join(format(sum(each) / len(each), form) for each in readings)
