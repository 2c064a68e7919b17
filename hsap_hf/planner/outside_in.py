"""Outside-in: every slot pairs the last rows of the densest document with the lightest documents of the pack.

A slot takes n rows off the end of the densest document left and fills the rest of its tokens with the lightest ones;
n is where its work is the mean of what is left. Such an n always exists: the lightest rows alone are lighter than the
mean, the densest alone heavier, and what remains keeps the mean. A contiguous end costs the fewest keys for its work
(a slot that ends at row p fetches at most p keys), the lightest ballast makes the ends long and the owners of a long
document few. When only one document is left this is the fold. At most two cuts a slot, so at most 2(C - 1) in all.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Sequence

from hsap_hf.planner.crossing import crossing, nearest, spared
from hsap_hf.planner.documents import TokenAxis
from hsap_hf.planner.draft import Draft, Drawing

SNAP = 200
"""A slot may miss its work by 1/SNAP to spare a cut."""
SAND = 8
"""Documents of at most 1/SAND of a slot are sand: poured by the token, since a cut one costs next to nothing."""

Segment = tuple[int, int, int, int]
"""(start + stop, doc, start, stop): rows of a document nobody has taken; the first entry orders by density."""


def outside_in(lengths: Sequence[int], axis: TokenAxis, tokens: Sequence[int], num_fitted: int, heads: int) -> Draft:
    """A draft for the pack on its axis; tokens: of every slot, largest first.

    num_fitted: how many whole documents a slot may choose by best fit before it takes the lightest. heads: sixteenths
    of its share of the densest document that a slot takes off the head instead of the end: 0 fetches least, 8 is the
    fold, which spreads the early rows, that everyone fetches, over all owners, and so sends most evenly.
    """
    rest = _Rest(lengths, axis, tokens[0] // SAND, heads)
    drawing = Drawing(lengths, axis, len(tokens))
    left_tokens, left_weight = axis.starts[-1], axis.weight(axis.starts[-1])
    for slot, need in enumerate(tokens):
        if not need:
            break
        if need == left_tokens:
            rest.take_all(drawing, slot)
            break
        goal = left_weight * need // left_tokens
        rest.take_slot(drawing, slot, need, goal, num_fitted)
        left_tokens -= need
        left_weight -= drawing.work[slot]
    return drawing.finished()


class _Rest:
    """What nobody has taken yet: sand [low, high) on an axis, and longer segments by ascending density."""

    def __init__(self, lengths: Sequence[int], axis: TokenAxis, grain: int, heads: int) -> None:
        num_sand = bisect_left(axis.docs, grain + 1, key=lengths.__getitem__)
        self.axis = axis
        self.low, self.high = 0, axis.starts[num_sand]
        self.low_weight, self.high_weight = 0, axis.weight(self.high)
        self.long: list[Segment] = [(lengths[doc], doc, 0, lengths[doc]) for doc in axis.docs[num_sand:]]
        self.heads = heads
        self.guess = 0
        """What the slot before took off the dense side."""
        self.dense: tuple[list[int], list[int]] = ([0], [0])
        """Tokens and weight of the last 0, 1, 2, ... long segments, as far as one slot needs."""
        self.light: tuple[list[int], list[int]] = ([0], [0])
        """The same of the first long segments."""

    def take_slot(self, drawing: Drawing, slot: int, need: int, goal: int, num_fitted: int) -> None:
        """`need` tokens weighing about `goal` for `slot`: fitted documents, a dense end, light ballast."""
        slack = goal // SNAP
        self.dense = _prefixes(reversed(self.long), need)
        fitted, fitted_weight = 0, 0
        for _ in range(num_fitted):
            i = self._best_fit(need - fitted, goal - fitted_weight - slack, goal // need)
            if i < 0:
                break
            _, doc, start, stop = self.long.pop(i)
            drawing.take(slot, doc, start, stop)
            fitted += stop - start
            fitted_weight += _weight(start, stop)
        need -= fitted
        self.light = _prefixes(self.long, need - (self.high - self.low))
        dense = self._balance(need, goal - fitted_weight, slack)
        self._take(drawing, slot, dense, need - dense)

    def take_all(self, drawing: Drawing, slot: int) -> None:
        """All that is left, for the last slot."""
        for _, doc, start, stop in self.long:
            drawing.take(slot, doc, start, stop)
        drawing.pour(slot, self.low, self.high)

    def _best_fit(self, need: int, goal: int, density: int) -> int:
        """Index of the longest segment, not denser than `density`, beside which a dense end still reaches `goal`."""
        last = min(bisect_left(self.long, (density,)), len(self.long) - len(self.dense[0]) + 1)

        def too_long(i: int) -> bool:
            _, _, start, stop = self.long[i]
            room = need - (stop - start)
            return room < 0 or self._dense_weight(room) + _weight(start, stop) < goal

        return bisect_left(range(last), True, key=too_long) - 1

    def _balance(self, need: int, goal: int, slack: int) -> int:
        """How many of `need` tokens to take from the dense side, preferring numbers that spare a cut."""
        meeting = len(self.dense[0]) + len(self.light[0]) - 2 > len(self.long)

        def miss(dense: int) -> int:
            light = need - dense
            weight = self._dense_weight(dense) + self._light_weight(light) - goal
            return weight + self._meeting_weight(dense, light) if meeting else weight

        found = crossing(miss, need, slack // 4, self.guess)
        self.guess = found
        edge = spared(miss, nearest(self.dense[0], found), need, slack)
        if edge is not None:
            return edge
        sand, light = self.high - self.low, need - found
        if light <= sand:
            edges = [start - self.low for start in nearest(self.axis.starts, self.low + light)]
        else:
            edges = [sand + edge for edge in nearest(self.light[0], light - sand)]
        edge = spared(miss, [need - edge for edge in edges], need, slack)
        return found if edge is None else edge

    def _dense_weight(self, tokens: int) -> int:
        """Weight of `tokens` rows off the dense side: ends of the densest segments, then the longest sand."""
        edges, weights = self.dense
        i = bisect_right(edges, tokens) - 1
        extra = tokens - edges[i]
        if not extra:
            return weights[i]
        if i == len(self.long):
            return weights[i] + self.high_weight - self.axis.weight(self.high - extra)
        _, _, start, stop = self.long[-1 - i]
        head = extra * self.heads // 16
        return weights[i] + _weight(start, start + head) + _weight(stop - extra + head, stop)

    def _light_weight(self, tokens: int) -> int:
        """Weight of `tokens` rows off the light side: the shortest sand, then heads of the lightest segments."""
        sand = self.high - self.low
        if tokens <= sand:
            return self.axis.weight(self.low + tokens) - self.low_weight
        edges, weights = self.light
        i = bisect_right(edges, tokens - sand) - 1
        weight = self.high_weight - self.low_weight + weights[i]
        extra = tokens - sand - edges[i]
        if not extra:
            return weight
        start = self.long[i][2]
        return weight + _weight(start, start + extra)

    def _meeting_weight(self, dense: int, light: int) -> int:
        """What heads taken off the dense side weigh more because the light side took rows before them."""
        light -= self.high - self.low
        if light <= 0:
            return 0
        i, j = bisect_right(self.light[0], light) - 1, bisect_right(self.dense[0], dense) - 1
        if i + j + 1 != len(self.long):
            return 0
        head = (dense - self.dense[0][j]) * self.heads // 16
        return 2 * head * (light - self.light[0][i])

    def _take(self, drawing: Drawing, slot: int, dense: int, light: int) -> None:
        """`dense` tokens off the dense side and `light` off the light side go to `slot`."""
        first, last = bisect_right(self.light[0], max(light - (self.high - self.low), 0)) - 1, len(self.long)
        poured = min(light, self.high - self.low)
        drawing.pour(slot, self.low, self.low + poured)
        self.low += poured
        self.low_weight = self.axis.weight(self.low)
        light -= poured
        for _, doc, start, stop in self.long[:first]:
            drawing.take(slot, doc, start, stop)
            light -= stop - start
        whole = bisect_right(self.dense[0], dense) - 1
        for _, doc, start, stop in self.long[last - whole :]:
            drawing.take(slot, doc, start, stop)
            dense -= stop - start
        last -= whole
        left = []
        if light:
            _, doc, start, stop = self.long[first]
            drawing.take(slot, doc, start, start + light)
            left.append((doc, start + light, stop))
            first += 1
        if dense and last >= first and (last > first or left):
            if last > first:
                last -= 1
                _, doc, start, stop = self.long[last]
            else:
                doc, start, stop = left.pop()
            head = dense * self.heads // 16
            if head:
                drawing.take(slot, doc, start, start + head)
            drawing.take(slot, doc, stop - dense + head, stop)
            left.append((doc, start + head, stop - dense + head))
        elif dense:
            drawing.pour(slot, self.high - dense, self.high)
            self.high -= dense
            self.high_weight = self.axis.weight(self.high)
        self.long = self.long[first:last]
        for doc, start, stop in left:
            insort(self.long, (start + stop, doc, start, stop))


def _weight(start: int, stop: int) -> int:
    """Doubled pairs of rows [start, stop)."""
    return (stop - start) * (start + stop + 1)


def _prefixes(segments: Iterable[Segment], need: int) -> tuple[list[int], list[int]]:
    """Tokens and weight of the first 0, 1, 2, ... segments, until they hold `need` tokens."""
    tokens, weights = [0], [0]
    total = weight = 0
    for density, _, start, stop in segments:
        if total >= need:
            break
        total += stop - start
        weight += (stop - start) * (density + 1)
        tokens.append(total)
        weights.append(weight)
    return tokens, weights
