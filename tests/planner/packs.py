"""Packs to plan: the reference file, and hypothesis strategies for adversarial ones."""

import json
from pathlib import Path

from hypothesis import strategies as st

REFERENCE: dict[str, list[int]] = json.loads(Path(__file__).with_name("reference.json").read_text())["packs"]

PRIMES = [2, 3, 5, 7, 11, 13, 101, 997, 4099, 10007]

tiny_packs = st.lists(st.integers(1, 40), max_size=12)
mixed_packs = st.one_of(
    tiny_packs,
    st.lists(st.sampled_from(PRIMES), min_size=1, max_size=30),
    st.lists(st.one_of(st.just(1), st.integers(1, 30), st.integers(1_000, 60_000)), min_size=1, max_size=40),
    st.integers(1, 200_000).map(lambda length: [length]),
    st.tuples(st.integers(1, 300), st.integers(1, 2_000)).map(lambda of: [of[0]] * of[1]),
    st.builds(lambda long, shorts: [long, *shorts], st.integers(10_000, 300_000), st.lists(st.integers(1, 900))),
)
slot_counts = st.integers(1, 40)
