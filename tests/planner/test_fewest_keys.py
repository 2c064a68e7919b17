"""The lower bound on fetched keys is below every optimum and every plan, and says how far plans can still get."""

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from hsap_hf.planner.documents import pairs
from hsap_hf.planner.plan import compile_plan
from hsap_hf.planner.stand_ins import equal_chunks

from .fewest_keys import Price, fewest_keys, keys_at_price
from .packs import REFERENCE, mixed_packs, slot_counts
from .test_optimum import fewest_fetches


def lawful_work(lengths: list[int], context_size: int) -> float:
    """The most work that a law of plans leaves to a slot."""
    return 1.01 * sum(pairs(0, length) for length in lengths) / context_size


@pytest.mark.parametrize(
    ("lengths", "context_size", "most_work"),
    [([12], 2, 40), ([10], 2, 28), ([9], 3, 16), ([6, 3], 3, 9), ([8, 2, 2], 2, 21), ([9, 1, 1, 1], 2, 24)],
)
def test_the_bound_is_below_and_near_the_optimum(lengths: list[int], context_size: int, most_work: int) -> None:
    best = fewest_fetches(lengths, context_size, most_work)
    assert 0.7 * best <= fewest_keys(lengths, context_size, most_work) <= best


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])  # few are small enough
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
    st.integers(2, 3),
    st.floats(1, 1.5),
    st.integers(1, 9),
    st.sampled_from([0.3, 1.0, 1.5, 20.0]),
)
def test_at_no_price_is_the_bound_above_the_optimum(
    lengths: list[int], context_size: int, slack: float, pivot: int, rate: float
) -> None:
    assume(context_size <= sum(lengths) <= 13 - 2 * context_size)
    tokens = sum(lengths) // context_size
    most_work = int(slack * sum(pairs(0, length) for length in lengths) / context_size)
    assume(pivot * tokens <= most_work)
    best = fewest_fetches(lengths, context_size, most_work)  # 10**9 if no placement is lawful
    assert keys_at_price(lengths, tokens, most_work, Price(pivot, rate), 50) <= best + 1e-9


@settings(max_examples=60, deadline=None)
@given(mixed_packs, slot_counts)
def test_every_plan_is_above_the_bound(lengths: list[int], context_size: int) -> None:
    load = compile_plan(lengths, context_size).load()
    assert fewest_keys(lengths, context_size, max(load.work), fineness=50) <= sum(load.traffic.fetched)


@pytest.mark.parametrize(
    ("mix", "ratio"),
    [("long_sft", 1.50), ("github", 1.22), ("ccrawl", 1.17), ("half_half", 1.03), ("one_long", 1.07), ("stdlib", 1.75)],
)
def test_reference_plans_are_near_the_bound(mix: str, ratio: float) -> None:
    lengths = REFERENCE[f"{mix}_512k"]
    fetched = sum(compile_plan(lengths, 32).load().traffic.fetched)
    bound = fewest_keys(lengths, 32, lawful_work(lengths, 32))
    print(f"{fetched / sum(lengths):.2f} keys a token, at least {bound / sum(lengths):.2f}: {fetched / bound:.3f}")
    assert bound <= fetched <= ratio * bound


def test_no_lawful_placement_of_ccrawl_fetches_six_tenths_of_equal_chunks() -> None:
    """Equal chunks themselves are not lawful there: their work is 27 % out of balance."""
    lengths = REFERENCE["ccrawl_512k"]
    chunks = equal_chunks(lengths, 32)
    assert fewest_keys(lengths, 32, lawful_work(lengths, 32)) > 0.6 * sum(chunks.traffic.fetched)
    assert max(chunks.work) > 1.25 * lawful_work(lengths, 32)
