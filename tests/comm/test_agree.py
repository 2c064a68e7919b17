"""All ranks learn all lengths; all go on together, or all fail with one text."""

import time

import pytest
from loopback_mesh import loopback_meshes, outcomes

from hsap_hf.comm import announce, confirm, gather_batches
from hsap_hf.errors import PackError, RankMismatchError


@pytest.mark.parametrize("counts", [(0, 0), (1, 56), (57, 0), (56, 57, 55), (3, 200, 0, 58)])
def test_every_rank_learns_every_length_however_many_documents_there_are(counts):
    brought = [[100 * rank + i + 1 for i in range(count)] for rank, count in enumerate(counts)]

    def rank(mesh):
        me = mesh.group.rank
        return gather_batches(mesh, brought[me], [me, -7], failed=me == 1)

    for gathered in outcomes(loopback_meshes(len(counts)), rank):
        assert gathered.lengths == brought
        assert gathered.facts == [[r, -7] for r in range(len(counts))]
        assert gathered.failed == [1]


def test_ranks_that_agree_go_on():
    meshes = loopback_meshes(2, 2, num_replicas=2)
    plans = [5, 1 << 62]  # every replica has its own pack
    assert outcomes(meshes, lambda mesh: confirm(mesh, None, plans[mesh.replica])) == [None] * 8


@pytest.mark.parametrize("source", [0, 1, 3])
def test_an_error_of_one_rank_is_raised_by_all_with_its_class_and_text(source):
    def rank(mesh):
        own = PackError("attention_mask has holes in row 0.") if mesh.world_host.rank == source else None
        confirm(mesh, own, 2)

    for error in outcomes(loopback_meshes(2, num_replicas=2), rank):
        assert type(error) is PackError
        assert str(error) == f"rank {source}: attention_mask has holes in row 0."


def test_of_several_errors_the_lowest_rank_is_named():
    def rank(mesh):
        me = mesh.world_host.rank
        confirm(mesh, PackError(f"mine is {me}") if me >= 2 else None, 2)

    assert {str(error) for error in outcomes(loopback_meshes(4), rank)} == {"rank 2: mine is 2"}


@pytest.mark.parametrize("text", ["é" * 900, "x" * 5000, "two\nlines"])
def test_long_and_multiline_texts_reach_the_others_alike(text):
    def rank(mesh):
        confirm(mesh, PackError(text) if mesh.world_host.rank == 0 else None, 2)

    texts = {str(error) for error in outcomes(loopback_meshes(2), rank)}
    assert len(texts) == 1
    assert texts.pop().startswith(f"rank 0: {text[:400]}")


def test_a_foreign_error_becomes_ours_and_keeps_its_name():
    def rank(mesh):
        confirm(mesh, KeyError("labels") if mesh.world_host.rank == 1 else None, 2)

    for error in outcomes(loopback_meshes(2), rank):
        assert type(error) is RankMismatchError
        assert str(error) == "rank 1: KeyError: 'labels'"


@pytest.mark.parametrize("replica", [0, 1])
def test_different_plans_in_one_group_are_an_error_everywhere(replica):
    meshes = loopback_meshes(2, num_replicas=2)

    def rank(mesh):
        differs = mesh.replica == replica and mesh.group.rank == 1
        confirm(mesh, None, 8 if differs else 7)

    errors = outcomes(meshes, rank)
    assert {type(error) for error in errors} == {RankMismatchError}
    assert {f"replica {replica} compiled different plans" in str(error) for error in errors} == {True}


def test_ranks_that_wait_for_a_batch_hear_why_it_does_not_come():
    def rank(mesh):
        if mesh.world_host.rank == 2:
            return announce(mesh, 2, ValueError("row 7 is no JSON"))
        gathered = gather_batches(mesh, [4], [0, 0], failed=False)
        return confirm(mesh, None, 0 if gathered.failed else 9)

    results = outcomes(loopback_meshes(2, num_replicas=2), rank)
    assert results.pop(2) is None
    assert [str(error) for error in results] == ["rank 2: ValueError: row 7 is no JSON"] * 3


def test_announcing_to_nobody_gives_up_after_its_patience():
    start = time.monotonic()
    announce(loopback_meshes(2)[0], 2, ValueError("alone"), patience_seconds=0.2)
    assert time.monotonic() - start < 2


def test_an_error_that_all_ranks_raised_is_not_announced_again():
    def rank(mesh):
        try:
            confirm(mesh, PackError("once") if mesh.world_host.rank == 0 else None, 2)
        except PackError as error:
            start = time.monotonic()
            announce(mesh, 2, error, patience_seconds=5.0)
            return time.monotonic() - start

    assert max(outcomes(loopback_meshes(2), rank)) < 1


@pytest.mark.parametrize(
    ("sizes", "differ"),
    [
        ((3.25, 3.25), False),
        ((3.25, 3.25 * (1 + 1e-10)), False),
        ((3.25, 3.25 * (1 + 1e-7)), True),
        ((0.0, 0.0), False),
        ((0.0, 3.25), False),
        ((float("nan"), float("nan")), False),
    ],
)
def test_weights_that_differ_between_replicas_are_an_error_of_all(sizes, differ):
    meshes = loopback_meshes(1, num_replicas=2)
    found = outcomes(meshes, lambda mesh: confirm(mesh, None, 2, sizes[mesh.world_host.rank]))
    if differ:
        assert {type(error) for error in found} == {RankMismatchError}
        assert len({str(error) for error in found}) == 1
    else:
        assert found == [None, None]
