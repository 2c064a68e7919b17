"""Each way to draw a placement keeps the laws by itself, and the one chosen is the best of them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsap_hf.planner.check import check_plan
from hsap_hf.planner.crossing import crossing, spared
from hsap_hf.planner.documents import TokenAxis, pairs
from hsap_hf.planner.draft import Draft
from hsap_hf.planner.outside_in import outside_in
from hsap_hf.planner.plan import Plan, compile_plan
from hsap_hf.planner.slots import Slots
from hsap_hf.planner.traffic import exchanged
from hsap_hf.planner.window import window

from .packs import REFERENCE, mixed_packs, slot_counts


def equal_tokens(lengths: list[int], context_size: int) -> list[int]:
    fewest, spare = divmod(sum(lengths), context_size)
    return [fewest + (slot < spare) for slot in range(context_size)]


def fetched_by(draft: Draft) -> float:
    return sum(exchanged(draft.cut.values(), len(draft.work))[0])


@settings(max_examples=100, deadline=None)
@given(mixed_packs, slot_counts)
def test_windows_are_lawful(lengths: list[int], context_size: int) -> None:
    draft = window(lengths, TokenAxis(lengths), equal_tokens(lengths, context_size))
    check_plan(Plan(tuple(lengths), context_size, Slots(draft, lengths)), windows=())


@settings(max_examples=200, deadline=None)
@given(mixed_packs, slot_counts, st.sampled_from([0, 1, 1_000]), st.integers(0, 8))
def test_outside_in_is_lawful(lengths: list[int], context_size: int, num_fitted: int, heads: int) -> None:
    draft = outside_in(lengths, TokenAxis(lengths), equal_tokens(lengths, context_size), num_fitted, heads)
    check_plan(Plan(tuple(lengths), context_size, Slots(draft, lengths)), windows=())


@settings(max_examples=60, deadline=None)
@given(mixed_packs, slot_counts)
def test_settling_only_renumbers_slots(lengths: list[int], context_size: int) -> None:
    draft = outside_in(lengths, TokenAxis(lengths), equal_tokens(lengths, context_size), 0, 6)
    settled = draft.settled(lengths)
    assert sorted(map(sorted, Slots(draft, lengths))) == sorted(map(sorted, Slots(settled, lengths)))
    assert fetched_by(draft) == fetched_by(settled)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=30))
def test_the_axis_weighs_whole_documents_by_their_pairs(lengths: list[int]) -> None:
    axis = TokenAxis(lengths)
    assert [lengths[doc] for doc in axis.docs] == sorted(lengths)
    assert axis.weight(sum(lengths)) == 2 * sum(pairs(0, length) for length in lengths)
    assert [axis.index(start) for start in axis.starts[:-1]] == list(range(len(lengths)))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 100), min_size=1, max_size=40), st.integers(-50, 4_000), st.integers(-5, 50))
def test_a_crossing_is_found_where_the_sign_changes(steps: list[int], goal: int, guess: int) -> None:
    heights = [sum(steps[:n]) - goal for n in range(len(steps) + 1)]
    found = crossing(heights.__getitem__, len(steps), 0, guess)
    if heights[0] < 0 < heights[-1]:
        assert heights[found] == 0 or heights[found - 1] < 0 < heights[found]
    else:
        assert found in range(len(steps) + 1)


def test_a_cut_is_spared_only_within_slack() -> None:
    assert spared(lambda n: 10 * n - 42, [9, 5, 4], 8, 3) == 4
    assert spared(lambda n: 10 * n - 45, [9, 5, 4], 8, 3) is None


@pytest.mark.parametrize("context_size", [4, 8, 32])
def test_no_plan_fetches_more_than_the_window_construction(context_size: int) -> None:
    for name, lengths in REFERENCE.items():
        if len(lengths) + 16 * context_size > 1_024:
            continue  # large packs are drawn once
        drawn = window(lengths, TokenAxis(lengths), equal_tokens(lengths, context_size))
        plan = compile_plan(lengths, context_size)
        fetched = sum(exchanged(plan.cut_documents.values(), context_size)[0])
        assert fetched <= 1.005 * fetched_by(drawn) + 0.01 * sum(lengths), name


def test_a_slower_link_buys_evener_senders() -> None:
    def worst(ranks_per_node: int | None) -> int:
        plan = compile_plan(REFERENCE["github_512k"], 32, ranks_per_node=ranks_per_node)
        return max(map(max, exchanged(plan.cut_documents.values(), 32)))

    assert worst(1) < 0.7 * worst(None)
