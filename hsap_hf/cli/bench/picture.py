"""What the ranks measured as a picture: efficiency by pack, one bar a way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hsap_hf.cli.bench.table import way_label
from hsap_hf.cli.picture import new_figure, save_figure


def draw_efficiency(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Ways that did not run are left out. Raises ConfigError where matplotlib is not installed."""
    packs = list(dict.fromkeys(row["pack"] for row in rows))
    measured = {(way_label(row), row["pack"]): row["ratio"] for row in rows if row["ratio"] is not None}
    ways = list(dict.fromkeys(way for way, _ in measured))
    figure = new_figure(path, max(6.0, 1.5 + 0.3 * len(packs) * (len(ways) + 1)), 4.0)
    axes = figure.subplots()
    width = 0.8 / max(1, len(ways))
    for place, way in enumerate(ways):
        ratios = {at: measured[way, pack] for at, pack in enumerate(packs) if (way, pack) in measured}
        left = [at - 0.4 + (place + 0.5) * width for at in ratios]
        bars = axes.bar(left, list(ratios.values()), width=0.92 * width, label=way)
        axes.bar_label(bars, fmt="%.2f", fontsize=7)
    axes.axhline(1.0, color="#333333", linewidth=0.8)
    axes.set_xticks(range(len(packs)), packs, rotation=20, ha="right")
    axes.set_ylabel("ideal time / time, forward and backward")
    axes.spines[["top", "right"]].set_visible(False)
    first = rows[0]
    terms = [f"{first['ranks']} ranks on {first['device']}", first["kernel"], first["link"]]
    axes.set_title(", ".join(terms + (["zeros"] if first["zeros"] else [])), fontsize=10)
    figure.legend(loc="outside lower center", ncols=max(1, len(ways)), fontsize=8, frameon=False)
    save_figure(figure, path)
