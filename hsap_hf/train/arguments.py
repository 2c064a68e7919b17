"""The `training` section of a recipe: exactly TrainingArguments, checked by name, type and meaning before use."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from hsap_hf.errors import ConfigError
from hsap_hf.strict import field_problems, unknown_keys

if TYPE_CHECKING:
    from transformers import TrainingArguments

DEFAULTS: Mapping[str, Any] = {
    "per_device_train_batch_size": 1,  # one item is a rank's part of one pack
    "per_device_eval_batch_size": 1,
    "train_sampling_strategy": "sequential",  # PackedDataset shuffles packs, not parts
    "ddp_find_unused_parameters": False,
    "report_to": "none",
}

GONE: Mapping[str, str] = {
    "warmup_ratio": "warmup_steps takes a fraction too: `warmup_steps: 0.03`.",
    "logging_dir": "Set the environment variable TENSORBOARD_LOGGING_DIR.",
    "overwrite_output_dir": "Name an empty output_dir, or continue with resume_from_checkpoint.",
    "group_by_length": "Leave it out: packs mix long and short documents and HSAP levels them.",
    "include_tokens_per_second": "Use `include_num_input_tokens_seen: all`.",
    "evaluation_strategy": "Use eval_strategy.",
    "no_cuda": "Use `use_cpu: true`.",
    "use_mps_device": "Leave it out: the device is found by itself.",
    "per_gpu_train_batch_size": "Use packing.pack_tokens.",
    "per_gpu_eval_batch_size": "Use packing.pack_tokens.",
    "half_precision_backend": "Use `bf16: true` or `fp16: true`.",
    "fp16_backend": "Use `bf16: true` or `fp16: true`.",
    "fp16_opt_level": "Use `bf16: true` or `fp16: true`.",
    "adafactor": "Use `optim: adafactor`.",
    "save_safetensors": "Leave it out: checkpoints are always safetensors.",
    "sharded_ddp": "Use an accelerate file with fsdp_config (recipes/accelerate).",
    "fsdp_min_num_params": "Use an accelerate file with fsdp_config (recipes/accelerate).",
    "fsdp_transformer_layer_cls_to_wrap": "Use an accelerate file with fsdp_config (recipes/accelerate).",
    "torchdynamo": "Use torch_compile_backend.",
    "jit_mode_eval": "Use torch_compile.",
    "include_inputs_for_metrics": "Use `include_for_metrics: [inputs]`.",
    "dispatch_batches": "Leave it out: every rank loads its own part.",
    "split_batches": "Leave it out: every rank loads its own part.",
    "push_to_hub_model_id": "Use hub_model_id.",
    "push_to_hub_organization": "Use `hub_model_id: organization/name`.",
    "push_to_hub_token": "Use hub_token.",
}
"""Arguments of transformers 4.x that 5.x no longer has, and what does their work now."""

_ONE_PART = (
    "one item is a rank's part of one pack, so 1 item per rank is one whole pack per group; "
    "more would deal several packs at once. Set packing.pack_tokens instead."
)
_PARTS_MEET = "the ranks of a group would bring parts of different packs. Leave it out."

REFUSED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "per_device_train_batch_size": ((1,), _ONE_PART),
    "per_device_eval_batch_size": ((1,), _ONE_PART),
    "auto_find_batch_size": ((False,), _ONE_PART),
    "train_sampling_strategy": (
        ("sequential",),
        "the parts of a pack are consecutive items and must be read in order; the packs themselves are shuffled anew "
        "every epoch by packing.seed. Leave it out.",
    ),
    "label_smoothing_factor": ((0,), "its loss shifts labels once more, across the edges of documents. Leave it out."),
    "average_tokens_across_devices": (
        (True,),
        "the loss is a sum over tokens divided by the token count of all ranks; a count per rank would weigh documents "
        "by the rank that computes them. Leave it out.",
    ),
    "eval_strategy": (
        ("no",),
        "a recipe brings no data to evaluate on. Leave it out, or write a script.",
    ),
    "neftune_noise_alpha": ((None, 0), "its noise depends on how many tokens a rank holds. Leave it out."),
    "use_cache": ((False, None), "a forward with a cache does not keep documents apart. Leave it out."),
    "parallelism_config": (
        (None,),
        "sizes reported to accelerate change token counts and loader lengths; HSAP builds its own groups. "
        "Set hsap.context_size and hsap.ulysses_size.",
    ),
}
"""Values that an argument may have, and why no others: they would not give the result of plain data parallelism."""

_CHECKPOINTING = {"use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop"}
"""What torch.utils.checkpoint takes and a recipe can hold. Newer transformers have words of their own."""
_REFUSED_ACCELERATOR = {"split_batches": True, "dispatch_batches": True, "even_batches": False}


def training_problems(values: Mapping[str, Any]) -> list[str]:
    """One sentence per argument that TrainingArguments does not know, cannot take, or that would break exactness."""
    from transformers import TrainingArguments

    known = {field.name for field in fields(TrainingArguments) if field.init}
    values = {_installed_name(name, known): value for name, value in values.items()}
    gone = [name for name in values if name in GONE and name not in known]
    problems = [f"training: transformers 5 has no {name!r}. {GONE[name]}" for name in gone]
    current = {name: value for name, value in values.items() if name not in gone}
    refused = [name for name, value in current.items() if name in REFUSED and value not in REFUSED[name][0]]
    for name in refused:
        allowed, why = REFUSED[name]
        problems.append(f"training.{name}: got {current[name]!r}, HSAP needs {' or '.join(map(repr, allowed))}: {why}")
    others = {name: value for name, value in current.items() if name not in refused}
    if isinstance(others.get("fsdp"), bool):  # annotated as a text, documented as a bool
        del others["fsdp"]
    for problem in field_problems(TrainingArguments, others, "training"):
        bare_no = "got False" in problem and "a text" in problem  # YAML reads no and off as false
        problems.append(problem + (' Quote it: "no".' if bare_no else ""))
    hints = get_type_hints(TrainingArguments)
    for name, value in others.items():
        problems += _choice_problems(name, value, hints.get(name))
    if isinstance(fsdp := current.get("fsdp"), bool | str) and fsdp and current.get("use_cpu"):
        problems.append("training.fsdp: accelerate shards on GPUs only. Leave out this or use_cpu.")
    if current.get("gradient_accumulation_steps") in (0, False):
        problems.append("training.gradient_accumulation_steps: got 0, needs at least 1.")
    checkpoint = current.get("resume_from_checkpoint")
    if isinstance(checkpoint, str) and not Path(checkpoint).is_dir():
        problems.append(f"training.resume_from_checkpoint: {checkpoint} is no folder. Name a run's checkpoint-N.")
    problems += _checkpointing_problems(current)
    loader = current.get("accelerator_config")
    for name, refused in _REFUSED_ACCELERATOR.items():
        if isinstance(loader, dict) and loader.get(name) is refused:
            problems.append(f"training.accelerator_config.{name}: got {refused!r}: {_PARTS_MEET}")
    return problems


def _checkpointing_problems(values: Mapping[str, Any]) -> list[str]:
    """Of activation checkpointing's own words, which else would fail in the first step."""
    from transformers import PreTrainedModel

    enable = getattr(PreTrainedModel, "activation_checkpointing_enable", PreTrainedModel.gradient_checkpointing_enable)
    own = inspect.signature(enable).parameters.keys() & {"offload", "every_n_layers"}
    problems = []
    for name in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):
        words = values.get(name)
        if not isinstance(words, dict):
            continue
        problems += unknown_keys(words, _CHECKPOINTING | own | {"offload"}, f"training.{name}")
        if words.get("offload") and "offload" not in own:
            problems.append(f"training.{name}: offload needs transformers 5.17: pip install -U transformers.")
        elif words.get("offload") and values.get("use_cpu"):
            problems.append(f"training.{name}: offload moves a GPU's memory to the host. Leave out this or use_cpu.")
    return problems


