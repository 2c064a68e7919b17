"""Attention over N ranks in this process is the dense reference: outputs and all gradients."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback_attention import by_loopback, by_reference, largest_difference, random_pack, relative_errors

from hsap_hf.attention import Call, attend, choose_kernel, compile_tables
from hsap_hf.comm.loopback import loopback_grid
from hsap_hf.comm.ulysses import share_heads
from hsap_hf.planner import Piece, Plan, compile_plan, fetches

documents = st.lists(st.one_of(st.just(1), st.integers(1, 12), st.integers(13, 90)), min_size=1, max_size=6)
groups = st.tuples(st.integers(1, 8), st.sampled_from([1, 1, 2, 4]))
heads = st.sampled_from([(4, 1), (4, 2), (4, 4), (8, 2)])
windows = st.one_of(st.none(), st.integers(1, 100))
both_forms = pytest.mark.parametrize("window", [None, 10_000], ids=["merged", "apart"])
"""Of the tables; the window hides nothing, so that calls are as large in both."""


@settings(max_examples=60, deadline=None)
@given(documents, groups, heads, windows, st.booleans(), st.integers(0, 99))
@pytest.mark.parametrize("kernel", ["sdpa", "dense"])
def test_float64_is_the_reference_to_1e_10(kernel, lengths, group, heads, window, sinks, seed):
    pack = random_pack(lengths, heads=heads[0], kv_heads=heads[1], window=window, sinks=sinks, seed=seed)
    got, _ = by_loopback(pack, *group, kernel=kernel)
    assert largest_difference(got, by_reference(pack)) <= 1e-10


@settings(max_examples=40, deadline=None)
@given(documents, groups, windows, st.booleans(), st.sampled_from([1, 5, 16]), st.sampled_from([None, 0.5, 30.0]))
def test_softcap_and_values_of_another_width_are_exact(lengths, group, window, sinks, value_dim, softcap):
    pack = random_pack(lengths, value_dim=value_dim, window=window, softcap=softcap, sinks=sinks)
    got, _ = by_loopback(pack, *group, kernel="dense")
    assert largest_difference(got, by_reference(pack)) <= 1e-10


@pytest.mark.parametrize("group", [(8, 1), (4, 2), (3, 4), (1, 4)])
@pytest.mark.parametrize("lengths", [[1], [3], [1, 1, 1, 1, 1], [257], [2, 1, 120]])
def test_one_document_and_more_ranks_than_tokens_or_documents(lengths, group):
    pack = random_pack(lengths, sinks=True)
    got, _ = by_loopback(pack, *group)
    assert largest_difference(got, by_reference(pack)) <= 1e-10


@pytest.mark.parametrize("kernel", ["sdpa", "dense"])
@pytest.mark.parametrize("num_messages", [1, 2])
def test_two_calls_that_read_and_write_borrowed_rows_in_place(kernel, num_messages):
    pack = random_pack([441, 117, 73, 44, 144, 27, 119])
    calls = compile_tables(compile_plan(pack.lengths, 2), 1, None, torch.device("cpu")).remotes[0].calls
    assert [keys for _, keys in calls] == [slice(0, 201), slice(201, 220)]
    got, _ = by_loopback(pack, 2, kernel=kernel, num_messages=num_messages)
    assert largest_difference(got, by_reference(pack)) <= 1e-10


@pytest.mark.parametrize("group", [(1, 3), (2, 3), (5, 3), (4, 9), (7, 1)])
def test_nine_heads_with_three_key_value_heads(group):
    """The shape of SmolLM2, which no power of two divides."""
    pack = random_pack([70, 1, 33, 5], heads=9, kv_heads=3)
    got, _ = by_loopback(pack, *group)
    assert largest_difference(got, by_reference(pack)) <= 1e-10


@pytest.mark.parametrize("kernel", ["sdpa", "dense"])
@pytest.mark.parametrize("group", [(2, 1), (4, 1), (8, 1), (2, 2), (1, 4)])
def test_float32_is_the_reference_to_5e_6(kernel, group):
    pack = random_pack([700, 1, 90, 260, 3, 17], dtype=torch.float32)
    got, _ = by_loopback(pack, *group, kernel=kernel)
    want = by_reference(pack)
    scaled = [(x / exact.abs().max(), exact / exact.abs().max()) for x, exact in zip(got, want, strict=True)]
    assert largest_difference(*zip(*scaled, strict=True)) <= 5e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("group", [(2, 1), (4, 1), (16, 1), (4, 2), (1, 4)])
@pytest.mark.parametrize("lengths", [[900], [600, 1, 40, 3, 250], [31] * 24])
@both_forms
def test_half_precision_errs_at_most_twice_as_much_as_one_device(window, dtype, group, lengths):
    pack = random_pack(lengths, heads=8, kv_heads=4, dim=16, dtype=dtype, window=window)
    want = by_reference(pack)
    alone = relative_errors(by_loopback(pack, 1)[0], want)
    for ours, single in zip(relative_errors(by_loopback(pack, *group)[0], want), alone, strict=True):
        assert 0 < ours <= 2 * single


@settings(max_examples=60, deadline=None)
@given(st.data(), windows)
def test_any_placement_of_the_rows_is_exact(data, window):
    """Attention must not rely on how our planner cuts: here every row has an arbitrary owner."""
    lengths, slots = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=4)), data.draw(st.integers(1, 4))
    owners = [[data.draw(st.integers(0, slots - 1)) for _ in range(length)] for length in lengths]
    placed = []
    for slot in range(slots):
        pieces = []
        for doc, of_rows in enumerate(owners):
            for row, owner in enumerate(of_rows):
                if owner != slot:
                    continue
                if pieces and pieces[-1].doc == doc and pieces[-1].stop == row:
                    pieces[-1] = Piece(doc, pieces[-1].start, row + 1)
                else:
                    pieces.append(Piece(doc, row, row + 1))
        placed.append(tuple(pieces))
    pack = random_pack(lengths, window=window)
    options = {"num_messages": data.draw(st.integers(1, 3)), "keep_borrowed": data.draw(st.booleans())}
    with patch("hsap_hf.comm.exchange._GRAIN", 1):  # else so few rows would all go in one message
        got, _ = by_loopback(pack, slots, plan=Plan(tuple(lengths), slots, tuple(placed)), **options)
    assert largest_difference(got, by_reference(pack)) <= 1e-10


@pytest.mark.parametrize("group", [(2, 1), (5, 1), (3, 2)])
@pytest.mark.parametrize(("window", "num_messages"), [(None, 1), (None, 3), (20, 2)])
def test_borrowed_keys_that_are_fetched_again_give_the_same_bits(group, window, num_messages):
    """And arrive once more; their gradients still travel once."""
    pack = random_pack([70, 1, 33, 5, 900], window=window)
    kept, traffic = by_loopback(pack, *group, num_messages=num_messages)
    again, more = by_loopback(pack, *group, keep_borrowed=False, num_messages=num_messages)
    assert largest_difference(kept, by_reference(pack)) <= 1e-10
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))
    plan, slots = compile_plan(pack.lengths, group[0]), range(0, len(more), group[1])
    for slot, rank in enumerate(slots):
        fetched = sum(fetch.stop - fetch.start for fetch in fetches(plan, slot, window))
        assert more[rank].rows == traffic[rank].rows + fetched
    assert sum(traffic[rank].rows for rank in slots) > 0


def alone(pack, kernel):
    """(leaves of autograd, the output, the pack's row of each of theirs) of one rank."""
    _, context, ulysses = loopback_grid(1, 1)[0]
    device, dtype = pack.q.device, str(pack.q.dtype).removeprefix("torch.")
    plan = compile_plan(pack.lengths, 1)
    order = [doc for doc, _, _ in plan.slots[0]]
    rows = torch.cat([torch.arange(sum(pack.lengths)).split(pack.lengths)[doc] for doc in order])
    tables = compile_tables(plan, 0, pack.scores.window, device)
    chosen = choose_kernel(kernel, pack.scores, 8, 8, dtype, "cpu")
    call = Call(tables, context, ulysses, [len(rows)], share_heads(4, 2, 1, device), chosen, pack.scores)
    leaves = [x[rows].requires_grad_() for x in (pack.q, pack.k, pack.v)]
    leaves += [] if pack.sinks is None else [pack.sinks.clone().requires_grad_()]
    return leaves, attend(call, *leaves), rows


@pytest.mark.parametrize("sinks", [False, True])
def test_autograd_gives_what_forward_and_backward_by_hand_give(sinks):
    pack = random_pack([9, 1, 4], window=5, sinks=sinks)
    leaves, out, rows = alone(pack, "sdpa")
    grads = torch.autograd.grad(out, leaves, pack.grad[rows])
    got = [torch.empty_like(x).index_copy_(0, rows, x) for x in (out.detach(), *grads[:3])]
    assert largest_difference([*got, *grads[3:]], by_reference(pack)) <= 1e-10


@pytest.mark.parametrize("kernel", ["sdpa", "dense"])
def test_autocast_around_it_changes_no_bit(kernel):
    pack, found = random_pack([9, 1, 4], dtype=torch.float32), []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            leaves, out, rows = alone(pack, kernel)
            found.append((out, *torch.autograd.grad(out, leaves, pack.grad[rows])))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("kernel", ["sdpa", "dense"])
def test_gradients_of_gradients_are_refused_not_wrong(kernel):
    leaves, out, _ = alone(random_pack([9, 1, 4]), kernel)
    first = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first[0].square().sum().backward()
