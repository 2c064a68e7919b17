"""Other ways the job may already be parallel: which of them HSAP composes with, and which it would get wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from accelerate.state import AcceleratorState, PartialState

from hsap_hf.errors import ConfigError

_REFUSED = {
    "DEEPSPEED": "DeepSpeed runs forward, backward and the gradient sums in an engine of its own, where no HSAP run "
    "was ever compared with data parallelism. Use FSDP2 (recipes/accelerate/fsdp2_8gpu.yaml), which shards as ZeRO-3.",
    "MEGATRON_LM": "Megatron-LM replaces the model and its loss. Use DDP or FSDP2.",
    "XLA": "XLA traces a step once, but HSAP plans every batch. Use DDP or FSDP2 on CUDA.",
}
_SHARED_BATCH = "ranks would bring one batch several times, and the plan would count its tokens as often"
_SIZES = {"tp_size": _SHARED_BATCH, "cp_size": "it cuts the rows that HSAP deals", "sp_size": "it cuts the same rows"}


def refuse_strategies(model: Any) -> None:
    """Raise one ConfigError with every reason why this job's parallelism does not compose with HSAP.

    DDP and FSDP2 compose: both only average gradients over ranks that brought batches of their own.
    """
    problems = [*_model_problems(model), *_job_problems()]
    if problems:
        raise ConfigError("HSAP does not compose with this job:\n" + "\n".join(f"- {text}" for text in problems))


def _model_problems(model: Any) -> Iterator[str]:
    sizes = getattr(getattr(model, "config", None), "distributed_config", None)
    for name, kind in (("tp_size", "tensor"), ("ep_size", "expert"), ("pp_size", "pipeline")):
        size = getattr(sizes, name, None) or (getattr(model, "_tp_size", None) if name == "tp_size" else None) or 1
        if size > 1:
            yield f"the model was loaded with {kind} parallelism ({name}={size}): {_SHARED_BATCH}. Load it without."
    devices = {str(device) for device in (getattr(model, "hf_device_map", None) or {}).values()}
    if len(devices) > 1:
        yield (
            f"device_map spreads the model over {', '.join(sorted(devices))}; every rank needs one device. "
            f"Load it without device_map."
        )


def _job_problems() -> Iterator[str]:
    """What accelerate was told, as far as it has been started."""
    for state in (AcceleratorState, PartialState):
        kind = state._shared_state.get("distributed_type")
        reason = _REFUSED.get(getattr(kind, "value", ""))
        if reason is not None:
            yield reason
            break
    sharding = AcceleratorState._shared_state.get("fsdp_plugin")
    if getattr(sharding, "fsdp_version", 2) == 1:
        yield "FSDP version 1 copies what travels with a batch to every layer. Set fsdp_version: 2."
    sizes = AcceleratorState._shared_state.get("parallelism_config")
    for name, reason in _SIZES.items():
        size = getattr(sizes, name, None) or 1
        if size > 1:
            yield f"parallelism_config.{name}={size}: {reason}. Set context_size and ulysses_size instead."
