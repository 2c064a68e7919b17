"""The window construction: slots take adjoining windows of the token axis, each of the work it should have.

The first slot takes the window whose density is the mean; every next one takes some tokens just below the hole that the
earlier ones left and the rest just above it. A fitting split always exists: all below is too light, all above too
heavy, and the rest keeps the mean. So each slot adds at most two cuts, 2(C - 1) in all; cut documents are folded.
"""

from collections.abc import Sequence

from hsap_hf.planner.crossing import crossing, nearest, spared
from hsap_hf.planner.documents import TokenAxis
from hsap_hf.planner.draft import Draft, Drawing, Lengths

SNAP = 200
"""A slot may miss its work by 1/SNAP to spare a cut."""


def window(lengths: Lengths, axis: TokenAxis, tokens: Sequence[int]) -> Draft:
    """A draft for the pack on its axis; tokens: of every slot, largest first."""
    drawing = Drawing(lengths, axis, len(tokens))
    left_tokens = axis.starts[-1]
    left_weight = axis.weight(left_tokens)
    low = high = above = 0
    for slot, need in enumerate(tokens):
        if not need:
            break
        goal = left_weight * need // left_tokens
        if left_tokens == axis.starts[-1]:
            low = high = _first(axis, need, goal)
        above = _above(axis, low, high, need, goal, above)
        start, stop = low - (need - above), high + above
        drawing.pour(slot, start, low)
        drawing.pour(slot, high, stop)
        low, high = start, stop
        left_tokens -= need
        left_weight -= drawing.work[slot]
    return drawing.finished()


def _first(axis: TokenAxis, need: int, goal: int) -> int:
    """Start of a window of `need` tokens that weighs about `goal`."""

    def miss(start: int) -> int:
        return axis.weight(start + need) - axis.weight(start) - goal

    last, slack = axis.starts[-1] - need, goal // SNAP
    found = crossing(miss, last, slack // 4, last // 2)
    edges = [*nearest(axis.starts, found), *(edge - need for edge in nearest(axis.starts, found + need))]
    start = spared(miss, edges, last, slack)
    return found if start is None else start


def _above(axis: TokenAxis, low: int, high: int, need: int, goal: int, guess: int) -> int:
    """How many of `need` tokens to take above the hole [low, high), so that they and those below weigh `goal`."""
    fewest = max(0, need - low)
    hole = axis.weight(high) - axis.weight(low)

    def miss(more: int) -> int:
        above = fewest + more
        return axis.weight(high + above) - axis.weight(low - need + above) - hole - goal

    last, slack = min(need, axis.starts[-1] - high) - fewest, goal // SNAP
    found = crossing(miss, last, slack // 4, guess - fewest)
    stop = high + fewest + found
    edges = [edge - high - fewest for edge in nearest(axis.starts, stop)]
    edges += [edge - low + need - fewest for edge in nearest(axis.starts, low - need + fewest + found)]
    more = spared(miss, edges, last, slack)
    return fewest + (found if more is None else more)
