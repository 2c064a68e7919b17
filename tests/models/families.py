"""Every family of docs/models.md: its Transformers classes with a tiny random configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 96
WINDOW = 7

_BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SLIDING = {"sliding_window": WINDOW}
_MIXED = {**_SLIDING, "layer_types": ["sliding_attention", "full_attention"]}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
_LATENT = {
    **_EXPERTS,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN_ROPE = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 32.0, "original_max_position_embeddings": 4}
_PHI4 = {"partial_rotary_factor": 0.75, "head_dim": 16, "hidden_size": 64}


@dataclass(frozen=True)
class Family:
    """One row of the table."""

    name: str
    model_type: str
    features: str
    options: dict[str, Any] = field(default_factory=dict)
    kernel: str = "sdpa"
    """The one that "auto" takes on a CPU."""

    def config(self) -> Any:
        return AutoConfig.for_model(self.model_type, **{**_BASE, **self.options})


FAMILIES = (
    Family("Llama 3", "llama", "grouped heads, llama3 RoPE", {"rope_parameters": _LLAMA3_ROPE}),
    Family("Mistral", "mistral", "sliding window", _SLIDING),
    Family("Mixtral", "mixtral", "experts, sliding window", {**_SLIDING, "num_local_experts": 4}),
    Family("Qwen2 / Qwen2.5", "qwen2", "biases, tied embeddings", {"tie_word_embeddings": True}),
    Family("Qwen3", "qwen3", "query-key norm, own head size", {"head_dim": 12}),
    Family("Qwen3-MoE", "qwen3_moe", "experts, query-key norm", {**_EXPERTS, "num_experts": 4, "head_dim": 8}),
    Family(
        "Gemma 2",
        "gemma2",
        "softcap, window on every other layer",
        {**_MIXED, "head_dim": 12, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 10},
        "dense",
    ),
    Family(
        "Gemma 3 text",
        "gemma3_text",
        "local and global layers, multi-query",
        {"num_hidden_layers": 6, "head_dim": 8, "num_key_value_heads": 1, **_SLIDING},
    ),
    Family("Phi-3", "phi3", "joined projections, sliding window", _SLIDING),
    Family("Phi-4", "phi3", "partial RoPE", _PHI4),
    Family(
        "GPT-OSS",
        "gpt_oss",
        "learned sinks, window on every other layer, experts, yarn RoPE",
        {**_MIXED, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "rope_parameters": _YARN_ROPE},
    ),
    Family("OLMo", "olmo", "norm without weights, clipped values", {"clip_qkv": 3.0, "num_key_value_heads": 4}),
    Family("OLMo 2", "olmo2", "norm after attention", {"num_key_value_heads": 4}),
    Family("OLMo 3", "olmo3", "local and global layers", {**_MIXED, "num_key_value_heads": 4}),
    Family(
        "Granite",
        "granite",
        "own scale of scores, logits and residuals",
        {"attention_multiplier": 0.2, "logits_scaling": 2.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0},
    ),
    Family("SmolLM3", "smollm3", "layers without RoPE", {"num_hidden_layers": 4}),
    Family("DeepSeek-V3", "deepseek_v3", "latent attention: value heads of another size, experts", _LATENT),
    Family(
        "Cohere 2",
        "cohere2",
        "parallel blocks, local layers with and global without RoPE",
        {**_MIXED, "head_dim": 8, "logit_scale": 0.5},
    ),
    Family("GLM-4", "glm4", "partial RoPE, four norms", {"head_dim": 16, "hidden_size": 64}),
)

UNTUNED = (
    Family("Arcee", "arcee", "squared ReLU"),
    Family("Helium", "helium", "grouped heads", {"head_dim": 8}),
    Family(
        "MiMo-V2-Flash",
        "mimo_v2_flash",
        "sinks, windows, value heads of another size, experts",
        {**_SLIDING, **_EXPERTS, "n_routed_experts": 4, "head_dim": 24, "v_head_dim": 12},
    ),
    Family(
        "OPT",
        "opt",
        "learned positions, biases",
        {"num_key_value_heads": 4, "ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0},
    ),
)
"""Families this project has no line of code for, and whose names it does not know."""


def build(family: Family) -> PreTrainedModel:
    """The same random weights on every rank; larger than Transformers' own, so that attention is far from uniform."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(family.config())
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.15 if weight.dim() > 1 else 0.05)
    return model.train()
