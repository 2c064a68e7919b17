"""Where an integer function crosses zero, and whether a number near by would spare a cut."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence


def crossing(miss: Callable[[int], int], last: int, slack: int, guess: int) -> int:
    """An n in 0..last with |miss(n)| <= slack, or beside a change of sign from below to above zero.

    An end of the range if miss has one sign at both. Regula falsi in its Illinois form from a first guess, on whole
    numbers only, so that every platform finds the same n.
    """
    low, high = -1, last + 1
    below = above = side = 0
    n = min(max(guess, 0), last)
    while high - low > 1:
        found = miss(n)
        if abs(found) <= slack:
            return n
        if found < 0:
            if side < 0:
                above //= 2
            low, below, side = n, found, -1
        else:
            if side > 0:
                below //= 2
            high, above, side = n, found, 1
        if low < 0:
            n = 0
        elif high > last:
            n = last
        else:
            n = min(max(low + (high - low) * below // (below - above), low + 1), high - 1)
    return min(high, last)


def nearest(edges: Sequence[int], token: int) -> Sequence[int]:
    """The ascending edges just below and not below `token`."""
    i = bisect_left(edges, token)
    return edges[max(i - 1, 0) : i + 1]


def spared(miss: Callable[[int], int], candidates: Iterable[int], last: int, slack: int) -> int | None:
    """The first candidate in 0..last that misses by at most slack."""
    for n in candidates:
        if 0 <= n <= last and abs(miss(n)) <= slack:
            return n
    return None
