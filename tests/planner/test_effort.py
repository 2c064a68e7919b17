"""Planning stays short: the calls it makes are counted, which no busy machine changes. `hsap bench plan` times it."""

import sys

import pytest

from hsap_hf.planner.exchange import fetches, sends
from hsap_hf.planner.plan import compile_plan

from .many_documents import PACKS, many_documents


def calls_of(lengths: list[int], context_size: int, ranks_per_node: int | None) -> int:
    """Python and C functions called for a plan, its fingerprint and the tables of one slot."""
    count = 0

    def profile(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        plan = compile_plan(lengths, context_size, ranks_per_node=ranks_per_node)
        fetches(plan, 3)
        sends(plan, 3)
        assert plan.fingerprint
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize(("size", "context_size", "limit"), [("1M", 64, 22_000), ("8M", 1_024, 240_000)])
@pytest.mark.parametrize("mix", ["short", "hybrid"])
@pytest.mark.parametrize("ranks_per_node", [None, 8], ids=["one node", "nodes of 8"])
def test_a_plan_takes_few_calls(size: str, context_size: int, limit: int, mix: str, ranks_per_node: int | None) -> None:
    count = calls_of(many_documents(*PACKS[f"{mix}_{size}"]), context_size, ranks_per_node)
    print(f"{count:,} calls")
    assert count <= limit


def test_calls_grow_with_slots_and_not_with_documents() -> None:
    """A tenfold number of equal documents costs no tenfold number of calls."""
    few, many = (calls_of([100] * count, 16, None) for count in (400, 4_000))
    assert many < 3 * few
