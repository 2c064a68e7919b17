"""A plan as a picture: one row a slot, one colour a document, cut documents hatched, arrows for what travels."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

from hsap_hf.cli.terminal import check_folder
from hsap_hf.errors import ConfigError
from hsap_hf.planner import Plan, fetches

LLAMA3_8B_KEY_BYTES = 2 * 8 * 128 * 2
"""Bytes of keys and values a token has in one layer of Llama-3-8B: 8 key-value heads, 128 wide, bfloat16."""
_MOST_ARROWS = 12
"""Messages that are drawn as arrows, the largest first."""
_MOST_SLOTS = 8
"""Slots up to which single messages can be told apart."""
_LABEL = MappingProxyType({"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1})


def draw_plan(plan: Plan, path: Path, key_bytes: int = LLAMA3_8B_KEY_BYTES) -> None:
    """Write the picture to `path` (.svg, .png or .pdf). Raises ConfigError where matplotlib is not installed."""
    figure = new_figure(path, 11, max(2.4, min(14.0, 0.8 + 0.42 * plan.context_size)))
    pack, traffic = figure.subplots(1, 2, width_ratios=[5, 1], sharey=True)
    _draw_pack(pack, plan)
    messages = _messages(plan)
    if messages and plan.context_size <= _MOST_SLOTS:
        _draw_arrows(pack, plan, messages, key_bytes)
    received = [sum(n for (_, to), n in messages.items() if to == slot) for slot in range(plan.context_size)]
    traffic.barh(range(plan.context_size), [n * key_bytes / 2**20 for n in received], color="#888888", height=0.7)
    traffic.set_xlabel("keys and values received\nMiB a layer")
    traffic.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"{len(plan.lengths)} documents, {sum(plan.lengths):,} tokens on {plan.context_size} slots; "
        f"{len(plan.cut_documents)} cut (hatched)",
        fontsize=10,
    )
    save_figure(figure, path)


def new_figure(path: Path, width: float, height: float) -> Any:
    """An empty figure, in inches. Raises ConfigError where matplotlib is missing or cannot write to such a name."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("drawing needs matplotlib: pip install 'hsap-hf[plot]'.") from None
    if path.suffix not in (".svg", ".png", ".pdf"):
        raise ConfigError(f"--plot {path}: needs a name that ends in .svg, .png or .pdf.")
    check_folder(path, "--plot")
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path) -> None:
    """Without the date of the run."""
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _draw_pack(axes: Any, plan: Plan) -> None:
    from matplotlib import colormaps

    colours = colormaps["tab20"].colors
    order = sorted(range(len(plan.lengths)), key=lambda doc: -plan.lengths[doc])
    colour = {doc: colours[place % len(colours)] for place, doc in enumerate(order)}
    widest = max([sum(p.stop - p.start for p in pieces) for pieces in plan.slots], default=1) or 1
    for slot, pieces in enumerate(plan.slots):
        left = 0
        for doc, start, stop in sorted(pieces, key=lambda piece: -plan.lengths[piece.doc]):
            cut, width = doc in plan.cut_documents, stop - start
            fine = width < widest / 150
            axes.barh(
                slot,
                width,
                left=left,
                height=0.7,
                color=colour[doc],
                edgecolor="none" if fine else "white",
                linewidth=0.4,
                hatch="///" if cut else None,
            )
            if width > widest / 9:
                axes.text(
                    left + width / 2,
                    slot,
                    f"{start:,}–{stop:,}" if cut else f"{width:,}",  # noqa: RUF001
                    ha="center",
                    va="center",
                    fontsize=7,
                    bbox=_LABEL,
                )
            left += width
    axes.set_yticks(range(plan.context_size), [f"slot {slot}" for slot in range(plan.context_size)], fontsize=7)
    axes.set_ylim(plan.context_size - 0.4, -0.6)
    axes.set_xlabel("tokens (cut documents show the rows they hold)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(0, widest * 1.01)


def _draw_arrows(axes: Any, plan: Plan, messages: dict[tuple[int, int], int], key_bytes: int) -> None:
    """The largest messages, each in a column of its own to the right of the pack, with its size in MiB."""
    edge = max(plan.tokens(slot) for slot in range(plan.context_size))
    shown = sorted(sorted(messages, key=lambda pair: -messages[pair])[:_MOST_ARROWS], key=lambda p: abs(p[0] - p[1]))
    for column, (source, to) in enumerate(shown):
        x = edge * (1.03 + 0.035 * column)
        arrow = {"arrowstyle": "-|>", "color": "#333333", "linewidth": 1.0, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", xy=(x, to), xytext=(x, source), arrowprops=arrow)
        size = f"{messages[source, to] * key_bytes / 2**20:.0f}"
        axes.text(x, (source + to) / 2, size, fontsize=7, ha="center", va="center", bbox=_LABEL)
    axes.set_xlim(0, edge * (1.04 + 0.035 * len(shown)))


def _messages(plan: Plan) -> dict[tuple[int, int], int]:
    """Tokens whose keys travel from one slot to another in a full-attention layer."""
    messages: dict[tuple[int, int], int] = {}
    for slot in range(plan.context_size):
        for fetch in fetches(plan, slot):
            pair = (fetch.from_slot, slot)
            messages[pair] = messages.get(pair, 0) + fetch.stop - fetch.start
    return messages
