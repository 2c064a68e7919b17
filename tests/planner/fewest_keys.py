"""A lower bound, with its proof: no placement of equal tokens and level work fetches fewer keys than this.

A slot's share of a document is n rows with w query-key pairs, its work. Keys of all rows before the last one of a share
are needed, so what is fetched is the sum of last + 1 over all shares, minus all tokens. Let every slot have T tokens or
one more, and at most W work.

1. A price on light rows uncouples the slots. At a level k <= W / T call n - w / k the lightness of a share. The shares
   of a slot have at least T - W / k together, which is at most 0, so what heavy ones fall short of that, light ones
   make up for: the sum of max(0, (T - n) - (W - w) / k) over them is at most that of max(0, n - w / k). Price(n, w)
   weighs levels up to `pivot` by 2 * rate * k / pivot**2 dk and adds max(0, n - w / k) over all of them, so

       fetched >= sum over shares of (last + 1 + Price(T - n, W - w) - Price(n, w)) - all tokens.

   Here documents know nothing of each other, so the least that each adds, however it is shared out, is a bound.
2. Any document of length l adds at least -Price(l, l(l + 1) / 2) - `cut_gain`. For let m be the largest last + 1 of its
   shares but the one with its last row, 0 if there is no other: m keys are fetched for it. At one level, if that one
   has no lightness, all of it is in rows before m. If it has and no other has less than 0, it is that of the whole
   document. If another has less than 0, that one reaches beyond row k, so does m, and again all light rows are before
   m. They are worth at most pivot * rate / 3 * (1 - (1 - m / pivot)**3), which is more than m only for rates above 1,
   and by `cut_gain` at most.
3. A long document adds more. Its rows before pivot, wherever they are, are worth at most pivot * rate / 3. Weigh the
   others (row + 1) / pivot - 1 each. Of all shares of one weight and one last row, the block that ends there has the
   least work, so it falls short by the least. And what the owners with later last rows leave has some weight, so the
   next last row is not before the row where that much weight ends. So the cheapest owners are found by weight alone,
   on a grid, rounding down.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

PIVOTS = (0.15, 0.3, 0.45, 0.55)
"""Pivots to try, in units of most_work / tokens."""
RATES = (1.0, 1.5, 20.0)
"""Rates to try."""


@dataclass(frozen=True)
class Price:
    """What light rows are worth, in keys. The bound holds for any pivot <= most_work / tokens and any rate."""

    pivot: int
    """Work a row from which rows are worth nothing."""
    rate: float
    """Worth of a row without work."""

    def __call__(self, tokens: Numbers, work: Numbers) -> Numbers:
        return self.rate * np.maximum(tokens - work / self.pivot, 0) ** 2 / np.maximum(tokens, 1)

    @property
    def light_rows(self) -> float:
        """Worth of the light rows of one document, at most."""
        return self.rate * self.pivot / 3

    @property
    def cut_gain(self) -> float:
        """What light rows before a cut are worth more than the keys they cost, at most."""
        return self.light_rows + self.pivot * (2 / 3 / self.rate**0.5 - 1) if self.rate > 1 else 0.0


def fewest_keys(lengths: Sequence[int], context_size: int, most_work: float, fineness: int = 500) -> float:
    """Keys that all slots together fetch at least, if tokens are equal and no slot has more than `most_work` pairs.

    fineness: cells of the grid in a slot's work; any number gives a bound, larger ones a better one.
    """
    tokens = sum(lengths) // context_size
    if not tokens:
        return 0.0
    prices = [Price(max(1, int(share * most_work / tokens)), rate) for share, rate in product(PIVOTS, RATES)]
    best = max(prices, key=lambda price: keys_at_price(lengths, tokens, most_work, price, max(1, fineness // 8)))
    return max(0.0, keys_at_price(lengths, tokens, most_work, best, fineness))


def keys_at_price(lengths: Sequence[int], tokens: int, most_work: float, price: Price, fineness: int) -> float:
    """The bound at one price: the sum of the least that each document adds."""
    sizes = np.array(lengths, dtype=np.float64)
    least = -price(sizes, sizes * (sizes + 1) / 2) - price.cut_gain
    rows, owners = _owners(max(lengths), tokens, most_work, price, fineness)
    long = sizes >= price.pivot
    cells = np.searchsorted(rows, sizes[long], side="right") - 1
    least[long] = np.maximum(least[long], owners[cells] - sizes[long] - price.light_rows)
    return float(least.sum())


def _owners(longest: int, tokens: int, most_work: float, price: Price, fineness: int) -> tuple[Numbers, Numbers]:
    """Rows where cells of equal weight begin, and what the owners of all rows up to there cost at least.

    An owner whose last row is in a cell is charged last + 1 for the cell's start, and its block for the cell's end. One
    that takes rows of `cells` cells has at least the weight of one less.
    """
    pivot = price.pivot
    heavy = max(longest - pivot, 0)
    cell = most_work / pivot / fineness
    count = int(heavy * (heavy + 1) / (2 * pivot) / cell)
    rows = pivot - 0.5 + np.sqrt(0.25 + 2 * pivot * cell * np.arange(count + 2))
    work_before = rows * (rows + 1) / 2
    cost_of = []
    for cells in range(1, count + 1):
        stop = np.arange(cells + 1, count + 2)
        start = stop - (cells - 1)
        work = work_before[stop] - work_before[start]
        if work[-1] > most_work:
            break
        short = price(tokens - (rows[stop] - rows[start]), most_work - work)
        cost = np.where(work <= most_work, rows[stop - 1] + short, np.inf)
        cost_of.append(np.full(count + 1, np.inf))
        cost_of[-1][cells:] = np.minimum.accumulate(cost[::-1])[::-1]  # the last row may be a later one
    costs = np.array(cost_of)
    owners = np.zeros(count + 1)
    for top in range(1, count + 1):
        most = min(top, len(costs))
        owners[top] = (costs[:most, top] + owners[top - most : top][::-1]).min()
    return rows[:-1], owners
