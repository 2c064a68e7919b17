"""Which context_size x ulysses_size a group of ranks should take for a pack, by predicted layer time."""

from collections.abc import Sequence
from typing import NamedTuple

from hsap_hf.planner.cost import best_num_messages, exchange_seconds, layer_seconds, merging_seconds, ulysses_seconds
from hsap_hf.planner.machine import Machine
from hsap_hf.planner.model import Model
from hsap_hf.planner.plan import compile_plan


class Choice(NamedTuple):
    """One way to use the ranks of a group."""

    context_size: int
    ulysses_size: int
    layer_seconds: float
    """Predicted time of one layer, forward and backward."""
    reason: str
    """What this choice spends and waits for."""


def slots_per_node(ulysses_size: int, machine: Machine) -> int:
    """Consecutive slots that share a node of the machine."""
    return max(1, machine.node_ranks // ulysses_size)


def recommend(lengths: Sequence[int], num_ranks: int, model: Model, machine: Machine) -> list[Choice]:
    """Every way to make one group of `num_ranks` ranks, the fastest predicted for this pack first.

    Ulysses ranks share a node, so only sizes that divide a node are looked at; they must divide the query heads too.
    Of two equally fast ones the smaller ulysses_size comes first.
    """
    choices = []
    for ulysses_size in ulysses_sizes(num_ranks, model, machine):
        context_size = num_ranks // ulysses_size
        node = slots_per_node(ulysses_size, machine)
        plan = compile_plan(lengths, context_size, ranks_per_node=node)
        load = plan.load(node)
        seconds = layer_seconds(load, model, machine, ulysses_size)
        choices.append((seconds, ulysses_size, load))
    choices.sort(key=lambda choice: (round(choice[0], 7), choice[1]))
    found = []
    for seconds, ulysses_size, load in choices:
        near, far = max(load.traffic.near_most()), max(load.traffic.far_most())
        exchange = exchange_seconds(near, far, model, machine, ulysses_size)
        count = best_num_messages(load, ulysses_size)
        waits = seconds - layer_seconds(load.all_hides(), model, machine, ulysses_size)
        waits -= merging_seconds((count - 1) * max(load.tokens) / ulysses_size, model, machine)
        parts = []
        if ulysses_size > 1:
            trade = ulysses_seconds(max(load.tokens), ulysses_size, model, machine)
            parts.append(f"trading heads for tokens takes {1e3 * trade:.2f} ms, which nothing hides")
        if exchange:
            place = "between nodes" if far / machine.network_bytes > near / machine.node_bytes else "inside a node"
            hidden = f"{1e3 * waits:.2f} ms of that beside no attention" if waits > 5e-6 else "beside attention"
            messages = f" in {count} messages" if count > 1 else ""
            parts.append(f"keys {place} take {1e3 * exchange:.2f} ms{messages}, {hidden}")
        else:
            parts.append("no keys travel")
        found.append(Choice(num_ranks // ulysses_size, ulysses_size, seconds, "; ".join(parts)))
    return found


def ulysses_sizes(num_ranks: int, model: Model, machine: Machine) -> list[int]:
    """Sizes that divide the ranks, a node and the query heads."""
    most = min(num_ranks, machine.node_ranks)
    return [u for u in range(1, most + 1) if not (num_ranks % u or machine.node_ranks % u or model.num_query_heads % u)]
