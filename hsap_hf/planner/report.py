"""A plan as numbers to look at: the object that `hsap plan --json` prints."""

from collections.abc import Sequence
from typing import Any

from hsap_hf.planner.exchange import fetches
from hsap_hf.planner.plan import Plan


def imbalance(amounts: Sequence[int]) -> float:
    """Largest amount over the mean; 1.0 is perfect, and nothing at all is perfect too."""
    total = sum(amounts)
    return max(amounts) * len(amounts) / total if total else 1.0


def plan_as_dict(plan: Plan, ulysses_size: int, plan_milliseconds: float) -> dict[str, Any]:
    """The plan as JSON types, the format of `hsap plan --json`.

    work counts query-key pairs; fetched tokens are those of full causal attention. plan_milliseconds: the time the
    caller measured, since the planner has no clock.
    """
    borrowed = [fetches(plan, slot) for slot in range(plan.context_size)]
    fetched = [sum(fetch.stop - fetch.start for fetch in row) for row in borrowed]
    tokens = [plan.tokens(slot) for slot in range(plan.context_size)]
    work = [plan.work(slot) for slot in range(plan.context_size)]
    slots = [
        {
            "pieces": [list(piece) for piece in plan.slots[slot]],
            "fetches": [list(fetch) for fetch in borrowed[slot]],
            "tokens": tokens[slot],
            "work": work[slot],
        }
        for slot in range(plan.context_size)
    ]
    return {
        "context_size": plan.context_size,
        "ulysses_size": ulysses_size,
        "documents": list(plan.lengths),
        "slots": slots,
        "work_imbalance": imbalance(work),
        "token_imbalance": imbalance(tokens),
        "cut_documents": len(plan.cut_documents),
        "fetched_tokens_mean": sum(fetched) / plan.context_size,
        "fetched_tokens_max": max(fetched),
        "plan_milliseconds": plan_milliseconds,
    }
