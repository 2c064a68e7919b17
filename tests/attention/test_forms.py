"""How a slot's rows are split into calls, in both forms, and in how many messages keys come."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hsap_hf.attention.tables import compile_tables
from hsap_hf.cli.bench.mixes import mixes
from hsap_hf.planner import Piece, Plan, compile_plan
from hsap_hf.planner.cost import best_num_messages

CPU = torch.device("cpu")
lengths_of_packs = st.lists(st.one_of(st.integers(1, 9), st.integers(10, 400)), min_size=1, max_size=30)


def every_slot(lengths, context_size, window, num_messages=1):
    """Tables and tokens of each slot of the pack's plan."""
    plan = compile_plan(lengths, context_size)
    for slot in range(context_size):
        tables = compile_tables(plan, slot, window, CPU, num_messages=num_messages)
        yield tables, plan.tokens(slot)


def parts_of(tables):
    """Of all remote calls, then the local one."""
    far = [part for remote in tables.remotes for part, _ in remote.calls]
    return [*far, *tables.local]


def borrowed_rows(keys):
    """The rows of a merged call's message, in the order of its segments."""
    if isinstance(keys, slice):
        return list(range(keys.start, keys.stop))
    return (keys.rows - keys.num_own).tolist()


@settings(max_examples=80, deadline=None)
@given(lengths_of_packs, st.integers(2, 6), st.integers(1, 500))
def test_apart_splits_the_rows_into_two_runs_of_neighbours(lengths, context_size, window):
    """So that both calls read queries and write results in place."""
    for tables, tokens in every_slot(lengths, context_size, window):
        parts = parts_of(tables)
        assert [row for part in parts for row in range(part.start, part.stop)] == list(range(tokens))
        assert len(parts) <= 2
        assert len(tables.remotes) <= 1


@settings(max_examples=80, deadline=None)
@given(lengths_of_packs, st.integers(2, 6), st.integers(1, 3))
def test_merged_leaves_every_row_to_the_local_call_and_reads_borrowed_keys_only(lengths, context_size, num_messages):
    """Those of each message in a call of its own."""
    for tables, tokens in every_slot(lengths, context_size, None, num_messages):
        assert [(part.start, part.stop) for part in tables.local] == [(0, tokens)] * (tokens > 0)
        assert len(tables.remotes) == len(tables.exchange.messages)
        for remote, message in zip(tables.remotes, tables.exchange.messages, strict=True):
            assert remote.borrowed == message.borrowed
            needed = [set(borrowed_rows(keys)) for _, keys in remote.calls]
            assert set().union(*needed) == set(range(sum(message.receive_rows)))
            assert sum(map(len, needed)) == sum(message.receive_rows)  # no key in two calls


@pytest.mark.parametrize("name", ["one_long", "hybrid", "longtail"])
@pytest.mark.parametrize("size", [65_536, 131_072])
def test_two_slots_attend_to_borrowed_keys_as_they_arrive(name, size):
    lengths = mixes(size)[f"{name}_{size // 1024}k"]
    calls = [call for tables, _ in every_slot(lengths, 2, None) for remote in tables.remotes for call in remote.calls]
    assert calls
    assert [part.segments.k_lengths for part, keys in calls if not isinstance(keys, slice)] == []


def test_two_calls_of_one_message_read_their_own_keys_of_it():
    [first, _] = (tables for tables, _ in every_slot(mixes(131_072)["hybrid_128k"], 2, None))
    assert [keys for _, keys in first.remotes[0].calls] == [slice(0, 34_891), slice(34_891, 35_738)]


@settings(max_examples=80, deadline=None)
@given(lengths_of_packs, st.integers(2, 6), st.integers(1, 3))
def test_every_segment_gets_the_keys_of_its_document_before_it(lengths, context_size, num_messages):
    """Those that others have, once each, over all messages; gathered or as they arrive."""
    plan = compile_plan(lengths, context_size)
    for slot, pieces in enumerate(plan.slots):
        tables = compile_tables(plan, slot, None, CPU, num_messages=num_messages)
        arrived = [(fetch.doc, row) for fetch in tables.exchange.fetched for row in range(fetch.start, fetch.stop)]
        seen = {}
        for remote in tables.remotes:
            for part, keys in remote.calls:
                found = [arrived[remote.borrowed.start + row] for row in borrowed_rows(keys)]
                at = part.start
                for rows, count in zip(part.segments.q_lengths, part.segments.k_lengths, strict=True):
                    seen.setdefault((at, rows), []).extend(found[:count])
                    found, at = found[count:], at + rows
                assert not found
        row, expected = 0, {}
        for doc, start, stop in pieces:
            before = set(range(start)) - {key for piece in pieces if piece.doc == doc for key in range(*piece[1:])}
            if before:
                expected[row, stop - start] = [(doc, key) for key in sorted(before)]
            row += stop - start
        assert {segment: sorted(keys) for segment, keys in seen.items()} == expected


def test_keys_of_several_slots_are_taken_as_they_arrive_where_all_rows_see_them():
    """Slot 2 has the end of the document, slot 1 what is in the middle of what slot 0 has."""
    pieces = ((Piece(0, 0, 9), Piece(0, 20, 31)), (Piece(0, 9, 20),), (Piece(0, 31, 40),))
    [(part, keys)] = compile_tables(Plan((40,), 3, pieces), 2, None, CPU).remotes[0].calls
    assert part.segments.k_lengths == (31,)
    assert keys == slice(0, 31)


@pytest.mark.parametrize(
    ("lengths", "context_size", "near_slots", "num_messages"),
    [
        (mixes(65_536)["hybrid_64k"], 2, None, 1),  # NVLink: attention to a slot's own keys is longer
        (mixes(65_536)["one_long_64k"], 4, None, 1),
        (mixes(65_536)["one_long_64k"], 4, 1, 2),
        (mixes(131_072)["one_long_128k"], 4, 1, 1),  # which was a point slower in two
        ([524_288], 64, 1, 4),  # a network: keys take far longer than a slot's own attention
        ([524_288], 64, 64, 1),
        ([2_048] * 32, 4, 1, 1),  # nothing travels
    ],
)
def test_keys_come_in_several_messages_where_own_attention_is_shorter(lengths, context_size, near_slots, num_messages):
    assert best_num_messages(compile_plan(lengths, context_size).load(near_slots)) == num_messages


def test_ranks_that_share_heads_have_less_to_hide_a_message_behind():
    plan = compile_plan(mixes(65_536)["longtail_64k"], 4)
    assert [best_num_messages(plan.load(1), ulysses_size) for ulysses_size in (1, 5, 8)] == [2, 2, 1]


def test_only_layers_with_a_window_are_apart_and_have_one_message():
    plan = compile_plan([900, 40], 3)
    tables = compile_tables(plan, 0, 50, CPU, num_messages=4)
    assert tables.apart
    assert len(tables.exchange.messages) == 1
    assert not compile_tables(plan, 0, None, CPU, num_messages=4).apart


def test_mixes_hold_the_tokens_they_are_named_after():
    for tokens in (65_536, 100_000):
        assert {sum(lengths) for lengths in mixes(tokens).values()} == {tokens}
    assert set(mixes(65_536)) & set(mixes(66_000)) == set()
