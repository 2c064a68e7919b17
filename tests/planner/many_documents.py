"""Packs of thousands of documents, to see how long planning takes.

`python tests/planner/many_documents.py > packs.json; hsap bench plan --lengths packs.json --pack short_1M -c 64`
"""

import json
from random import Random

NUM_DOCUMENTS = 4_096


def many_documents(num_tokens: int, long_share: float) -> list[int]:
    """Short documents (lognormal, median 90) with a share of long ones (lognormal, median 13k), scaled to size."""
    random = Random(1)
    drawn = [
        random.lognormvariate(9.5, 1.0) if random.random() < long_share else random.lognormvariate(4.5, 0.8)
        for _ in range(NUM_DOCUMENTS)
    ]
    lengths = [max(1, int(length * num_tokens / sum(drawn))) for length in drawn]
    lengths[lengths.index(max(lengths))] += num_tokens - sum(lengths)
    return lengths


PACKS = {
    f"{name}_{size}": (num_tokens, long_share)
    for size, num_tokens in (("1M", 2**20), ("8M", 2**23))
    for name, long_share in (("short", 0.0), ("hybrid", 0.02))
}

if __name__ == "__main__":
    print(json.dumps({"packs": {name: many_documents(*drawn) for name, drawn in PACKS.items()}}))
