"""Planning stays short, in time of its own core. Limits are three times the promised 3 and 40 ms, for slow machines.

`python -m pytest tests/planner/test_speed.py -rP` prints what was measured.
"""

from random import Random
from statistics import median
from time import process_time

import pytest

from hsap_hf.planner.exchange import fetches, sends
from hsap_hf.planner.plan import compile_plan


def pack(num_documents: int, num_tokens: int, long_share: float) -> list[int]:
    """Short documents (lognormal, median 90) with a share of long ones (lognormal, median 13k), scaled to size."""
    random = Random(1)
    drawn = [
        random.lognormvariate(9.5, 1.0) if random.random() < long_share else random.lognormvariate(4.5, 0.8)
        for _ in range(num_documents)
    ]
    lengths = [max(1, int(length * num_tokens / sum(drawn))) for length in drawn]
    lengths[lengths.index(max(lengths))] += num_tokens - sum(lengths)
    return lengths


@pytest.mark.parametrize(
    ("num_tokens", "context_size", "limit_ms"), [(2**20, 64, 9), (2**23, 1_024, 120)], ids=["1M on 64", "8M on 1024"]
)
@pytest.mark.parametrize("long_share", [0.0, 0.02], ids=["short", "hybrid"])
@pytest.mark.parametrize("ranks_per_node", [None, 8], ids=["one node", "nodes of 8"])
def test_a_plan_its_fingerprint_and_one_slots_tables_take_milliseconds(
    num_tokens: int, context_size: int, limit_ms: float, long_share: float, ranks_per_node: int | None
) -> None:
    lengths = pack(4_096, num_tokens, long_share)
    times = []
    for turn in range(9):
        start = process_time()
        plan = compile_plan(lengths, context_size, ranks_per_node=ranks_per_node)
        fetches(plan, turn)
        sends(plan, turn)
        assert plan.fingerprint
        times.append(1e3 * (process_time() - start))
    print(f"median {median(times):.2f} ms, least {min(times):.2f} ms")
    assert median(times) <= limit_ms
