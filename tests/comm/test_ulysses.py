"""Ranks of a slot trade heads for tokens: every query head meets its own key-value head, and nothing is lost."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback_mesh import loopback_meshes, outcomes

from hsap_hf.comm.ulysses import gather_heads, scatter_heads, share_heads, sum_replicas
from hsap_hf.errors import ConfigError

CPU = torch.device("cpu")


@st.composite
def head_shapes(draw):
    """(heads, kv_heads, size): any grouping, any size that divides the query heads."""
    kv_heads, repeats = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    heads = kv_heads * repeats
    return heads, kv_heads, draw(st.sampled_from([u for u in range(1, 9) if heads % u == 0]))


shapes = st.one_of(head_shapes(), st.sampled_from([(9, 3, 3), (9, 3, 9), (8, 2, 4), (8, 2, 8), (12, 4, 3), (6, 4, 6)]))
shapes = shapes.filter(lambda of: of[0] % of[1] == 0)


def traded(heads, kv_heads, rows, body):
    size = len(rows)
    share = share_heads(heads, kv_heads, size, CPU)
    return outcomes(loopback_meshes(1, size), lambda mesh: body(mesh.ulysses, share))


@settings(max_examples=80, deadline=None)
@given(shapes, st.data())
def test_every_query_head_meets_its_own_key_value_head(shape, data):
    heads, kv_heads, size = shape
    rows = data.draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
    edges = torch.tensor([0, *rows]).cumsum(0).tolist()
    token = torch.arange(sum(rows), dtype=torch.float64)

    def named(count):  # entry [t, n] is (t, n)
        head = torch.arange(count, dtype=torch.float64)
        return torch.stack(torch.meshgrid(token, head, indexing="ij"), -1)

    q, kv = named(heads), named(kv_heads)

    def body(axis, share):
        mine = slice(edges[axis.rank], edges[axis.rank + 1])
        return scatter_heads(q[mine], rows, axis), scatter_heads(kv[mine], rows, axis, share.kv_index)

    seen = []
    for q_part, kv_part in traded(heads, kv_heads, rows, body):
        assert q_part.shape[:2] == (sum(rows), heads // size)
        assert q_part[..., 0].tolist() == [[t] * q_part.shape[1] for t in range(sum(rows))]
        group = q_part.shape[1] // kv_part.shape[1]
        partner = kv_part.repeat_interleave(group, 1)
        assert torch.equal(partner[..., 1], q_part[..., 1].div(heads // kv_heads, rounding_mode="floor"))
        assert torch.equal(partner[..., 0], q_part[..., 0])
        seen += q_part[:1, :, 1].flatten().tolist()
    assert sorted(seen) == (list(range(heads)) if sum(rows) else [])


@settings(max_examples=80, deadline=None)
@given(shapes, st.data())
def test_trading_and_trading_back_are_adjoint_for_queries_and_for_replicated_keys(shape, data):
    heads, kv_heads, size = shape
    rows = data.draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))

    def random(*shape):
        return torch.randn(*shape, 2, generator=draw, dtype=torch.float64)

    share = share_heads(heads, kv_heads, size, CPU)
    kv_rank = kv_heads // size if share.kv_index is None else len(share.kv_index) // size
    xs = [(random(n, heads), random(n, kv_heads)) for n in rows]
    ys = [(random(sum(rows), heads // size), random(sum(rows), kv_rank)) for _ in rows]

    def body(axis, share):
        (q, kv), (q_grad, kv_grad) = xs[axis.rank], ys[axis.rank]
        there = (scatter_heads(q, rows, axis) * q_grad).sum()
        back = (q * gather_heads(q_grad, rows, axis)).sum()
        kv_there = (scatter_heads(kv, rows, axis, share.kv_index) * kv_grad).sum()
        kv_back = (kv * sum_replicas(gather_heads(kv_grad, rows, axis), share)).sum()
        return torch.stack([there, back, kv_there, kv_back])

    there, back, kv_there, kv_back = torch.stack(traded(heads, kv_heads, rows, body)).sum(0).tolist()
    assert there == pytest.approx(back, abs=1e-10)
    assert kv_there == pytest.approx(kv_back, abs=1e-10)


@settings(max_examples=40, deadline=None)
@given(head_shapes(), st.data())
def test_trading_back_inverts_trading(shape, data):
    heads, kv_heads, size = shape
    rows = data.draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
    xs = [torch.randn(n, heads, 2) for n in rows]
    back = traded(
        heads, kv_heads, rows, lambda axis, _: gather_heads(scatter_heads(xs[axis.rank], rows, axis), rows, axis)
    )
    assert all(torch.equal(x, y) for x, y in zip(xs, back, strict=True))
    assert all(y.is_contiguous() for y in back)  # models view what attention gives


def test_replicas_of_one_head_are_summed_in_float32():
    share = share_heads(4, 1, 4, CPU)
    copies = torch.tensor([256.0, 0.5, 0.5, 0.0], dtype=torch.bfloat16).reshape(1, 4, 1)
    assert sum_replicas(copies, share).item() == 257.0


@pytest.mark.parametrize(("heads", "size", "fits"), [(9, 2, "[1, 3, 9]"), (4, 8, "[1, 2, 4]"), (32, 5, "16, 32]")])
def test_a_size_that_does_not_divide_the_heads_is_refused_with_those_that_do(heads, size, fits):
    with pytest.raises(ConfigError) as caught:
        share_heads(heads, 1, size, CPU)
    text = str(caught.value)
    assert f"ulysses_size ({size}) does not divide the model's {heads} query heads" in text
    assert fits in text
    assert "context_size, which has no rule about heads" in text
