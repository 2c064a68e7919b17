"""How a slot's rows are split into two calls, and which form it takes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hsap_hf.attention.form import apart_is_faster
from hsap_hf.attention.segments import compile_tables
from hsap_hf.cli.bench.mixes import mixes
from hsap_hf.comm.exchange import compile_exchange
from hsap_hf.planner import compile_plan

CPU = torch.device("cpu")
lengths_of_packs = st.lists(st.one_of(st.integers(1, 9), st.integers(10, 400)), min_size=1, max_size=30)


def every_slot(lengths, context_size, apart):
    """Tables and tokens of each slot of the pack's plan."""
    plan = compile_plan(lengths, context_size)
    for slot in range(context_size):
        yield compile_tables(plan, slot, None, CPU, apart=apart), plan.tokens(slot)


@settings(max_examples=80, deadline=None)
@given(lengths_of_packs, st.integers(2, 6))
def test_apart_splits_the_rows_into_two_runs_of_neighbours(lengths, context_size):
    """So that both calls read queries and write results in place."""
    for tables, tokens in every_slot(lengths, context_size, apart=True):
        rows = [part.rows.tolist() for part in (tables.remote, tables.local) if part is not None]
        assert [row for part in rows for row in part] == list(range(tokens))
        assert all(part.run is not None for part in (tables.remote, tables.local) if part is not None)


@settings(max_examples=80, deadline=None)
@given(lengths_of_packs, st.integers(2, 6))
def test_merged_leaves_every_row_to_the_local_call_and_reads_borrowed_keys_only(lengths, context_size):
    for tables, tokens in every_slot(lengths, context_size, apart=False):
        assert (0 if tables.local is None else len(tables.local.rows)) == tokens
        assert bool((tables.gather.rows >= tables.gather.num_own).all())


@pytest.mark.parametrize(
    ("pack", "near_slots", "apart"),
    [
        ("one_long", 2, [False, False]),
        ("hybrid", 2, [True, False]),
        ("longtail", None, [True, True]),
        ("longtail", 1, [True, False]),
    ],
)
def test_a_slot_is_apart_where_waiting_costs_less_than_merging(pack, near_slots, apart):
    """One-long has nothing beside its exchange, hybrid's second slot little, longtail enough, but for a network."""
    plan = compile_plan(mixes(65_536)[f"{pack}_64k"], 2)
    exchanges = [compile_exchange(plan, slot, None, CPU) for slot in (0, 1)]
    assert [apart_is_faster(plan, slot, exchanges[slot], near_slots) for slot in (0, 1)] == apart


def test_mixes_hold_the_tokens_they_are_named_after():
    for tokens in (65_536, 100_000):
        assert {sum(lengths) for lengths in mixes(tokens).values()} == {tokens}
    assert set(mixes(65_536)) & set(mixes(66_000)) == set()
