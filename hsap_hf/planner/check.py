"""The laws of a plan, checked by brute force, for tests."""

from hsap_hf.errors import PlanError
from hsap_hf.planner.exchange import fetches, sends
from hsap_hf.planner.plan import Plan

WORK_LIMIT = 1.01
"""Largest work over the mean that a plan may have where slots are larger than LARGE_SLOT tokens."""
LARGE_SLOT = 2_048


def check_plan(plan: Plan, windows: tuple[int | None, ...] = (None,)) -> None:
    """Raise PlanError naming the first law that `plan` breaks.

    windows: the attention windows whose exchange is checked too. Costs about a set operation a token and a slot.
    """
    _check_deal(plan)
    _check_balance(plan)
    for window in windows:
        _check_exchange(plan, window)


def _require(law: bool, text: str) -> None:
    if not law:
        raise PlanError(f"The plan breaks a law: {text}.")


def _check_deal(plan: Plan) -> None:
    """Every row on exactly one slot; pieces of a document adjacent, ascending and never touching."""
    _require(len(plan.slots) == plan.context_size, f"{len(plan.slots)} slots for context_size {plan.context_size}")
    rows: list[list[tuple[int, int]]] = [[] for _ in plan.lengths]
    for slot, pieces in enumerate(plan.slots):
        seen: set[int] = set()
        doc, row = -1, 0
        for piece in pieces:
            _require(0 <= piece.start < piece.stop <= plan.lengths[piece.doc], f"slot {slot} has an impossible {piece}")
            if piece.doc == doc:
                _require(piece.start > row, f"slot {slot} has {piece} after row {row} of the same document")
            else:
                _require(piece.doc not in seen, f"slot {slot} holds document {piece.doc} in two places")
            seen.add(piece.doc)
            doc, row = piece.doc, piece.stop
            rows[doc].append((piece.start, piece.stop))
    for doc, found in enumerate(rows):
        end = 0
        for start, stop in sorted(found):
            _require(start == end, f"row {min(start, end)} of document {doc} is dealt twice or never")
            end = stop
        _require(end == plan.lengths[doc], f"rows {end} to {plan.lengths[doc]} of document {doc} are never dealt")


def _check_balance(plan: Plan) -> None:
    """Equal tokens, equal work, few cut documents."""
    slots = range(plan.context_size)
    mean = sum(plan.lengths) / plan.context_size
    for slot in slots:
        _require(abs(plan.tokens(slot) - mean) < 1, f"slot {slot} has {plan.tokens(slot)} tokens, mean {mean:.1f}")
    cut = len(plan.cut_documents)
    _require(cut <= 2 * (plan.context_size - 1), f"{cut} documents cut for {plan.context_size} slots")
    if mean > LARGE_SLOT:
        work = [plan.work(slot) for slot in slots]
        worst = max(work) * plan.context_size / sum(work)
        _require(worst <= WORK_LIMIT, f"the largest work is {worst:.4f} of the mean, limit {WORK_LIMIT}")


def _check_exchange(plan: Plan, window: int | None) -> None:
    """Own and fetched keys are together exactly what the rows of a slot see; sends mirror fetches."""
    slots = range(plan.context_size)
    fetched = [fetches(plan, slot, window) for slot in slots]
    sent = [sends(plan, slot, window) for slot in slots]
    for slot in slots:
        needed: dict[int, set[int]] = {}
        own: dict[int, set[int]] = {}
        for doc, start, stop in plan.slots[slot]:
            first = 0 if window is None else max(0, start - window + 1)
            needed.setdefault(doc, set()).update(range(first, stop))
            own.setdefault(doc, set()).update(range(start, stop))
        _require(list(fetched[slot]) == sorted(fetched[slot]), f"the fetches of slot {slot} are not sorted")
        for owner, doc, start, stop in fetched[slot]:
            text = f"slot {slot} fetches rows {start} to {stop} of document {doc} from slot {owner}"
            rows = set(range(start, stop))
            holds = any(piece.doc == doc and piece.start <= start < stop <= piece.stop for piece in plan.slots[owner])
            _require(owner != slot and holds, f"{text}, which does not own them")
            _require(rows <= needed.get(doc, set()), f"{text} without need")
            _require(not rows & own[doc], f"{text} twice, or owns them")
            own[doc] |= rows
        for doc, rows in needed.items():
            _require(rows <= own[doc], f"slot {slot} lacks {len(rows - own[doc])} keys of document {doc}")
        mirrored = [(to, *fetch[1:]) for to in slots for fetch in fetched[to] if fetch.from_slot == slot]
        _require(list(map(tuple, sent[slot])) == mirrored, f"the sends of slot {slot} differ from what others fetch")
