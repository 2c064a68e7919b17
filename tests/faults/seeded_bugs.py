"""Bugs that such code has had, as edits of the package: each of them must make the tests it names fail."""

from typing import NamedTuple


class Edit(NamedTuple):
    """`old`, which stands exactly once in the file, becomes `new`."""

    file: str
    old: str
    new: str


class Bug(NamedTuple):
    tests: tuple[str, ...]
    edits: tuple[Edit, ...]


EXACT = ("tests/attention/test_exactness.py",)
FORWARD = ("tests/hf/test_forward.py",)

BUGS = {
    "causality is off by one": Bug(
        EXACT, (Edit("attention/kernels/sdpa.py", "(distance >= 0) if window", "(distance >= -1) if window"),)
    ),
    "one key is never fetched": Bug(
        EXACT, (Edit("planner/exchange.py", "return [(0, mine[-1].stop)]", "return [(1, mine[-1].stop)]"),)
    ),
    "the first piece of a cut document fetches nothing": Bug(
        EXACT, (Edit("attention/tables.py", "in mine if theirs else []", "in mine[1:] if theirs else []"),)
    ),
    "send lists are swapped": Bug(
        ("tests/comm/test_exchange.py",),
        (Edit("comm/exchange.py", "(*places, send_rows,", "(*places, send_rows[::-1],"),),
    ),
    "rows behind the last whole tile are in no message": Bug(
        ("tests/comm/test_exchange.py",),
        (Edit("comm/exchange.py", "low, total if number + 1 == count else high)", "low, high)"),),
    ),
    "the merge has the wrong sign": Bug(EXACT, (Edit("attention/merge.py", "(x - after).exp()", "(after - x).exp()"),)),
    "gradients of borrowed keys overwrite each other": Bug(
        EXACT, (Edit("comm/rows.py", "wide.index_add(0, at,", "wide.index_copy(0, at,"),)
    ),
    "gradients of replicated heads are not summed": Bug(
        EXACT, (Edit("comm/ulysses.py", "num_kv_heads, -1)).sum(2)", "num_kv_heads, -1)).select(2, 0)"),)
    ),
    "the loss is scaled by the size of the group": Bug(
        FORWARD,
        (Edit("hf/hooks.py", "if given is None else given", "if given is None else given / self.mesh.group.size"),),
    ),
    "labels are dealt unshifted": Bug(
        FORWARD, (Edit("hf/documents.py", "value=IGNORED_LABEL)[:, 1:]", "value=IGNORED_LABEL)[:, :-1]"),)
    ),
    "the last token of a document predicts the next document": Bug(
        ("tests/data/test_collator.py",), (Edit("data/collator.py", "labels[edges] = IGNORED", "pass"),)
    ),
    "tables are kept without their window": Bug(
        ("tests/models/test_families.py", "-k", "Gemma"),
        (
            Edit("hf/dealt.py", "if scores.window not in self.tables:", "if None not in self.tables:"),
            Edit("hf/dealt.py", "self.tables[scores.window] = compile", "self.tables[None] = compile"),
            Edit("hf/dealt.py", "tables=self.tables[scores.window],", "tables=self.tables[None],"),
        ),
    ),
    "a recompute takes the newest plan": Bug(
        FORWARD,
        (
            Edit("hf/interface.py", "    batch.attention_calls += 1", "    batch = type(batch).newest"),
            Edit(
                "hf/dealt.py", "        self.tokens = tokens", "        self.tokens, DealtBatch.newest = tokens, self"
            ),
        ),
    ),
}
