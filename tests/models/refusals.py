"""Models that HSAP refuses, as they come or by one setting, and what the reason must name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM


@dataclass(frozen=True)
class Refusal:
    """One row of the table of refusals."""

    name: str
    model_type: str
    says: str
    """A part of the reason."""
    options: dict[str, Any] = field(default_factory=dict)

    def model(self) -> Any:
        """With the sizes of its configuration class and without weights."""
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(AutoConfig.for_model(self.model_type, **self.options))


def _rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0, **more}}


_LONG = _rope("longrope", short_factor=[1.0] * 48, long_factor=[2.0] * 48, original_max_position_embeddings=4096)
REFUSALS = (
    Refusal("Qwen3-Next", "qwen3_next", "linear_attention"),
    Refusal("Qwen3.5", "qwen3_5_text", "linear_attention"),
    Refusal("LFM2", "lfm2", "conv", {"full_attn_idxs": [2, 5]}),
    Refusal("Jamba", "jamba", "linear_attention"),
    Refusal("Bamba", "bamba", "linear_attention"),
    Refusal("Mamba 2", "mamba2", "linear_attention"),
    Refusal("Nemotron-H", "nemotron_h", "linear_attention"),
    Refusal("RecurrentGemma", "recurrent_gemma", "linear_attention"),
    Refusal("RWKV", "rwkv", "AttentionInterface"),
    Refusal("Llama 4 (chunked)", "llama4_text", "chunked_attention"),
    Refusal("DeepSeek-V3.2 (indexed)", "deepseek_v32", "indexed_attention"),
    Refusal("Falcon", "falcon", "AttentionInterface"),
    Refusal("BLOOM", "bloom", "AttentionInterface"),
    Refusal("BERT", "bert", "attention_probs_dropout_prob"),
    Refusal("RoBERTa without dropout", "roberta", "not causal", {"attention_probs_dropout_prob": 0.0}),
    Refusal("Doge", "doge", "attention mask of its own"),
    Refusal("Phi-3 128k (longrope)", "phi3", "longrope", _LONG),
    Refusal("Llama with dynamic NTK", "llama", "dynamic", _rope("dynamic")),
    Refusal("Mixtral with router loss", "mixtral", "output_router_logits", {"output_router_logits": True}),
    Refusal("GPT-2 with attention dropout", "gpt2", "attn_pdrop=0.1"),
)
