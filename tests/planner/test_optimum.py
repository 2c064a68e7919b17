"""On packs small enough to solve exactly, plans are near the optimum."""

from itertools import product

import pytest

from hsap_hf.planner.plan import compile_plan
from hsap_hf.planner.traffic import exchanged


def fetched_by_plan(lengths: list[int], context_size: int) -> int:
    plan = compile_plan(lengths, context_size)
    return sum(exchanged(plan.cut_documents.values(), context_size)[0])


def fewest_fetches(lengths: list[int], context_size: int, most_work: int) -> int:
    """The optimum by exhaustion: every deal of every row with equal tokens and at most `most_work` on a slot."""
    rows = [(doc, row) for doc, length in enumerate(lengths) for row in range(length)]
    least, most = len(rows) // context_size, -(-len(rows) // context_size)
    best = 10**9
    for slots in product(range(context_size), repeat=len(rows) - 1):
        dealt = (0, *slots)
        counts = [dealt.count(slot) for slot in range(context_size)]
        if max(counts) > most or min(counts) < least:
            continue
        last: dict[tuple[int, int], int] = {}
        work = [0] * context_size
        for (doc, row), slot in zip(rows, dealt, strict=True):
            work[slot] += row + 1
            last[slot, doc] = row + 1
        if max(work) <= most_work:
            best = min(best, sum(last.values()) - len(rows))
    return best


@pytest.mark.parametrize(
    ("lengths", "context_size"),
    [([12], 2), ([9], 3), ([6, 3], 3), ([8, 2, 2], 2), ([5, 2, 1, 1], 3), ([4, 4, 4], 2), ([7, 5], 2), ([3, 3, 3], 3)],
)
def test_small_packs_are_near_the_optimum(lengths: list[int], context_size: int) -> None:
    plan = compile_plan(lengths, context_size)
    best = fewest_fetches(lengths, context_size, max(map(plan.work, range(context_size))))
    assert fetched_by_plan(lengths, context_size) <= best + 4


def fewest_fetches_by_milp(lengths: list[int], context_size: int, most_work: int) -> int:
    """The same optimum by integer programming: x[row, slot] deals rows, m[doc, slot] is a slot's last row + 1."""
    optimize = pytest.importorskip("scipy.optimize")
    rows = [(doc, row) for doc, length in enumerate(lengths) for row in range(length)]
    num_dealt, num_ends = len(rows) * context_size, len(lengths) * context_size
    matrix: list[list[float]] = []
    lower: list[float] = []
    upper: list[float] = []

    def rule(entries: dict[int, float], low: float, high: float) -> None:
        matrix.append([entries.get(i, 0.0) for i in range(num_dealt + num_ends)])
        lower.append(low)
        upper.append(high)

    slots = range(context_size)
    for i, (doc, row) in enumerate(rows):
        rule({i * context_size + slot: 1.0 for slot in slots}, 1, 1)
        for slot in slots:
            end = num_dealt + doc * context_size + slot
            rule({end: 1.0, i * context_size + slot: -(row + 1.0)}, 0, max(lengths))
    fewest = len(rows) // context_size
    for slot in slots:
        rule({i * context_size + slot: 1.0 for i in range(len(rows))}, fewest, -(-len(rows) // context_size))
        rule({i * context_size + slot: row + 1.0 for i, (_, row) in enumerate(rows)}, 0, most_work)
    solved = optimize.milp(
        [0.0] * num_dealt + [1.0] * num_ends,
        constraints=optimize.LinearConstraint(matrix, lower, upper),
        integrality=[1] * (num_dealt + num_ends),
        bounds=optimize.Bounds([0.0] * (num_dealt + num_ends), [1.0] * num_dealt + [max(lengths)] * num_ends),
    )
    assert solved.success, solved.message
    return round(solved.fun) - len(rows)


@pytest.mark.parametrize(
    ("lengths", "context_size"), [([12], 2), ([9], 3), ([6, 3], 3), ([5, 2, 1, 1], 3), ([7, 5], 2), ([16, 6, 2], 2)]
)
def test_small_packs_are_near_the_optimum_of_integer_programming(lengths: list[int], context_size: int) -> None:
    plan = compile_plan(lengths, context_size)
    best = fewest_fetches_by_milp(lengths, context_size, max(map(plan.work, range(context_size))))
    assert best <= fetched_by_plan(lengths, context_size) <= best + 4


def test_both_optima_agree() -> None:
    assert fewest_fetches_by_milp([6, 3], 3, 9) == fewest_fetches([6, 3], 3, 9)