def training_arguments(values: Mapping[str, Any]) -> TrainingArguments:
    """TrainingArguments from `values` over our DEFAULTS. Starts torch.distributed when ranks were launched.

    Raises ConfigError with the text of transformers where the values do not go together on this machine.
    """
    from transformers import TrainingArguments

    problems = training_problems(values)
    if problems:
        raise ConfigError("\n".join(problems))
    known = {field.name for field in fields(TrainingArguments) if field.init}
    given = {_installed_name(name, known): value for name, value in values.items()}
    try:
        return TrainingArguments(**{**DEFAULTS, **given})
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"training: {error}") from error


def _installed_name(name: str, known: set[str]) -> str:
    """`activation_checkpointing` is called `gradient_checkpointing` by older transformers."""
    older = name.replace("activation_checkpointing", "gradient_checkpointing")
    return older if name not in known and older in known else name


def _choice_problems(name: str, value: Any, hint: Any) -> list[str]:
    kinds = [choice for choice in get_args(hint) if isinstance(choice, type) and issubclass(choice, Enum)]
    choices = [member.value for kind in kinds for member in kind]
    if not choices or not isinstance(value, str) or value in choices:
        return []
    near = difflib.get_close_matches(value, choices, n=1)
    advice = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(choices)}."
    return [f"training.{name}: unknown value {value!r}; {advice}"]
