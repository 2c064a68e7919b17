"""What the ranks measured, as a table, and what is wrong with it, as sentences."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

_LIMITS = {"bfloat16": 2e-2, "float32": 1e-4}
"""Largest difference from the result of one rank, relative to the largest entry."""
_REGRESSION = 0.03
_COLUMNS = ("way", "fwd", "bwd", "ratio", "TFLOP/s", "launch", "MHz", "W", "differs", "MiB")


def problems(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Results that differ, and bytes that no plan asked for; one sentence each."""
    found = []
    for row in rows:
        if row["note"] is not None:
            continue
        name, limit = f"{row['pack']}, {way_label(row)}", _LIMITS[row["dtype"]]
        wrong = {result: size for result, size in row["differences"].items() if not size <= limit}  # NaN is wrong too
        if wrong:
            sizes = ", ".join(f"{result} by {size:.2g}" for result, size in wrong.items())
            found.append(
                f"{name}: differs from one rank's result relative to its largest entry: {sizes}; up to {limit} is fine."
            )
        for unit in ("rows", "bytes"):
            received, planned = row[f"received_{unit}"], row[f"planned_{unit}"]
            if received != planned:
                found.append(f"{name}: ranks received {received} {unit} from others, the plan says {planned}.")
    return found


def regressions(rows: Sequence[dict[str, Any]], before: Sequence[dict[str, Any]]) -> list[str]:
    """A sentence for every ratio of ours that is more than 3 % below the one measured before on the same terms, or one
    that says that nothing was."""
    known = {terms(row): row["ratio"] for row in before}
    pairs = [(row, known[terms(row)]) for row in rows if row["way"].startswith("hsap") and terms(row) in known]
    if before and not pairs:
        return [
            "nothing of --baseline was measured on the same terms (device, kernel, link, heads, pack): no comparison."
        ]
    return [
        f"{row['pack']}, {way_label(row)}: {row['ratio']:.3f} of ideal, {earlier:.3f} before."
        for row, earlier in pairs
        if row["ratio"] < (1 - _REGRESSION) * earlier
    ]


def terms(row: dict[str, Any]) -> tuple[Any, ...]:
    """What two measurements must share to be compared."""
    names = ("device", "ranks", "kernel", "dtype", "link", "heads", "kv_heads", "head_dim", "pack", "tokens")
    return (*(row[name] for name in names), row.get("zeros", False), way_label(row))


def show_ranks(rows: Sequence[dict[str, Any]]) -> None:
    """A table a pack, a line a way; milliseconds of the slowest rank, MiB of the rank that receives most."""
    from rich import box
    from rich.table import Table

    from hsap_hf.cli.terminal import console

    first, page = rows[0], console()
    title = f"{first['kernel']} on {first['ranks']} ranks of {first['device']}, {first['dtype']}, {first['link']}, "
    title += f"torch {first['torch']}\nms, median, slowest rank; TFLOP/s: a rank's, forward and backward; launch: "
    title += "the host's ms for both; MiB: received in both"
    title += "\nof zeros: no result is proven" if first["zeros"] else ""
    if first["device"] != "cpu" and first["ideal_clock_mhz"] is None:
        title += "\nMHz and W: pip install nvidia-ml-py"
    page.print(title, highlight=False)
    for pack, found in groupby(rows, lambda row: row["pack"]):
        of_pack = list(found)
        look = {"title_justify": "left", "box": box.SIMPLE_HEAD, "pad_edge": False, "collapse_padding": True}
        table = Table(title=pack, **look)
        for column in _COLUMNS:
            table.add_column(column, justify="left" if column == "way" else "right", no_wrap=True)
        ideal = of_pack[0]["ideal_forward_ms"], of_pack[0]["ideal_backward_ms"]
        met = _mean(of_pack[0]["ideal_clock_mhz"]), _mean(of_pack[0]["ideal_watts"])
        rates = _rates(of_pack[0], *ideal)
        table.add_row("ideal", *(f"{ms:.2f}" for ms in ideal), "1.000", rates, "", *met, "", "")
        for row in of_pack:
            table.add_row(way_label(row), *_figures(row))
        page.print(table)
    for row in rows:
        if row.get("trace") is not None and row["trace"]["launches"] is not None:
            page.print(f"{row['pack']}, {way_label(row)}: {_traced(row['trace'])}")


def said(row: dict[str, Any]) -> str:
    """One line about a row, as soon as it is there."""
    zeros = ", zeros" if row["zeros"] else ""
    figures = row["note"] or f"{row['forward_ms']:.2f} + {row['backward_ms']:.2f} ms, {row['ratio']:.3f} of ideal"
    return f"{row['pack']}{zeros}, {way_label(row)}: {figures}"


def _traced(found: dict[str, Any]) -> str:
    """On the first rank."""
    if found["hidden"] is None:
        return f"{found['launches']} launches, nothing travels"
    return f"{found['launches']} launches, {found['hidden']:.0%} of {found['exchange_ms']:.2f} ms exchange hidden"


def way_label(row: dict[str, Any]) -> str:
    """The way's name, with its split where HSAP has several."""
    return f"{row['way']} {row['split']}" if row["way"].startswith("hsap") else row["way"]


def _figures(row: dict[str, Any]) -> list[str]:
    if row["note"] is not None:
        return [row["note"].partition(":")[0] if row["way"].startswith("ring") else "-", *["-"] * 8]
    times = [f"{row['forward_ms']:.2f}", f"{row['backward_ms']:.2f}", f"{row['ratio']:.3f}"]
    times += [_rates(row, row["forward_ms"], row["backward_ms"]), f"{row['launch_ms']:.2f}"]
    times += [_mean(row["clock_mhz"]), _mean(row["watts"])]
    received = row["received_bytes"]
    received_mib = "-" if received is None else _short(max(received) / 2**20)
    return [*times, f"{max(row['differences'].values()):.1e}", received_mib]


def rates(row: dict[str, Any], *milliseconds: float) -> list[float]:
    """TFLOP/s a rank, forward and backward."""
    return [1e3 * done / ms / row["ranks"] for done, ms in zip(row["tflop"], milliseconds, strict=True)]


def _rates(row: dict[str, Any], *milliseconds: float) -> str:
    return " ".join(map(_short, rates(row, *milliseconds)))


def _short(number: float) -> str:
    """So that a line fits a narrow terminal."""
    return f"{number:.0f}" if number >= 100 else f"{number:.2g}"


def _mean(readings: Sequence[float] | None) -> str:
    """Over ranks."""
    return "-" if readings is None else f"{sum(readings) / len(readings):.0f}"
