"""Jobs that are parallel in another way already, on one rank of the gloo pool."""

from types import SimpleNamespace

from accelerate import ParallelismConfig
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from small import small_llama
from transformers.distributed import DistributedConfig

from hsap_hf import HsapDataCollator, HsapPlugin, enable_hsap
from hsap_hf.errors import ConfigError


def refusal(kind, late):
    """The words of the refusal, by enable_hsap or, where accelerate is configured after it, by the first batch."""
    model, undo = small_llama(), []
    tokens = HsapDataCollator()([{"input_ids": list(range(3, 20))}])
    if not late:
        undo.append(JOBS[kind](model))
    try:
        with enable_hsap(model, HsapPlugin(context_size=2)):
            undo.append(JOBS[kind](model))
            model(**tokens)
    except ConfigError as error:
        return str(error)
    finally:
        undo[0]()
    return "accepted"


def _job(state, name, value):
    def set_up(model):
        PartialState()
        before = dict(state._shared_state)
        state._shared_state[name] = value
        return lambda: (state._shared_state.clear(), state._shared_state.update(before))

    return set_up


def _loaded(**changes):
    def set_up(model):
        for name, value in changes.items():
            setattr(model, name, value)
        return lambda: None

    return set_up


def _distributed(**sizes):
    def set_up(model):
        model.config.distributed_config = DistributedConfig(**sizes)
        return lambda: None

    return set_up


JOBS = {
    "DeepSpeed": _job(PartialState, "distributed_type", DistributedType.DEEPSPEED),
    "Megatron-LM": _job(AcceleratorState, "distributed_type", DistributedType.MEGATRON_LM),
    "tensor parallelism (accelerate)": _job(AcceleratorState, "parallelism_config", ParallelismConfig(tp_size=2)),
    "context parallelism (accelerate)": _job(AcceleratorState, "parallelism_config", SimpleNamespace(cp_size=2)),
    "sequence parallelism (accelerate)": _job(AcceleratorState, "parallelism_config", SimpleNamespace(sp_size=2)),
    "FSDP version 1": _job(AcceleratorState, "fsdp_plugin", SimpleNamespace(fsdp_version=1)),
    "tensor parallelism (tp_plan)": _loaded(_tp_size=2),
    "expert parallelism": _distributed(fsdp_size=2, ep_size=2),
    "pipeline parallelism": _distributed(pp_size=2),
    "device_map over several devices": _loaded(hf_device_map={"model.layers.0": 0, "model.layers.1": 1}),
}
