"""Which models HSAP computes exactly. Everything else is refused by name, before training starts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any

from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hsap_hf.attention import Scores, all_kernels
from hsap_hf.errors import ConfigError, UnsupportedModelError
from hsap_hf.hf.probe import Probe, probe_model

EXACT_LAYERS = frozenset({"full_attention", "sliding_attention"})
"""Layer types whose tokens meet only in causal attention, over all keys or the last ones."""
TOKEN_LAYERS = frozenset({"dense", "sparse", "moe", "mlp"})
"""Layer types that compute every token alone."""
CHOOSING_LAYERS = re.compile(r"chunked|indexed|sparse|compressed|window_attention|reference")
"""Layer types that attend to keys chosen in another way."""
_KNOWN_HOMES = frozenset({"transformers", "hsap_hf", "accelerate", "peft", "liger_kernel", "kernels", "torch"})
"""Packages that replace a function of a model without changing what it computes, or whose changes the probe sees."""
ROUTER_LOSS = "output_router_logits adds a loss that is not a sum over tokens. Set config.output_router_logits=False."
LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})
"""Rotary variants that look at the largest position of the row they are given."""


@dataclass(frozen=True)
class ModelReport:
    """What a supported model asks of attention, and how that is known."""

    model_type: str
    head_dim: int | None
    """Width of query heads; None where the configuration does not tell."""
    value_dim: int | None
    window: int | None
    softcap: float | None
    has_sinks: bool
    note: str | None
    """What was not checked, and why; None where the probe ran and agreed."""

    def describe(self) -> str:
        """One line for the terminal."""
        widths = str(self.head_dim) if self.head_dim == self.value_dim else f"{self.head_dim} and {self.value_dim}"
        features = [f"heads {widths} wide"] if self.head_dim else []
        features += [f"window {self.window}"] if self.window else []
        features += [f"softcap {self.softcap:g}"] if self.softcap else []
        features += ["sinks"] if self.has_sinks else []
        proof = "a tiny copy agreed with the stock model" if self.note is None else self.note
        return f"{self.model_type}: attention is exact on every group size ({', '.join(features)}); {proof}."


def check_model_support(model: Any) -> ModelReport:
    """The report of a model that HSAP computes exactly, from its configuration and a probe of a tiny copy of it.

    Raises one UnsupportedModelError that lists every reason why it would not be exact. Costs less than a second for
    any size, weights on any device, "meta" included; the model and all random states stay as they are.
    """
    problems, probe = list(_structure_problems(model)), Probe()
    if not problems:
        probe = probe_model(model)
        problems = [*probe.problems, *_setting_problems(model)]
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if problems:
        raise UnsupportedModelError(
            f"HSAP cannot train {kind} exactly:\n" + "\n".join(f"- {text}" for text in problems)
        )
    config = model.config
    head_dim, value_dim = head_dims(config)
    window = _known(config, "sliding_window") if "sliding_attention" in (_known(config, "layer_types") or ()) else None
    softcap = _known(config, "attn_logit_softcapping") or probe.softcap
    note = probe.note or _replaced_forwards(model)
    return ModelReport(kind, head_dim, value_dim, window, softcap, probe.has_sinks, note)


def check_kernel(report: ModelReport, kernel: str, dtype: str, device_type: str) -> None:
    """Raise ConfigError where the kernel of this name cannot compute the model's attention; "auto" always can.

    dtype: of the weights; beside float32 also the half types count, which autocast would bring.
    """
    if kernel == "auto" or report.head_dim is None or report.value_dim is None:
        return
    scores = Scores(1.0, report.window, report.softcap)
    dtypes = [dtype, "bfloat16", "float16"] if dtype == "float32" else [dtype]

    def reason(name: str) -> str | None:
        """Of the last type tried; None where one type works."""
        kernels = [candidate for candidate in all_kernels() if candidate.name == name]
        found = [kernels[0].missing(scores, report.head_dim, report.value_dim, one, device_type) for one in dtypes]
        return None if None in found else found[-1]

    problem = reason(kernel)
    if problem is not None:
        able = ", ".join(candidate.name for candidate in all_kernels() if reason(candidate.name) is None)
        raise ConfigError(
            f"kernel {kernel!r} cannot compute the attention of {report.model_type}: {problem}. "
            f"Here these can: {able}; kernel 'auto' takes the first of them."
        )


def head_dims(config: Any) -> tuple[int | None, int | None]:
    """Widths of query and value heads."""
    split = _known(config, "qk_nope_head_dim"), _known(config, "qk_rope_head_dim")
    if None not in split:
        return sum(split), _known(config, "v_head_dim") or sum(split)
    width = _known(config, "head_dim")
    hidden, heads = _known(config, "hidden_size"), _known(config, "num_attention_heads")
    width = width or (hidden // heads if hidden and heads else None)
    return width, _known(config, "v_head_dim") or width


def _known(config: Any, name: str) -> Any:
    """A field of the configuration; None where it is missing or differs between layers."""
    try:
        return getattr(config, name, None)
    except Exception:  # configurations with values per layer refuse to give one, each with an error of its own
        return None


def _structure_problems(model: Any) -> Iterator[str]:
    if not isinstance(model, PreTrainedModel):
        compiled = " Call enable_hsap before torch.compile." if hasattr(model, "_orig_mod") else ""
        yield f"it is a {type(model).__name__}; needs a Transformers causal language model (PreTrainedModel).{compiled}"
        return
    config = model.config
    if not getattr(model, "_supports_attention_backend", False):
        yield "its class does not call attention through Transformers' AttentionInterface, so HSAP cannot replace it."
    foreign = sorted(set(_known(config, "layer_types") or ()) - EXACT_LAYERS - TOKEN_LAYERS)
    works = f"Models whose layer_types are only {' and '.join(sorted(EXACT_LAYERS))} work."
    choosing = [kind for kind in foreign if CHOOSING_LAYERS.search(kind)]
    carrying = [kind for kind in foreign if kind not in choosing]
    if carrying:
        yield (
            f"layers of type {', '.join(carrying)} carry information from token to token outside attention; a cut "
            f"document would lose it. {works}"
        )
    if choosing:
        yield f"layers of type {', '.join(choosing)} attend to keys in a pattern that HSAP does not compute. {works}"
    if config.is_encoder_decoder or getattr(config, "use_bidirectional_attention", False):
        yield "it has attention that is not causal."
    if config.get_text_config() is not config:
        yield "it has several towers; images and audio cannot be dealt. Load its text model alone."


def _setting_problems(model: Any) -> Iterator[str]:
    config = model.config
    foreign = _foreign_attention(_known(config, "_attn_implementation"))
    if foreign is not None:
        yield (
            f"its attention is {foreign}, a function that HSAP would replace. Where stock attention will do, call "
            f"model.set_attn_implementation('sdpa') first."
        )
    for rope in sorted(LENGTH_DEPENDENT_ROPE & set(_rope_types(getattr(config, "rope_parameters", None)))):
        yield f"rope_type {rope!r} depends on the longest position of a rank's row. default, linear, llama3, yarn work."
    if getattr(config, "output_router_logits", False):
        yield ROUTER_LOSS
    for name in ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob"):
        if _known(config, name):
            yield f"{name}={_known(config, name)} is drawn per rank. Set config.{name}=0.0."
    if getattr(model, "loss_type", None) not in (None, "ForCausalLM"):
        yield f"its loss is {model.loss_type}; HSAP knows the causal language model loss (ForCausalLM)."


def _foreign_attention(name: str | None) -> str | None:
    """The module and name of an attention function that Transformers did not bring; None where it did, or a hub did."""
    function = None if name is None or "/" in name else dict(ALL_ATTENTION_FUNCTIONS).get(name)
    home = _home_of(function)
    return None if home is None or home.partition(".")[0] in _KNOWN_HOMES else f"{name!r} of {home}"


def _replaced_forwards(model: Any) -> str | None:
    """Which modules had their forward replaced by hand, which a copy built from the configuration does not have."""
    names = {
        type(module).__name__
        for module in model.modules()
        if (_home_of(vars(module).get("forward")) or "torch").partition(".")[0] not in _KNOWN_HOMES
    }
    if not names:
        return None
    return f"{', '.join(sorted(names))}: the forward was replaced on the instance, and what it does was not checked"


def _home_of(function: Any) -> str | None:
    """The module that defines a function, whatever it is wrapped in; None for None."""
    while isinstance(function, partial | MethodType):
        function = function.func if isinstance(function, partial) else function.__func__
    return getattr(function, "__module__", None)


def _rope_types(parameters: Any) -> Iterator[str]:
    """Every rope_type in a possibly nested rope_parameters."""
    if isinstance(parameters, dict):
        if isinstance(parameters.get("rope_type"), str):
            yield parameters["rope_type"]
        for value in parameters.values():
            yield from _rope_types(value)
