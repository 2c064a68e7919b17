"""The model a recipe asks for."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from hsap_hf.errors import ConfigError
from hsap_hf.train.sections import ModelSection


def load_model(
    section: ModelSection, seed: int, device: torch.device | None = None, *, trust_remote_code: bool = False
) -> Any:
    """Pretrained weights, or random ones drawn with `seed` so that every rank holds the same. LoRA where asked for.

    device: where random weights are drawn. None: in the host's memory, where every machine draws the same; a GPU draws
    others, and those of large models in seconds.
    """
    options: dict[str, Any] = {"dtype": section.dtype if section.dtype == "auto" else getattr(torch, section.dtype)}
    if section.attn_implementation is not None:
        options["attn_implementation"] = section.attn_implementation
    set_seed(seed)
    if section.config is not None:
        config = AutoConfig.for_model(**section.config)
        if options["dtype"] == "auto":
            del options["dtype"]
        with torch.device(device or "cpu"):
            model = AutoModelForCausalLM.from_config(config, **options)
    else:
        try:
            model = AutoModelForCausalLM.from_pretrained(
                section.name_or_path, trust_remote_code=trust_remote_code, **options
            )
        except (OSError, ValueError) as error:
            raise ConfigError(f"model.name_or_path {section.name_or_path!r}: {str(error).splitlines()[0]}") from error
    if section.lora is not None:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(**{"task_type": "CAUSAL_LM", **section.lora}))
    return model
