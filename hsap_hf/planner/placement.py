"""Which rows go where: several drafts of a pack, and the one that is predicted to be fastest."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from hsap_hf.planner.cost import attention_seconds, exchange_seconds, waiting_seconds
from hsap_hf.planner.documents import TokenAxis
from hsap_hf.planner.draft import Draft
from hsap_hf.planner.machine import H100_SLOW
from hsap_hf.planner.model import QWEN3_0_6B
from hsap_hf.planner.nodes import by_node
from hsap_hf.planner.outside_in import outside_in
from hsap_hf.planner.traffic import Traffic, exchanged, own_work
from hsap_hf.planner.window import window

LINKS, SHAPE = H100_SLOW, QWEN3_0_6B
"""What drafts are judged on: a slow network and little attention for each key, whatever the run has, so that the plan
depends on the pack alone."""
BALANCED = 1.01
"""Largest work over the mean of a draft that may be chosen while another keeps to it."""
SMALL_PACK = 1_024
"""Documents plus 16 a slot up to which all drafts are drawn. For larger packs one draft takes as long as all of these,
so a second one is drawn only if the first would have to wait for its exchange, and none after the one that knows nodes,
which is the most even-handed there is."""
SMALL_GROUP = 8
"""Slots up to which only attention that needs no foreign keys counts as hiding an exchange, which is judged at the
speed of a network even inside a node. Two and four GPUs were seen to wait like that. In larger groups all attention
counts: there the same rule would buy evener senders with a fifth more keys, and nobody measured that."""
MANY_SLOTS = 512
"""Slots above which two drafts would take too long: the first that is balanced is taken."""


def place(lengths: Sequence[int], context_size: int, ranks_per_node: int | None) -> Draft:
    """The draft with the shortest predicted time. lengths: checked; every slot's tokens are equal to +-1."""
    num_drafts = 5 if len(lengths) + 16 * context_size <= SMALL_PACK else 2
    enough = context_size > MANY_SLOTS or _has_nodes(context_size, ranks_per_node)
    judged: list[tuple[_Verdict, Draft]] = []
    for draft in islice(_drafts(lengths, context_size, ranks_per_node), num_drafts):
        verdict = _judge(draft, sum(lengths) // context_size, ranks_per_node)
        judged.append((verdict, draft))
        if num_drafts == 2 and verdict.lawful and (verdict.hidden or enough):
            break
    return min(judged, key=lambda pair: (not pair[0].lawful, pair[0].seconds))[1]


def _drafts(lengths: Sequence[int], context_size: int, ranks_per_node: int | None) -> Iterator[Draft]:
    """Each of them is the best for some mix and link; the most even-handed ones first."""
    axis = TokenAxis(lengths)
    fewest, spare = divmod(axis.starts[-1], context_size)
    tokens = [fewest + (slot < spare) for slot in range(context_size)]
    if ranks_per_node is not None and _has_nodes(context_size, ranks_per_node):
        yield by_node(lengths, axis, tokens, ranks_per_node)
    yield outside_in(lengths, axis, tokens, num_fitted=0, heads=6).settled(lengths)
    yield window(lengths, axis, tokens).settled(lengths)
    yield outside_in(lengths, axis, tokens, num_fitted=len(lengths), heads=4).settled(lengths)
    yield outside_in(lengths, axis, tokens, num_fitted=0, heads=2).settled(lengths)


def _has_nodes(context_size: int, ranks_per_node: int | None) -> bool:
    """Several nodes of several slots each."""
    return ranks_per_node is not None and 1 < ranks_per_node < context_size


class _Verdict(NamedTuple):
    lawful: bool
    """Work within BALANCED of the mean."""
    hidden: bool
    """The exchange takes no longer than what runs beside it."""
    seconds: float
    """Time of the slowest slot, plus the mean exchange: of drafts that hide it, fewest keys win."""


def _judge(draft: Draft, tokens: int, ranks_per_node: int | None) -> _Verdict:
    slots = len(draft.work)
    travel = exchanged(draft.cut.values(), slots, ranks_per_node)
    attention = attention_seconds(tokens, max(draft.work) / 2, SHAPE, LINKS)
    if slots <= SMALL_GROUP:
        seconds = max(_with_waits(draft, tokens, travel))
    else:
        seconds = max(attention, exchange_seconds(max(travel.near_most()), max(travel.far_most()), SHAPE, LINKS))
    far = sum(travel.far_fetched)
    near = sum(travel.fetched) - far
    # a mean over both kinds of link, one after the other: what a plan moves is worth as much as what it waits for
    mean = exchange_seconds(near / slots, 0, SHAPE, LINKS) + exchange_seconds(0, far / slots, SHAPE, LINKS)
    lawful = max(draft.work) * slots <= BALANCED * sum(draft.work)
    return _Verdict(lawful, seconds <= attention, seconds + mean)


def _with_waits(draft: Draft, tokens: int, travel: Traffic) -> Iterator[float]:
    """Every slot's attention and what it waits for keys."""
    own = own_work(draft.cut.values(), draft.work)
    for work, alone, rows in zip(draft.work, own, map(max, travel.fetched, travel.sent), strict=True):
        attention = attention_seconds(tokens, work / 2, SHAPE, LINKS)
        yield waiting_seconds(attention, alone / max(work, 1), exchange_seconds(0, rows, SHAPE, LINKS), LINKS)
