"""Four packs of any size to time attention on: from one document to only short ones."""

from __future__ import annotations

from random import Random


def mixes(tokens: int) -> dict[str, list[int]]:
    """Document lengths by name, each pack of `tokens` tokens in all; the same on every machine.

    one_long: a single document. hybrid: one of half the pack, one of an eighth, and short ones (256 to 2,048).
    longtail: lognormal (median 2,000, sigma 1.5), at most half the pack. all_short: documents of 2,048.
    """
    random = Random(0)  # noqa: S311  (repeatable lengths, not cryptography)
    packs = {
        "one_long": [tokens],
        "hybrid": [tokens // 2, tokens // 8],
        "longtail": [],
        "all_short": [2_048] * (tokens // 2_048),
    }
    while sum(packs["hybrid"]) < tokens:
        packs["hybrid"].append(random.randint(256, 2_048))
    while sum(packs["longtail"]) < tokens:
        packs["longtail"].append(max(16, min(tokens // 2, int(random.lognormvariate(7.6, 1.5)))))
    size = f"{tokens // 1024}k" if tokens % 1024 == 0 else str(tokens)
    return {f"{name}_{size}": list(_cut_to(tokens, lengths)) for name, lengths in packs.items()}


def _cut_to(tokens: int, lengths: list[int]) -> list[int]:
    """The same with the last documents shortened, or one added, so that they hold `tokens` tokens."""
    found: list[int] = []
    for length in lengths:
        found.append(min(length, tokens - sum(found)))
    rest = tokens - sum(found)
    return [length for length in [*found, rest] if length > 0]
