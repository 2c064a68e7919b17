"""Every plan keeps the laws, whatever the pack."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsap_hf.planner.check import check_plan
from hsap_hf.planner.exchange import fetches, sends
from hsap_hf.planner.plan import Plan, compile_plan
from hsap_hf.planner.traffic import exchanged

from .packs import REFERENCE, mixed_packs, slot_counts, tiny_packs


@settings(max_examples=150, deadline=None)
@given(mixed_packs, slot_counts)
def test_any_pack_is_dealt_lawfully(lengths: list[int], context_size: int) -> None:
    plan = compile_plan(lengths, context_size)
    check_plan(plan, windows=())
    for window in (None, 1, 3, 1_000):
        received = [fetches(plan, slot, window) for slot in range(context_size)]
        for slot in range(context_size):
            mirrored = [(to, *fetch[1:]) for to in range(context_size) for fetch in received[to] if fetch[0] == slot]
            assert list(map(tuple, sends(plan, slot, window))) == mirrored


@settings(max_examples=150, deadline=None)
@given(tiny_packs, st.integers(1, 9), st.one_of(st.none(), st.integers(1, 50)))
def test_fetched_and_own_keys_are_exactly_those_that_rows_see(
    lengths: list[int], context_size: int, window: int | None
) -> None:
    check_plan(compile_plan(lengths, context_size), windows=(window,))


@settings(max_examples=80, deadline=None)
@given(mixed_packs, slot_counts)
def test_counted_traffic_is_what_the_tables_list(lengths: list[int], context_size: int) -> None:
    plan = compile_plan(lengths, context_size)
    fetched, sent, _, _ = exchanged(plan.cut_documents.values(), context_size)
    for slot in range(context_size):
        assert fetched[slot] == sum(fetch.stop - fetch.start for fetch in fetches(plan, slot))
        assert sent[slot] == sum(send.stop - send.start for send in sends(plan, slot))
    assert plan.most_fetched() == max(fetched)
    for window in (1, 3, 1_000):
        listed = [sum(fetch.stop - fetch.start for fetch in fetches(plan, s, window)) for s in range(context_size)]
        assert plan.most_fetched(window) >= max(listed)


@settings(max_examples=60, deadline=None)
@given(mixed_packs, slot_counts)
def test_the_same_pack_gives_the_same_plan(lengths: list[int], context_size: int) -> None:
    first, second = compile_plan(lengths, context_size), compile_plan(tuple(lengths), context_size)
    assert first == second
    assert first.fingerprint == second.fingerprint


@pytest.mark.parametrize("context_size", [2, 3, 4, 7, 8, 16, 32, 64])
def test_reference_packs_keep_the_laws(context_size: int) -> None:
    for lengths in REFERENCE.values():
        check_plan(compile_plan(lengths, context_size), windows=())


@pytest.mark.parametrize("context_size", [128, 256, 512, 1024])
def test_million_token_packs_keep_the_laws_on_many_slots(context_size: int) -> None:
    for name, lengths in REFERENCE.items():
        if name.endswith("_1024k"):
            check_plan(compile_plan(lengths, context_size), windows=())


@pytest.mark.parametrize("name", ["long_sft_64k", "github_64k", "half_half_64k", "one_long_64k"])
@pytest.mark.parametrize("window", [None, 512, 4_096])
def test_reference_exchanges_are_exact(name: str, window: int | None) -> None:
    check_plan(compile_plan(REFERENCE[name], 8), windows=(window,))


@pytest.mark.parametrize(
    "lengths",
    [[], [1], [1] * 5, [7] * 4_096, [100_003], [1, 1, 1, 262_144], [2, 3, 5, 7, 11, 13, 17, 19], [65_537] * 3],
)
@pytest.mark.parametrize("context_size", [1, 2, 7, 64])
def test_adversarial_packs_keep_the_laws(lengths: list[int], context_size: int) -> None:
    plan = compile_plan(lengths, context_size)
    check_plan(plan, windows=())
    assert sum(map(plan.tokens, range(context_size))) == sum(lengths)


def test_a_pack_of_whole_documents_moves_nothing() -> None:
    plan = compile_plan([4_096] * 16, 8)
    assert plan.cut_documents == {}
    assert all(fetches(plan, slot) == () == sends(plan, slot) for slot in range(8))


def test_owners_of_a_long_document_are_neighbours() -> None:
    lengths = [60_000, 60_000, *([500] * 240)]
    plan = compile_plan(lengths, 16)
    for doc in (0, 1):
        owners = {row.slot for row in plan.cut_documents[doc]}
        assert owners == set(range(min(owners), max(owners) + 1))


@settings(max_examples=40, deadline=None)
@given(mixed_packs, slot_counts)
def test_cut_documents_are_those_that_a_pass_over_the_slots_finds(lengths: list[int], context_size: int) -> None:
    plan = compile_plan(lengths, context_size)
    assert plan.cut_documents == Plan(plan.lengths, plan.context_size, plan.slots).cut_documents


def test_two_plans_that_differ_have_different_fingerprints() -> None:
    plan = compile_plan([5, 9, 1], 2)
    moved = Plan(plan.lengths, plan.context_size, plan.slots[::-1])
    assert len({plan.fingerprint, moved.fingerprint, compile_plan([5, 1, 9], 2).fingerprint}) == 3
