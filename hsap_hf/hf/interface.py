"""The functions that Transformers calls by our names: attention over dealt tokens and its mask, and between batches."""

from __future__ import annotations

import re
import sys
import warnings
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hsap_hf.attention import Scores, attend
from hsap_hf.errors import PackError, UnsupportedModelError
from hsap_hf.hf.dealt import DealtBatch

NAME = "hsap"
BATCH_KEY = "hsap_batch"
"""Keyword under which the dealt batch reaches every attention layer, also when a checkpoint recomputes it."""
_UNSHARED = (
    "a training forward of an enabled model is not shared with the group: it has no labels, or goes past the call of "
    "the whole model (model.model(...), or a wrapper that calls model.forward, as PEFT's AdaLoRA does)."
)
_NOT_HONOURED = ("position_bias", "head_mask", "output_attentions", "indices", "block_indices", "block_mask", "sinks")


def register() -> None:
    """Make "hsap" known to Transformers; registering twice changes nothing."""
    AttentionInterface.register(NAME, hsap_attention)
    AttentionMaskInterface.register(NAME, no_mask)


@cache
def register_resting(stock: str) -> str:
    """The name that models have between batches: masks are those of `stock`, and so is attention, but in a backward
    that computes dealt layers anew."""
    # models that read "flash" in it would compute otherwise, and "org/name" is a kernel of a hub
    name = f"{NAME}_over_" + re.sub(r"\W", "_", stock.replace("flash", "fl4sh"))
    AttentionInterface.register(name, partial(hsap_attention, stock=stock))
    if stock in ALL_MASK_ATTENTION_FUNCTIONS:
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[stock])
    return name


@torch.compiler.disable
def hsap_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    stock: str | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer: query [1, N, T, H], key and value [1, G, T, H] -> [1, T, N, H].

    stock: what computes attention where no batch was dealt.
    Raises UnsupportedModelError for every argument that would change the result and is not honoured.
    """
    batch: DealtBatch | None = kwargs.pop(BATCH_KEY, None)
    if batch is None:
        options = {"sliding_window": sliding_window, "softcap": softcap, "s_aux": s_aux}
        given = {name: option for name, option in options.items() if option is not None}
        given |= {"dropout": dropout, "scaling": scaling, **kwargs}
        return _by_stock(stock, module, query, key, value, attention_mask, **given)
    refuse_options(module, attention_mask, dropout, kwargs)
    batch.attention_calls += 1
    scores = Scores(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap)
    rows = len(batch.tokens)
    q, k, v = (x[0, :, :rows].transpose(0, 1) for x in _one_dtype(query, key, value))
    out = attend(batch.call(q, k, v, scores), q, k, v, s_aux)
    return (out if rows else F.pad(out, (0, 0, 0, 0, 0, 1)))[None], None


def no_mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> None:
    """Dealt tokens need no mask: the plan keeps documents apart. Raises PackError for a mask that was not dealt."""
    if attention_mask is not None:
        raise PackError(
            "an attention_mask reached the model beside a dealt batch. Pass it to the model's forward only."
        )


def refuse_options(module: torch.nn.Module, mask: Tensor | None, dropout: float, kwargs: dict[str, Any]) -> None:
    name = type(module).__name__
    if mask is not None:
        raise UnsupportedModelError(f"{name} builds an attention mask of its own, which HSAP would ignore.")
    if dropout:
        raise UnsupportedModelError(f"{name} drops attention weights (attention_dropout={dropout}). Set it to 0.")
    if not kwargs.get("is_causal", getattr(module, "is_causal", True)):
        raise UnsupportedModelError(f"{name} is not causal. HSAP computes causal attention only.")
    for option in _NOT_HONOURED:
        if kwargs.get(option) is not None and kwargs[option] is not False:
            raise UnsupportedModelError(f"{name} passes {option} to attention, which HSAP does not honour.")


def _one_dtype(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Under autocast rotary embeddings leave queries and keys in float32 beside half precision values; kernels take one
    type, the one autocast asks for."""
    device = query.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        return query.to(dtype), key.to(dtype), value.to(dtype)
    if not query.dtype == key.dtype == value.dtype:
        raise UnsupportedModelError(
            f"attention got queries in {query.dtype}, keys in {key.dtype} and values in {value.dtype}; needs one type."
        )
    return query, key, value


def _by_stock(stock: str | None, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Attention as without HSAP, by a function that looks at the model's configuration, too."""
    if stock is None:
        raise UnsupportedModelError(
            f"{type(module).__name__} was not given the dealt batch: its model keeps keyword arguments from attention. "
            f"(Or an earlier forward was interrupted: the next call of the whole model mends that.)"
        )
    if module.training and torch.is_grad_enabled():
        warnings.warn(_UNSHARED, stacklevel=2)
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    config: Any = module.config
    config._attn_implementation_internal = stock
    try:
        return ALL_ATTENTION_FUNCTIONS.get_interface(stock, eager)(module, *args, **kwargs)
    finally:
        config._attn_implementation_internal = register_resting(stock)
