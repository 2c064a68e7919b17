"""Which packs the replicas compute in one optimizer step: nearly equal work, since the slowest sets the pace."""

from collections.abc import Sequence
from random import Random

from hsap_hf.planner.documents import pairs
from hsap_hf.planner.model import Model

STEPS_SHUFFLED = 64
"""Steps that are drawn at random together; only inside such a draw are packs sorted by work."""


def pack_work(lengths: Sequence[int], model: Model) -> int:
    """Work of a pack in query-key pairs, the linear maps of its tokens counted as the pairs that cost as many FLOP.

    A token costs 6 FLOP a weight, a pair 14 FLOP a query head and element (forward and backward).
    """
    pairs_per_token = 6 * model.layer_weights // (14 * model.num_query_heads * model.head_dim)
    return sum(pairs(0, length) + pairs_per_token * length for length in lengths)


def balanced_steps(work: Sequence[int], num_replicas: int, seed: int | str) -> list[tuple[int, ...]]:
    """Every pack once, as steps of `num_replicas` packs of similar work; entry r of a step is for replica r.

    work: of every pack, see `pack_work`. Packs are shuffled by `seed` (make it of seed and epoch), drawn in runs of
    STEPS_SHUFFLED steps, sorted by work inside a run, cut into steps, and the steps and the replicas shuffled again. So
    neither the order of steps nor a replica's share depends on length beyond one step. A last step may be shorter.
    """
    random = Random(seed)  # noqa: S311 - an order to train in, not a secret
    order = list(range(len(work)))
    random.shuffle(order)
    steps: list[tuple[int, ...]] = []
    whole = len(order) - len(order) % num_replicas
    for first in range(0, whole, STEPS_SHUFFLED * num_replicas):
        run = sorted(order[first : min(first + STEPS_SHUFFLED * num_replicas, whole)], key=lambda pack: work[pack])
        drawn = [run[i : i + num_replicas] for i in range(0, len(run), num_replicas)]
        random.shuffle(drawn)
        for step in drawn:
            random.shuffle(step)
            steps.append(tuple(step))
    return [*steps, tuple(order[whole:])] if order[whole:] else steps
