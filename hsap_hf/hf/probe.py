"""The probe: a tiny copy of a model computes shuffled tokens, as a slot does, and must agree with the stock model.

Two questions. Do tokens meet outside attention? With attention replaced by "own value only", one changed token must not
move any other's logits. Is attention all that the layers pass to it? Tokens in another order, told apart by their
position ids alone, must give the stock logits and loss when the definition of right computes attention.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.utils import logging

from hsap_hf.attention import Scores
from hsap_hf.attention.reference import reference_attention
from hsap_hf.errors import HsapError
from hsap_hf.hf.interface import no_mask, refuse_options
from hsap_hf.hf.reduced import NotReducible, reduced_copy

_NAME = "hsap_probe"
_KEY = "hsap_probe_row"
_UNKNOWN = (
    "only its configuration was checked, so whether its tokens meet outside attention is not known: compare it once "
    "with plain data parallelism (hsap verify)"
)
_TOKENS = 12
"""Three windows of the reduced copy."""
_ROUNDING = 1e-9
"""Logits are float64; experts that get another number of tokens may round differently, a leak is far larger."""
_CLOSE = 1e-4
"""Stock attention rounds its weights to float32; an option that is not honoured moves logits by 1e-2 and more."""


@dataclass
class Row:
    """Which tokens a probed forward computes, and what its layers asked for."""

    order: Tensor
    """Document row of every token."""
    own_value_only: bool = False
    asked: list[Scores] = field(default_factory=list)
    has_sinks: bool = False


@dataclass(frozen=True)
class Probe:
    """What the probe found."""

    problems: tuple[str, ...] = ()
    note: str | None = None
    """Why nothing could be probed; None where it could."""
    softcap: float | None = None
    has_sinks: bool = False


def probe_model(model: PreTrainedModel) -> Probe:
    """Probe a tiny copy of `model` on the CPU, in less than a second. Leaves the model and random states alone."""
    with _quiet():
        return _probed(model)


@contextmanager
def _quiet() -> Iterator[None]:
    """What Transformers says about the sizes of the tiny copy would only puzzle."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)


def _probed(model: PreTrainedModel) -> Probe:
    try:
        small = reduced_copy(model)
    except NotReducible as reason:
        return Probe(note=f"no tiny copy of it could be probed ({reason}); {_UNKNOWN}")
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(1, small.config.vocab_size, (_TOKENS,), generator=draw)
    order = torch.randperm(_TOKENS, generator=draw)
    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, no_mask)
    with torch.no_grad(), torch.device("cpu"):
        try:
            small.set_attn_implementation("eager")  # some releases offer SDPA where it ignores a softcap
            batch = {"input_ids": ids[None], "labels": ids[None], "use_cache": False, "num_items_in_batch": 7}
            stock = small(**batch, position_ids=torch.arange(_TOKENS)[None])
            bare = small(**batch)
        except Exception as error:
            return Probe(note=f"its tiny copy does not run ({error}); {_UNKNOWN}")
        small.set_attn_implementation(_NAME)
        try:
            leak = _leak(small, ids)
            if leak is not None:
                return Probe((leak,))
            row = Row(order)
            halves = [small(**_row(ids, order, half), **{_KEY: row}) for half in (order % 2 == 0, order % 2 == 1)]
            if not _apart(stock.logits, bare.logits) <= _CLOSE:
                return Probe(("without position_ids it counts positions from another number than 0.",))
            return _compared(stock, halves, row, 2 * small.config.num_hidden_layers)
        except HsapError as error:
            return Probe((str(error),))
        except Exception as error:
            text = str(error).splitlines()[0] if str(error) else ""
            return Probe((f"it fails where its attention is replaced: {type(error).__name__}: {text}",))


