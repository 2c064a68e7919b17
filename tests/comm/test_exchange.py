"""Keys travel to the slots that need them, and their gradients home: two maps that are each other's adjoint."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback_mesh import loopback_meshes, outcomes

from hsap_hf.comm.exchange import compile_exchange, fetch_keys, return_key_grads
from hsap_hf.comm.pairs import split
from hsap_hf.comm.rows import RowSums, sum_rows
from hsap_hf.planner import Piece, Plan, compile_plan, fetches

CPU = torch.device("cpu")
packs = st.lists(st.one_of(st.just(1), st.integers(1, 30), st.integers(40, 120)), min_size=1, max_size=6)
windows = st.one_of(st.none(), st.integers(1, 60))


def slot_rows(plan, slot):
    return [(doc, row) for doc, start, stop in plan.slots[slot] for row in range(start, stop)]


def there(borrowed, arriving):
    """The borrowed rows, all messages waited for."""
    for message in arriving:
        message.wait()
    return borrowed


@settings(max_examples=60, deadline=None)
@given(packs, st.integers(1, 8), windows, st.integers(1, 4))
def test_a_slot_receives_exactly_the_rows_of_its_fetches(lengths, context_size, window, num_messages):
    """In the order `fetched` tells: by sender, then as the receiver's own rows hold the documents."""
    plan = compile_plan(lengths, context_size)

    def rank(mesh):
        exchange = compile_exchange(plan, mesh.context.rank, window, CPU, num_messages)
        rows = torch.tensor(slot_rows(plan, mesh.context.rank), dtype=torch.float64).reshape(-1, 1, 2)
        key, value = rows.split(1, -1)
        borrowed = there(*fetch_keys(key, value, exchange, mesh.context))
        return borrowed[:, 0].tolist(), exchange.fetched, mesh.context.traffic.rows

    for slot, (received, fetched, counted) in enumerate(outcomes(loopback_meshes(context_size), rank)):
        wanted = fetches(plan, slot, window)
        assert received == [[f.doc, row] for f in fetched for row in range(f.start, f.stop)]
        assert counted == sum(f.stop - f.start for f in wanted)
        owed = sorted((f.from_slot, f.doc, row) for f in wanted for row in range(f.start, f.stop))
        assert sorted((f.from_slot, f.doc, row) for f in fetched for row in range(f.start, f.stop)) == owed
        place = {piece.doc: at for at, piece in reversed(list(enumerate(plan.slots[slot])))}
        for peer in range(context_size):  # over all messages
            of_peer = [(place[f.doc], f.start) for f in fetched if f.from_slot == peer]
            assert of_peer == sorted(of_peer)


@given(packs, st.integers(1, 8), windows)
def test_a_plan_of_plain_tuples_exchanges_the_same(lengths, context_size, window):
    plan = compile_plan(lengths, context_size)
    plain = Plan(plan.lengths, context_size, tuple(plan.slots))
    for slot in range(context_size):
        assert list(plain.cut_pieces(slot)) == list(plan.cut_pieces(slot))
        ours, theirs = (compile_exchange(each, slot, window, CPU) for each in (plain, plan))
        assert ours.fetched == theirs.fetched
        assert ours.send_order.tolist() == theirs.send_order.tolist()


def test_messages_share_what_two_slots_exchange_in_whole_tiles():
    plan = Plan((4_096,), 2, ((Piece(0, 0, 2_000),), (Piece(0, 2_000, 4_096),)))
    receiver, sender = (compile_exchange(plan, slot, None, CPU, 4) for slot in (1, 0))
    assert [message.receive_rows for message in receiver.messages] == [[512, 0], [512, 0], [512, 0], [464, 0]]
    assert [message.send_rows for message in sender.messages] == [[0, 512], [0, 512], [0, 512], [0, 464]]
    assert [f.start for f in receiver.fetched] == [0, 512, 1_024, 1_536]


