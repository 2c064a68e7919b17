"""The exchange by groups of key-value heads, so that keys of later groups travel while earlier ones are attended,
beside all heads at once, which is what the engine does. Timed as drafts.py does:

torchrun --nproc-per-node 2 tests/measured/head_groups.py 65536 hybrid_64k longtail_64k

Without names all packs of the size; with NCCL_P2P_DISABLE=1 over the slow link.
"""

import sys
from dataclasses import replace
from unittest.mock import patch

import torch
from accelerate import PartialState
from drafts import time_in_turns

from hsap_hf.attention import function
from hsap_hf.cli.bench.entry import Entry
from hsap_hf.cli.bench.measurement import ROUNDS, Bench
from hsap_hf.cli.bench.mixes import mixes
from hsap_hf.cli.bench.request import Request
from hsap_hf.cli.bench.ways import Received, hsap_way, whole_way
from hsap_hf.cli.bench.whole_pack import Shape, bench_dtype, draw_pack
from hsap_hf.comm import build_mesh
from hsap_hf.comm.exchange import fetch_keys
from hsap_hf.config import HsapPlugin
from hsap_hf.planner import compile_plan
from hsap_hf.planner.cost import best_num_messages

GROUPS = (1, 2, 4)
TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 1e-4}
"""Of results, relative to the largest entry of one device's."""


def split_heads(pack, shape, groups):
    """(pack, shape) of every group of consecutive heads, each tensor contiguous."""

    def cut(x):
        return [heads.contiguous() for heads in x.chunk(groups, 1)]

    problem = pack.problem
    share = replace(shape, heads=shape.heads // groups, kv_heads=shape.kv_heads // groups)
    for q, k, v, grad in zip(cut(problem.q), cut(problem.k), cut(problem.v), cut(pack.grad), strict=True):
        yield replace(pack, problem=replace(problem, q=q, k=k, v=v), grad=grad), share


def grouped_way(pack, shape, mesh, groups, num_messages):
    """Exchanges of all groups are posted first, in order; then the engine attends one group after the other, and so
    it does backward, where each group's gradients are home before the next group is taken.

    Results are tuples with one tensor a group, so that no copy is timed: see `joined`.
    """
    ways = [hsap_way(*part, mesh, num_messages) for part in split_heads(pack, shape, groups)]
    with patch.object(function, "fetch_keys", wraps=fetch_keys) as fetched:
        for way in ways:
            way.forward()
    asked = [call.args for call in fetched.call_args_list]  # (k, v, exchange, axis) of every group

    def forward():
        posted = [fetch_keys(*each) for each in asked]
        of_group = iter(posted)  # `posted` itself keeps what is sent until all groups are attended
        with patch.object(function, "fetch_keys", lambda *_: next(of_group)):
            out, saved = zip(*(way.forward() for way in ways), strict=True)
        return out, saved

    def backward(saved):
        return tuple(zip(*(way.backward(each) for way, each in zip(ways, saved, strict=True)), strict=True))

    planned = Received(sum(way.planned.rows for way in ways), sum(way.planned.num_bytes for way in ways))
    return replace(ways[0], forward=forward, backward=backward, planned=planned)


def joined(way):
    """The same grouped way, with all heads in one tensor."""

    def forward():
        out, saved = way.forward()
        return torch.cat(out, 1), saved

    return replace(
        way, forward=forward, backward=lambda saved: tuple(torch.cat(each, 1) for each in way.backward(saved))
    )


def checked(bench, name, way, one_tensor, expected):
    """To time `way`, whose results and bytes, those of `one_tensor`, are right."""
    entry = Entry.checked(bench, name, None, one_tensor, expected)
    known, tolerance = entry.known, TOLERANCE[bench_dtype(bench.device)]
    assert all(difference < tolerance for difference in known["differences"].values()), (name, known)
    assert known["received_bytes"] == known["planned_bytes"], (name, known)
    entry.way = way
    return entry


def message_counts(lengths, mesh):
    """Messages of one exchange: what the engine takes on GPUs, and one."""
    plan = compile_plan(lengths, mesh.context.size, ranks_per_node=mesh.slots_per_node)
    return list(dict.fromkeys((best_num_messages(plan.load(mesh.near_slots)), 1)))


def measured(bench, shape, lengths):
    """(name, ratio, ms forward, ms backward, ms of both to launch) of every number of groups and messages; the first
    is what the engine does."""
    pack, mesh = draw_pack(lengths, shape, bench.device), bench.mesh
    whole = Entry("ideal", None, whole_way(pack, bench.size), None, {})
    results = (whole.way.forward()[0], *whole.way.backward(None))
    entries = []
    for num_messages in message_counts(lengths, mesh):
        for groups in (number for number in GROUPS if shape.kv_heads % number == 0):
            name = f"groups {groups}, messages of each {num_messages}"
            if groups == 1:
                way = one_tensor = hsap_way(pack, shape, mesh, num_messages)
            else:
                way = grouped_way(pack, shape, mesh, groups, num_messages)
                one_tensor = joined(way)
            entries.append(checked(bench, name, way, one_tensor, results))
    ideal = time_in_turns(bench, whole, entries, 2 * ROUNDS)
    rows = [entry.row() for entry in entries]
    times = [(row["forward_ms"], row["backward_ms"], row["launch_ms"]) for row in rows]
    return [(entry.name, ideal / entry.milliseconds(), *ms) for entry, ms in zip(entries, times, strict=True)]


def main(size, names):
    state = PartialState(cpu=not torch.cuda.is_available())
    shape, ranks = Shape(32, 8, 128, "auto"), state.num_processes
    packs = {name: mix for name, mix in mixes(size).items() if name in names or not names}
    mesh = build_mesh(HsapPlugin(context_size=ranks, timeout_seconds=3600.0), state.device.type)
    request = Request(packs=packs, splits=[(ranks, 1)], shape=shape, repeats=10)
    for pack, lengths in packs.items():
        for name, ratio, *ms in measured(Bench(request, state.device, {(ranks, 1): mesh}), shape, lengths):
            if state.process_index == 0:
                forward, backward, launch = (f"{each:.2f}" for each in ms)
                told = f"{ratio:.3f}, {forward} + {backward} ms, {launch} to launch"
                print(f"{pack}: {name}: {told}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
