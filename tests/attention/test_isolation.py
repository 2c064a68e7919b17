"""Documents never see each other, and only the keys of cut documents travel."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback_attention import by_loopback, random_pack

from hsap_hf.planner import compile_plan, fetches, sends

documents = st.lists(st.one_of(st.just(1), st.integers(1, 60)), min_size=2, max_size=6)
groups = st.tuples(st.integers(1, 8), st.sampled_from([1, 2, 4]))
windows = st.one_of(st.none(), st.integers(1, 40))
kernels = pytest.mark.parametrize("kernel", ["sdpa", "dense"])


def rows_of(pack, document):
    start = sum(pack.lengths[:document])
    return slice(start, start + pack.lengths[document])


def others(pack, document):
    keep = torch.ones(len(pack.q), dtype=torch.bool)
    keep[rows_of(pack, document)] = False
    return keep


@kernels
@settings(max_examples=30, deadline=None)
@given(documents, groups, windows, st.data())
def test_perturbing_one_document_leaves_every_other_output_bitwise_equal(kernel, lengths, group, window, data):
    document = data.draw(st.integers(0, len(lengths) - 1))
    pack, other = (random_pack(lengths, dtype=torch.float32, seed=seed, window=window) for seed in (1, 2))
    before, _ = by_loopback(pack, *group, kernel=kernel)
    rows, keep = rows_of(pack, document), others(pack, document)
    for ours, theirs in ((pack.q, other.q), (pack.k, other.k), (pack.v, other.v), (pack.grad, other.grad)):
        ours[rows] = theirs[rows]
    after, _ = by_loopback(pack, *group, kernel=kernel)
    for old, new in zip(before, after, strict=True):  # the output and the gradients of q, k, v
        assert torch.equal(old[keep], new[keep])
    assert not torch.equal(before[0][rows], after[0][rows])


@kernels
@settings(max_examples=30, deadline=None)
@given(documents, groups, windows, st.data())
def test_the_gradient_of_one_documents_loss_at_other_documents_is_exactly_zero(kernel, lengths, group, window, data):
    document = data.draw(st.integers(0, len(lengths) - 1))
    pack = random_pack(lengths, dtype=torch.float32, window=window)
    keep = others(pack, document)
    pack.grad[keep] = 0.0
    _, *grads = by_loopback(pack, *group, kernel=kernel)[0]
    for grad in grads:
        assert torch.count_nonzero(grad[keep]) == 0
    assert torch.count_nonzero(grads[2][~keep]) > 0


@kernels
def test_a_query_sees_no_later_token_of_its_own_document(kernel):
    """The gradient of row p's output at keys and values behind p is exactly 0, and at row p it is not."""
    for row in (0, 13, 63, 99):
        pack = random_pack([100, 20], dtype=torch.float32)
        keep = torch.arange(120) == row
        pack.grad[~keep] = 0.0
        _, grad_q, grad_k, grad_v = by_loopback(pack, 3, kernel=kernel)[0]
        assert torch.count_nonzero(grad_q[~keep]) == 0
        assert torch.count_nonzero(grad_k[row + 1 :]) == torch.count_nonzero(grad_v[row + 1 :]) == 0
        assert all(torch.count_nonzero(grad_v[seen]) for seen in range(row + 1))


@settings(max_examples=40, deadline=None)
@given(documents, groups, windows)
def test_counted_rows_are_the_fetches_of_the_plan_and_their_gradients(lengths, group, window):
    plan = compile_plan(lengths, group[0])
    _, traffic = by_loopback(random_pack(lengths, window=window), *group, plan=plan)
    for number, counted in enumerate(traffic):
        slot = number // group[1]
        there = sum(fetch.stop - fetch.start for fetch in fetches(plan, slot, window))
        back = sum(send.stop - send.start for send in sends(plan, slot, window))
        assert counted.rows == there + back
        kv_heads_of_rank = max(1, 2 // group[1])
        assert counted.num_bytes == counted.rows * kv_heads_of_rank * 16 * 8  # key and value, 8 float64 each


@pytest.mark.parametrize("group", [(4, 1), (2, 2), (8, 1)])
def test_a_pack_without_cut_documents_moves_nothing(group):
    lengths = [24] * 16
    assert not compile_plan(lengths, group[0]).cut_documents
    _, traffic = by_loopback(random_pack(lengths), *group)
    assert [(counted.rows, counted.num_bytes) for counted in traffic] == [(0, 0)] * len(traffic)


def test_a_window_moves_fewer_keys_than_full_attention():
    full, windowed = (
        sum(counted.rows for counted in by_loopback(random_pack([400], window=window), 4)[1]) for window in (None, 8)
    )
    assert 0 < windowed < full / 4