def _row(ids: Tensor, order: Tensor, supervised: Tensor | None = None) -> dict[str, Any]:
    """A batch as the model gets it from a deal: tokens in this order, labels already shifted, some of them masked."""
    labels = torch.cat([ids[1:], ids.new_full((1,), -100)])
    if supervised is not None:
        labels = labels.masked_fill(~torch.zeros_like(supervised).index_copy(0, order, supervised), -100)
    rows = {"input_ids": ids, "labels": labels, "shift_labels": labels, "position_ids": torch.arange(len(ids))}
    return {name: row[order][None] for name, row in rows.items()} | {"use_cache": False, "num_items_in_batch": 7}


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What `hsap_attention` computes, for one document whose tokens stand in any order."""
    row: Row | None = kwargs.pop(_KEY, None)
    if row is None:
        raise TypeError(f"{type(module).__name__} does not hand keyword arguments of the forward on to its attention.")
    refuse_options(module, attention_mask, dropout, kwargs)
    scores = Scores(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap)
    row.asked.append(scores)
    row.has_sinks |= s_aux is not None
    if row.own_value_only:
        return value.repeat_interleave(query.shape[1] // value.shape[1], 1).transpose(1, 2).contiguous(), None
    back = row.order.argsort()
    q, k, v = (x[0].transpose(0, 1)[back] for x in (query, key, value))
    out = reference_attention(
        q, k, v, [len(q)], scale=scores.scale, window=sliding_window, softcap=softcap, sinks=s_aux
    )
    return out[row.order][None], None


def _leak(small: PreTrainedModel, ids: Tensor) -> str | None:
    """Whether one token moves the logits of others although attention lets none through."""
    changed = len(ids) // 2
    other = ids.clone()
    other[changed] = 1 + ids[changed] % (small.config.vocab_size - 1)
    natural = torch.arange(len(ids))
    before, after = (_traced(small, _row(tokens, natural), Row(natural, True)) for tokens in (ids, other))
    rest = natural != changed
    moved = {
        name: float((before[name] - after[name])[0, rest].abs().max())
        for name in before
        if name in after and before[name].shape == after[name].shape
    }
    if moved[""] <= _ROUNDING * float(before[""].abs().max()):
        return None
    parts = [name for name, size in moved.items() if size > _ROUNDING and re.search(r"\.\d+\.\w+$", name)]
    where = f" in {type(small.get_submodule(parts[0])).__name__}" if parts else ""
    return (
        f"its tokens meet outside attention{where}: one changed token moved the logits of others by {moved['']:.1e} "
        f"with attention switched off. A cut document would lose that; models where only attention mixes tokens work."
    )


def _traced(small: PreTrainedModel, batch: dict[str, Any], row: Row) -> dict[str, Tensor]:
    """Outputs [1, T, ...] of all modules by name, in the order they finish; the logits under the empty name."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            out = out[0] if isinstance(out, tuple) else out
            if isinstance(out, Tensor) and out.dim() >= 3 and out.shape[1] == _TOKENS:
                seen[name] = out

        return hook

    hooks = [module.register_forward_hook(keep(name)) for name, module in small.named_modules() if name]
    try:
        seen[""] = small(**batch, **{_KEY: row}).logits
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _apart(stock: Tensor, other: Tensor) -> float:
    return float((stock - other).abs().max() / stock.abs().max())


def _compared(stock: Any, halves: list[Any], row: Row, expected_calls: int) -> Probe:
    """The verdict on the shuffled row, computed twice: each time half of the labels count."""
    if len(row.asked) < expected_calls:
        return Probe((f"{expected_calls // 2} layers asked for attention {len(row.asked) // 2} times only.",))
    back = row.order.argsort()
    logits = _apart(stock.logits, halves[0].logits[:, back])
    loss = float(abs(stock.loss - halves[0].loss - halves[1].loss) / abs(stock.loss))
    softcaps = [scores.softcap for scores in row.asked if scores.softcap is not None]
    problems = []
    if not logits <= _CLOSE:
        problems.append(
            f"its attention is not only what it passes to AttentionInterface: tokens in another order, with their "
            f"position ids, change its logits by {logits:.1e}. Models that depend on position_ids alone work."
        )
    elif not loss <= _CLOSE:
        problems.append(
            f"its loss is not a sum over tokens that honours shift_labels and num_items_in_batch: two "
            f"halves of the labels, shifted already, do not add up to the whole ({loss:.1e} apart). HSAP knows the "
            f"causal language model loss (ForCausalLM)."
        )
    return Probe(tuple(problems), None, softcaps[0] if softcaps else None, row.has_sinks)
