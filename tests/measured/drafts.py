"""Drafts of the planner in the place of the one that it chooses, timed as `hsap bench attention` times ways, but in
more rounds:

torchrun --nproc-per-node 2 tests/measured/drafts.py 65536 131072
"""

import sys
from functools import partial
from unittest.mock import patch

import torch
from accelerate import PartialState

from hsap_hf.cli.bench.entry import Entry
from hsap_hf.cli.bench.measurement import ROUNDS, Bench
from hsap_hf.cli.bench.mixes import mixes
from hsap_hf.cli.bench.request import Request
from hsap_hf.cli.bench.ways import hsap_way, whole_way
from hsap_hf.cli.bench.whole_pack import Shape, draw_pack
from hsap_hf.comm import build_mesh
from hsap_hf.config import HsapPlugin
from hsap_hf.planner import compile_plan, fetches, placement
from hsap_hf.planner.documents import TokenAxis
from hsap_hf.planner.outside_in import outside_in
from hsap_hf.planner.window import window

OUTSIDE_IN = {
    f"{heads}/16 off the head{', fitted' if fitted else ''}": (heads, fitted)
    for fitted in (False, True)
    for heads in (0, 2, 4, 6, 8)
}


def drawn(name, lengths, context_size, ranks_per_node):
    """One draft, in the place of placement._drafts."""
    axis = TokenAxis(lengths)
    fewest, spare = divmod(axis.starts[-1], context_size)
    tokens = [fewest + (slot < spare) for slot in range(context_size)]
    if name == "window":
        draft = window(lengths, axis, tokens)
    else:
        heads, fitted = OUTSIDE_IN[name]
        draft = outside_in(lengths, axis, tokens, num_fitted=len(lengths) if fitted else 0, heads=heads)
    yield draft.settled(lengths)


def drafts(lengths, context_size):
    """(name, what replaces placement._drafts) of the planner's choice and of every other plan."""
    seen = {}
    for name in ("chosen", "window", *OUTSIDE_IN):
        made = placement._drafts if name == "chosen" else partial(drawn, name)
        with patch.object(placement, "_drafts", made):
            seen.setdefault(compile_plan(lengths, context_size).fingerprint, (name, made))
    return list(seen.values())


def measured(bench, shape, lengths):
    """(draft, ratio, cut documents, rows fetched by each slot) of every draft."""
    pack, mesh = draw_pack(lengths, shape, bench.device), bench.mesh
    whole = Entry("ideal", None, whole_way(pack, bench.size), None, {})
    results = (whole.way.forward()[0], *whole.way.backward(None))
    entries, told = [], []
    for name, made in drafts(lengths, bench.size):
        with patch.object(placement, "_drafts", made):
            plan, way = compile_plan(lengths, bench.size), hsap_way(pack, shape, mesh)
        entries.append(Entry.checked(bench, name, None, way, results))
        rows = [sum(f.stop - f.start for f in fetches(plan, slot)) for slot in range(bench.size)]
        told.append((len(plan.cut_documents), rows))
    ideal = time_in_turns(bench, whole, entries, 2 * ROUNDS)
    return [(entry.name, ideal / entry.milliseconds(), *facts) for entry, facts in zip(entries, told, strict=True)]


def time_in_turns(bench, whole, entries, rounds):
    """Time the whole pack and all entries, another one first every round, backwards every second. Returns the ideal in
    ms: the mean of all ranks, the median of the rounds."""
    turns = [whole, *entries]
    for number in range(rounds):
        first = number % len(turns)
        order = [*turns[first:], *turns[:first]]
        for entry in [order[0], *reversed(order[1:])] if number % 2 else order:
            entry.time(bench)
    return float(torch.stack(whole.times)[..., :2].mean(1).median(0).values.sum())


def main(sizes):
    state = PartialState(cpu=not torch.cuda.is_available())
    shape, ranks = Shape(32, 8, 128, "auto"), state.num_processes
    packs = {name: mix for size in sizes for name, mix in mixes(size).items()}
    mesh = build_mesh(HsapPlugin(context_size=ranks, timeout_seconds=3600.0), state.device.type)
    request = Request(packs=packs, splits=[(ranks, 1)], shape=shape, repeats=10)
    for pack, lengths in packs.items():
        for name, ratio, cut, rows in measured(Bench(request, state.device, {(ranks, 1): mesh}), shape, lengths):
            if state.process_index == 0:
                print(f"{pack}: {name}: {ratio:.3f}, {cut} cut, fetch {rows}", flush=True)


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]] or [65_536])
