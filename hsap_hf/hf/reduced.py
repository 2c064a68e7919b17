"""A tiny float64 copy of a model, built from its configuration: same classes, same kinds of layers, small widths."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

_HEAD_DIM = 16
_MOST_LAYERS = 8
"""Layers from the front that are copied as they are; where the kinds start later, one of each is chosen."""
_MOST_WEIGHTS = 20_000_000
"""A copy that is still larger is not built: the probe must cost less than a second."""
_FIXED = {
    "sliding_window": 4,
    "attention_chunk_size": 4,
    "floor_scale": 4,
    "log_scaling_n_floor": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
}
_LIMITS = (
    (re.compile(r"vocab_size"), 64),
    (re.compile(r"(intermediate|ffn|mlp|shared_expert).*(size|dim)|ffn_dim"), 32),
    (re.compile(r"(num|n)_(local_|routed_|shared_)?experts|moe_num_experts"), 4),
    (re.compile(r"experts_per_tok|top_?k|moe_k"), 2),
)


class NotReducible(Exception):  # noqa: N818 - an answer, not a fault
    """No tiny copy can be built; the text says why."""


def reduced_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy with random weights in evaluation mode on the CPU. Leaves `model` and every random state as they are."""
    try:
        kinds = _layer_kinds(model)
        first = {kind: index for index, kind in reversed(list(enumerate(kinds)))}
        keep = list(range(max(first.values(), default=1) + 1))
        if len(keep) > _MOST_LAYERS:
            keep = sorted(first.values())
        config = reduced_config(model.config, keep)
        with torch.device("meta"):
            size = sum(weight.numel() for weight in type(model)(copy.deepcopy(config)).parameters())
        if size > _MOST_WEIGHTS:
            raise NotReducible(f"a copy with {len(keep)} layers still has {size:,} weights")
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            small = type(model)(config).double().eval()
            if "_loss_function" in vars(model):  # the user's own
                small.loss_function = model.loss_function
            small.set_experts_implementation("eager")  # the grouped products know no float64
            for weight in small.parameters():
                weight.requires_grad_(False).add_(torch.randn_like(weight), alpha=0.1)
    except NotReducible:
        raise
    except Exception as error:  # whatever a configuration class does not accept
        raise NotReducible(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from error
    lost = set(kinds) - set(_layer_kinds(small))
    if lost:
        raise NotReducible(f"a copy with {len(keep)} layers would lack {len(lost)} of its {len(first)} kinds of layers")
    return small


def reduced_config(config: PreTrainedConfig, keep: list[int]) -> PreTrainedConfig:
    """`config` with the layers `keep` and small widths; what its class derives from other fields is derived anew."""
    names = [item.name for item in fields(config) if item.init] if is_dataclass(config) else list(config.to_dict())
    values = {name: copy.deepcopy(getattr(config, name)) for name in names if hasattr(config, name)}
    alias = config.attribute_map
    num_layers = config.num_hidden_layers
    for name, value in values.items():
        if isinstance(value, list | tuple) and len(value) == num_layers:
            values[name] = [value[index] for index in keep]
        elif isinstance(value, int) and not isinstance(value, bool):
            limits = [limit for pattern, limit in _LIMITS if pattern.search(name)]
            values[name] = _FIXED.get(name, min([value, *limits]))
        elif isinstance(value, float) and ("dropout" in name or "pdrop" in name):
            values[name] = 0.0
    values |= {
        alias.get(name, name): value
        for name, value in _head_sizes(config).items()
        if alias.get(name, name) in values and values[alias.get(name, name)] is not None
    }
    values[alias.get("num_hidden_layers", "num_hidden_layers")] = len(keep)
    if "output_router_logits" in values:
        values["output_router_logits"] = False
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        value = values.get(name)
        if value is not None:
            values[name] = [0] if isinstance(value, list) else 0
    return type(config)(**values)


def _head_sizes(config: PreTrainedConfig) -> dict[str, int]:
    """Few narrow heads that keep the ratio of query to key-value heads, and the hidden size that fits them."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    few_kv = min(kv_heads, 2)
    few = few_kv * min(heads // kv_heads, 4)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    hidden = few * _HEAD_DIM if heads * head_dim == config.hidden_size else 64
    value_dim = getattr(config, "v_head_dim", None)
    query_dim = (getattr(config, "qk_nope_head_dim", None) or 0) + (getattr(config, "qk_rope_head_dim", None) or 0)
    rope_dim = getattr(config, "qk_rope_head_dim", None)
    return {
        "hidden_size": hidden,
        "num_attention_heads": few,
        "num_key_value_heads": few_kv,
        "head_dim": _FIXED["qk_rope_head_dim"] if head_dim == rope_dim else _HEAD_DIM,
        "v_head_dim": 24 if value_dim == query_dim else 12,
    }


def _layer_kinds(model: nn.Module) -> list[tuple[Any, ...]]:
    """What distinguishes every decoder layer: its declared type and the classes it is made of."""
    config: Any = model.config
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == config.num_hidden_layers]
    if not stacks:
        return []
    types = getattr(config, "layer_types", None) or [None] * config.num_hidden_layers
    return [(kind, *sorted(set(_class_names(layer)))) for kind, layer in zip(types, stacks[0], strict=False)]


def _class_names(module: nn.Module) -> Iterator[str]:
    """Classes of a module and its parts; an adapter (peft) or a quantized weight counts as the layer it stands for."""
    module = getattr(module, "base_layer", module)
    yield nn.Linear.__name__ if isinstance(module, nn.Linear) else type(module).__name__
    for part in module.children():
        yield from _class_names(part)
