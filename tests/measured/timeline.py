"""One layer of every rank as the profiler saw it, drawn and counted, from what `hsap bench attention --trace` wrote:

python tests/measured/timeline.py TRACES/hybrid_64k-hsap-2x1-rank*.json docs/timeline_2xh200.svg
"""

import gzip
import json
import sys
from pathlib import Path
from typing import NamedTuple

from hsap_hf.cli.picture import new_figure, save_figure

KINDS = {
    "exchange": ("SendRecv",),
    "attention, backward": ("bwd_sm", "bwd_kernel", "flash_bwd_dq_dk_dv"),
    "attention, forward": ("fwd_sm", "fwd_kernel", "flash_fwd"),
    "prepare": ("preprocess", "dot_do_o", "FillFunc", "Memset"),
    "convert": ("postprocess", "convert_dq", "convert_dkv"),
    "pick, merge, sum": ("_take_rows", "_merge_rows", "_sum_rows", "CUDAFunctor_add", "elementwise"),
}
"""What a kernel is, by a part of its name; the first that fits."""
COLOURS = dict(zip(KINDS, ("#d62728", "#1f77b4", "#6baed6", "#999999", "#bbbbbb", "#2ca02c"), strict=True))


class Ran(NamedTuple):
    """One kernel of a layer, in ms since the layer began."""

    row: str
    kind: str
    start: float
    stop: float


def layer(path):
    """Kernels of one forward and backward in a trace: the last but one, behind which the queue is not yet empty."""
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
    events = [e for e in json.loads(content)["traceEvents"] if e.get("cat") in ("kernel", "gpu_memset", "gpu_memcpy")]
    events.sort(key=lambda event: event["ts"])
    main = events[0]["args"]["stream"]
    begins = [e["ts"] for e in events if "_take_rows" in e["name"] and e["args"]["stream"] == main]  # what is sent
    first, after = begins[-2:]
    return [ran(event, first, main) for event in events if first <= event["ts"] < after]


def ran(event, first, main):
    kind = next((kind for kind, words in KINDS.items() if any(word in event["name"] for word in words)), "other")
    row = "exchange" if kind == "exchange" else "own keys" if event["args"]["stream"] == main else "borrowed keys"
    return Ran(row, kind, (event["ts"] - first) / 1e3, (event["ts"] + event["dur"] - first) / 1e3)


def draw(layers, path):
    rows = [(rank, row) for rank in range(len(layers)) for row in ("own keys", "borrowed keys", "exchange")]
    figure = new_figure(path, 11, 0.9 + 0.4 * len(rows))
    axes = figure.subplots()
    for rank, kernels in enumerate(layers):
        for kernel in kernels:
            height = rows.index((rank, kernel.row))
            colour = COLOURS.get(kernel.kind, "black")
            axes.barh(height, kernel.stop - kernel.start, left=kernel.start, height=0.75, color=colour)
    for kind, colour in COLOURS.items():
        axes.barh(0, 0, color=colour, label=kind)
    axes.set_yticks(range(len(rows)), [f"GPU {rank}: {row}" for rank, row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("ms")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(KINDS), fontsize=8, frameon=False)
    save_figure(figure, path)


def main(traces, picture):
    layers = [layer(trace) for trace in traces]
    draw(layers, picture)
    for rank, kernels in enumerate(layers):
        print(f"GPU {rank}: {len(kernels)} launches, {max(kernel.stop for kernel in kernels):.2f} ms")
        lasted = {}
        for kernel in kernels:
            lasted.setdefault((kernel.row, kernel.kind), []).append(kernel.stop - kernel.start)
        for (row, kind), times in lasted.items():
            print(f"  {row}, {kind}: {len(times)}, {sum(times):.2f} ms")


if __name__ == "__main__":
    *sources, target = map(Path, sys.argv[1:])
    main(sources, target)
