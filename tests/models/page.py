"""docs/models.md as text, from the tables of this folder and what a run measured."""

from __future__ import annotations

from typing import Any

from families import FAMILIES, UNTUNED, Family
from refusals import REFUSALS

from hsap_hf.errors import UnsupportedModelError
from hsap_hf.hf import check_model_support

_TOP = """<!-- Written by `pytest tests/models --write-docs`; do not edit. -->
# Models

Every row is a test: the family's own Transformers class with a tiny random configuration, in float32 on four CPU ranks,
against its stock attention on each document alone. Three AdamW steps on packs whose documents are cut between ranks, in
groups of 2x1, 1x2 and 2x2 (context x ulysses). Listed are the largest difference of the loss in all steps, and that of
any gradient entry of the first step relative to the largest entry, over all groups. Limits: 1e-5 and 1e-5.

Trainer: three steps of a stock `Trainer` with AdamW on four ranks in 2x2 equal those of plain DDP with stock attention,
documents cut at every step. Listed are the largest differences of a step's loss, of its gradient norm (relative) and of
a final weight. Limits: 1e-5, 1e-5 and 1e-6. Only weights whose gradient is near rounding (under 1e-7) may exceed the
last, because Adam divides it by itself: key biases that no RoPE turns (OPT, GLM-4: their exact gradient is zero), and
at most three single weights of any family.

On CUDA, `hsap doctor` names the kernel; `dense` rows need flash-attn for their feature or take quadratic memory there.
Any other causal language model works if it passes the gate: `hsap doctor MODEL_OR_CONFIG`.

## Exact
"""
_UNTUNED = """
## Exact, although nobody tuned for them

The package does not know these names; they pass the gate, and that is all.

"""
_REFUSED = """
## Refused

Each is refused by `enable_hsap` before training, and by `hsap doctor`, in these words.

| model | reason |
|---|---|
"""


Measured = dict[str, list[dict[str, Any]]]
Trained = dict[str, dict[str, float]]


def page(measured: Measured, trained: Trained) -> str:
    """The whole file; a family that was not measured shows no figures."""
    tables = [_table(families, measured, trained) for families in (FAMILIES, UNTUNED)]
    return _TOP + "\n" + _UNTUNED.join(tables) + _REFUSED + _reasons()


def _table(families: tuple[Family, ...], measured: Measured, trained: Trained) -> str:
    rows = [
        "| family | `model_type` | features | CPU kernel | groups | loss | gradients "
        "| Trainer: loss | norm | weights |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for family in families:
        found = measured.get(family.name, [])
        loss, grad = (f"{max(one[key] for one in found):.1e}" if found else "-" for key in ("loss", "grad"))
        after = trained.get(family.name)
        steps = [f"{after[key]:.1e}" if after else "-" for key in ("loss", "norm", "weights")]
        rows.append(
            f"| {family.name} | `{family.model_type}` | {family.features} | {family.kernel} | 2x1, 1x2, 2x2 "
            f"| {loss} | {grad} | {' | '.join(steps)} |"
        )
    return "\n".join(rows) + "\n"


def _reasons() -> str:
    rows = []
    for refusal in REFUSALS:
        try:
            check_model_support(refusal.model())
        except UnsupportedModelError as error:
            reasons = [line.removeprefix("- ") for line in str(error).splitlines()[1:]]
            rows.append(f"| {refusal.name} (`{refusal.model_type}`) | {'<br>'.join(reasons)} |\n")
    return "".join(rows)
