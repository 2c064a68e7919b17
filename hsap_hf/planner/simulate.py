"""Placements side by side: what any of them gives every slot, and how long a layer then takes.

Of placements alone: how much of their keys hides depends on the engine as well, so here all attention hides them.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hsap_hf.planner.cost import ideal_seconds, layer_seconds
from hsap_hf.planner.load import Load
from hsap_hf.planner.machine import Machine
from hsap_hf.planner.model import Model
from hsap_hf.planner.plan import compile_plan
from hsap_hf.planner.report import imbalance
from hsap_hf.planner.stand_ins import STAND_INS


class Outcome(NamedTuple):
    """One placement of one pack on one number of slots."""

    pack: str
    context_size: int
    placement: str
    work_imbalance: float
    """Largest work over the mean."""
    token_imbalance: float
    """Largest tokens over the mean."""
    fetched: float
    """Mean keys a slot receives, in units of its mean tokens."""
    fetched_max: float
    """The most keys a slot receives, in the same unit."""
    sent_max: float
    """The most keys a slot sends, in the same unit: on a network this is what an uneven placement waits for."""
    between_nodes: float
    """Mean keys a slot receives from other nodes, in the same unit."""
    layer_ms: float
    """Predicted time of one layer, forward and backward."""
    efficiency: float
    """Time with equal work and free exchange, over `layer_ms`."""


def simulate(
    packs: Mapping[str, Sequence[int]],
    context_sizes: Sequence[int],
    model: Model,
    machine: Machine,
    ranks_per_node: int | None = None,
) -> list[Outcome]:
    """Our plan and every stand-in, for every pack (name: document lengths) on every number of slots."""
    found = []
    for pack, lengths in packs.items():
        for context_size in context_sizes:
            plan = compile_plan(lengths, context_size, ranks_per_node=ranks_per_node)
            found.append(outcome(pack, "hsap_hf", plan.load(ranks_per_node), model, machine))
            for name, place in STAND_INS:
                load = place(lengths, context_size, ranks_per_node)
                found.append(outcome(pack, name, load, model, machine))
    return found


def outcome(pack: str, placement: str, load: Load, model: Model, machine: Machine) -> Outcome:
    """The figures of one load."""
    slots, total = len(load.tokens), max(sum(load.tokens), 1)
    seconds = layer_seconds(load.all_hides(), model, machine)
    fetched, sent, far, _ = load.traffic
    return Outcome(
        pack=pack,
        context_size=slots,
        placement=placement,
        work_imbalance=imbalance(load.work),
        token_imbalance=imbalance(load.tokens),
        fetched=sum(fetched) / total,
        fetched_max=max(fetched) * slots / total,
        sent_max=max(sent) * slots / total,
        between_nodes=sum(far) / total,
        layer_ms=1e3 * seconds,
        efficiency=ideal_seconds(load.tokens, load.work, model, machine) / seconds if seconds else 1.0,
    )
