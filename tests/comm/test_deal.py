"""Every brought token reaches exactly the rank that the plan names, and comes back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback_mesh import loopback_meshes, outcomes

from hsap_hf.comm.deal import compile_deal, rank_rows
from hsap_hf.comm.spans import offsets, span_rows
from hsap_hf.planner import compile_plan

CPU = torch.device("cpu")


@st.composite
def brought_batches(draw):
    """(context_size, ulysses_size, lengths that every group rank brought)."""
    context, ulysses = draw(st.integers(1, 5)), draw(st.sampled_from([1, 1, 2, 3]))
    lengths = st.lists(st.one_of(st.just(1), st.integers(1, 40)), max_size=4)
    ranks = context * ulysses
    return context, ulysses, draw(st.lists(lengths, min_size=ranks, max_size=ranks))


def deal_everything(context, ulysses, brought):
    """(wanted, dealt, returned) per rank; a token is its (document, row)."""
    lengths = [length for of_rank in brought for length in of_rank]
    plan = compile_plan(lengths, context)
    tokens, document = [], 0
    for of_rank in brought:
        rows = [[document + i, row] for i, length in enumerate(of_rank) for row in range(length)]
        tokens.append(torch.tensor(rows, dtype=torch.int64).reshape(-1, 2))
        document += len(of_rank)

    def rank(mesh):
        me = mesh.group.rank
        deal = compile_deal(plan, [len(of_rank) for of_rank in brought], ulysses, me, CPU)
        dealt = deal.to_slots(mesh.group, tokens[me])
        return dealt, deal.to_owners(mesh.group, dealt)

    results = outcomes(loopback_meshes(context, ulysses), rank)
    wanted = []
    for pieces in plan.slots:
        rows = [[doc, row] for doc, start, stop in pieces for row in range(start, stop)]
        slot = torch.tensor(rows, dtype=torch.int64).reshape(-1, 2)
        wanted += torch.split(slot, rank_rows(len(rows), ulysses))
    return tokens, wanted, [dealt for dealt, _ in results], [returned for _, returned in results]


@settings(max_examples=80, deadline=None)
@given(brought_batches())
def test_every_token_reaches_the_rank_the_plan_names_and_comes_back(case):
    tokens, wanted, dealt, returned = deal_everything(*case)
    for want, got in zip(wanted, dealt, strict=True):
        assert got.tolist() == want.tolist()
    for own, back in zip(tokens, returned, strict=True):
        assert back.tolist() == own.tolist()
    assert sorted(torch.cat(dealt).tolist()) == sorted(torch.cat(tokens).tolist())


@pytest.mark.parametrize(
    ("context", "ulysses", "brought"),
    [
        (4, 1, [[1], [], [], []]),  # more ranks than tokens
        (2, 2, [[], [], [], []]),  # nobody brings anything
        (4, 1, [[], [500], [], [1, 1, 1]]),
        (2, 3, [[7], [], [2], [1], [], [1]]),
        (1, 4, [[3], [3], [], [3]]),
    ],
)
def test_empty_batches_and_more_ranks_than_tokens_are_legal(context, ulysses, brought):
    tokens, wanted, dealt, returned = deal_everything(context, ulysses, brought)
    assert [len(x) for x in dealt] == [len(x) for x in wanted]
    assert [x.tolist() for x in returned] == [x.tolist() for x in tokens]


def test_a_group_of_one_keeps_its_own_order():
    _, _, (dealt,), _ = deal_everything(1, 1, [[3, 1, 2]])
    assert sorted(dealt.tolist()) == [[0, 0], [0, 1], [0, 2], [1, 0], [2, 0], [2, 1]]


@given(st.integers(0, 1000), st.integers(1, 9))
def test_ulysses_ranks_hold_equal_rows_to_one(tokens, ulysses):
    rows = rank_rows(tokens, ulysses)
    assert sum(rows) == tokens
    assert max(rows) - min(rows) <= 1


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), max_size=8))
def test_span_rows_is_the_concatenation_of_ranges(spans):
    starts, lengths = np.array(spans, dtype=np.int64).reshape(-1, 2).T
    assert span_rows(starts, lengths).tolist() == [row for start, n in spans for row in range(start, start + n)]
    assert offsets(lengths).tolist() == [sum(n for _, n in spans[:i]) for i in range(len(spans))]
