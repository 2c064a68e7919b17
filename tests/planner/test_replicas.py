"""Replicas get packs of similar work, in an order that is still random, and no pack twice."""

from itertools import pairwise
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from hsap_hf.data import PackedDataset, Span
from hsap_hf.planner.model import LLAMA3_8B, QWEN3_0_6B
from hsap_hf.planner.replicas import balanced_steps, pack_work


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 10**9), max_size=300), st.integers(1, 9), st.integers(0, 2**31))
def test_every_pack_is_used_once(work: list[int], num_replicas: int, seed: int) -> None:
    steps = balanced_steps(work, num_replicas, seed)
    assert sorted(pack for step in steps for pack in step) == list(range(len(work)))
    assert all(len(step) == num_replicas for step in steps[:-1])
    assert steps == balanced_steps(work, num_replicas, seed)


def test_replicas_of_one_step_have_similar_work() -> None:
    random = Random(7)
    work = [int(random.lognormvariate(10, 1)) for _ in range(4_096)]

    def waste(steps: list[tuple[int, ...]]) -> float:
        slowest = sum(max(work[pack] for pack in step) for step in steps)
        return slowest * 8 / sum(work)

    in_order = [tuple(range(first, first + 8)) for first in range(0, 4_096, 8)]
    assert waste(in_order) > 1.9
    assert waste(balanced_steps(work, 8, 0)) < 1.15


def test_steps_are_not_sorted_by_work() -> None:
    work = list(range(1, 1_025))
    heavy = [sum(work[pack] for pack in step) for step in balanced_steps(work, 4, 3)]
    rises = sum(a < b for a, b in pairwise(heavy))
    assert 0.4 < rises / len(heavy) < 0.6
    assert balanced_steps(work, 4, 3) != balanced_steps(work, 4, 4)


def test_work_counts_pairs_and_linear_maps() -> None:
    per_token = pack_work([1], LLAMA3_8B) - 1
    assert per_token > 10_000  # a token's linear maps cost as much as the attention of a row this far in
    assert pack_work([100, 7], LLAMA3_8B) == 5_050 + 28 + 107 * per_token


def test_a_packed_dataset_hands_replicas_packs_of_similar_work() -> None:
    random = Random(3)
    documents = [range(min(3_000, 1 + int(random.lognormvariate(5, 1.5)))) for _ in range(3_000)]

    def slowest(packed: PackedDataset, epoch: int) -> tuple[float, list[tuple[Span, ...]]]:
        packed.set_epoch(epoch)
        packs = [packed.pack(index) for index in range(packed.num_packs)]
        work = [pack_work([span.tokens for span in pack], QWEN3_0_6B) for pack in packs]
        whole = len(work) - len(work) % 4
        return sum(max(work[i : i + 4]) for i in range(0, whole, 4)) * 4 / sum(work[:whole]), packs

    alone = PackedDataset(documents, pack_tokens=4_096)
    balanced = PackedDataset(documents, pack_tokens=4_096, num_replicas=4, group_size=2)
    for epoch in (0, 1):
        plain, in_order = slowest(alone, epoch)
        level, in_steps = slowest(balanced, epoch)
        assert sorted(in_order) == sorted(in_steps)
        assert level - 1 < 0.3 * (plain - 1)
    assert slowest(balanced, 0)[1] != slowest(balanced, 1)[1]