@settings(max_examples=60, deadline=None)
@given(packs, st.integers(2, 8), windows, st.integers(1, 3), st.integers(0, 10))
def test_fetching_and_returning_are_adjoint(lengths, context_size, window, num_messages, seed):
    """<fetch(x), y> == <x, return(y)>, summed over ranks."""
    plan = compile_plan(lengths, context_size)
    draw = torch.Generator().manual_seed(seed)
    xs = [torch.randn(plan.tokens(slot), 2, 3, generator=draw, dtype=torch.float64) for slot in range(context_size)]
    exchanges = [compile_exchange(plan, slot, window, CPU, num_messages) for slot in range(context_size)]
    ys = [torch.randn(e.num_borrowed, 2, 3, generator=draw, dtype=torch.float64) for e in exchanges]

    def rank(mesh):
        slot = mesh.context.rank
        x, y, exchange = xs[slot], ys[slot], exchanges[slot]
        fetched = there(*fetch_keys(x[..., :2], x[..., 2:], exchange, mesh.context))
        summed = torch.zeros_like(x)
        sum_rows(split(summed, 2), split(returned(y, exchange, mesh.context), 2), exchange.returns)
        return (fetched * y).sum(), (x * summed).sum()

    forth, back = zip(*outcomes(loopback_meshes(context_size), rank), strict=True)
    assert torch.stack(forth).sum().item() == pytest.approx(torch.stack(back).sum().item(), abs=1e-10)


def returned(grads, exchange, axis):
    """Gradients of the rows that were sent, all messages home."""
    home = grads.new_empty((len(exchange.send_order), *grads.shape[1:]))
    for pending in [return_key_grads(grads, home, message, axis) for message in exchange.messages]:
        pending.wait()
    return home


def test_a_row_that_several_slots_borrow_gets_the_sum_of_their_gradients():
    """Row 0 of the document is needed by both other slots: 1 + 1, not 1."""
    plan = Plan((3,), 3, ((Piece(0, 0, 1),), (Piece(0, 1, 2),), (Piece(0, 2, 3),)))

    def rank(mesh):
        exchange = compile_exchange(plan, mesh.context.rank, None, CPU)
        ones = torch.ones(exchange.num_borrowed, 1, 2)
        summed = torch.zeros(1, 1, 2)
        sum_rows(split(summed, 1), split(returned(ones, exchange, mesh.context), 1), exchange.returns)
        return summed.flatten().tolist()

    assert outcomes(loopback_meshes(3), rank) == [[2.0, 2.0], [1.0, 1.0], [0.0, 0.0]]


def test_a_pack_of_whole_documents_posts_no_collective():
    plan = compile_plan([64] * 8, 4)
    assert not plan.cut_documents

    class NoAxis:
        def all_to_all(self, *message):
            raise AssertionError(f"a collective was posted: {message}")

    for slot in range(4):
        exchange = compile_exchange(plan, slot, None, CPU, num_messages=2)
        kv = torch.ones(plan.tokens(slot), 1, 2)
        assert exchange.silent
        assert len(there(*fetch_keys(kv, kv, exchange, NoAxis()))) == 0
        assert len(returned(kv[:0], exchange, NoAxis())) == 0


def test_half_precision_gradients_are_summed_in_float32():
    """bfloat16 counts in steps of 2 from 256 on: 256 + 1 + 1 is 258 in float32 and stays 256 added one by one."""
    sums = RowSums(torch.tensor([0, 0]), 1)
    total, ones = torch.full((1, 1, 1), 256.0).bfloat16(), torch.ones(2, 1, 1).bfloat16()
    sum_rows((total, total.clone()), (ones, ones), sums)
    assert total.item() == 258.0


@given(st.lists(st.integers(0, 5), max_size=12))
def test_rows_are_added_at_their_targets(targets):
    sums = RowSums(torch.tensor(targets, dtype=torch.int64), 6)
    source = torch.arange(1.0, len(targets) + 1).reshape(-1, 1, 1)
    want = [sum(i + 1.0 for i, target in enumerate(targets) if target == row) for row in range(6)]
    added, written = (tuple(torch.full((6, 1, 1), 7.0) for _ in "kv") for _ in range(2))
    sum_rows(added, (source, source), sums)
    assert [x.flatten().tolist() for x in added] == [[7.0 + amount for amount in want]] * 2
    sum_rows(written, (source, source), sums, add=False)
    assert written[0].flatten().tolist() == [amount or 7.0 for amount in want]  # rows without a source are left alone
    tail = tuple(torch.zeros(2, 1, 1) for _ in "kv")
    sum_rows(tail, (source, source), sums, first=4)
    assert tail[1].flatten().tolist() == want[4:]
    sources, edges = sums.grouped
    assert [sources[a:b].tolist() for a, b in pairwise(edges)] == [
        [i for i, target in enumerate(targets) if target == row] for row in range(6)
    ]
