"""Saving and resuming, on one rank of the gloo pool."""

import shutil
from pathlib import Path

import torch.distributed as dist
from small import small_llama
from trainer_runs import train
from transformers import AutoModelForCausalLM

SETTING = {
    "max_steps": 6,
    "save_strategy": "steps",
    "save_steps": 3,
    # Else DDP orders its buckets anew after the first step of a process, and plain DDP itself resumes with rounding.
    "ddp_find_unused_parameters": True,
}


def through(folder, group):
    """All six steps, saving after three."""
    return train(group, folder=folder, **SETTING)


def resumed(folder, copy, group):
    """The last three steps from the checkpoint in `folder`, perhaps in other groups."""
    if dist.get_rank() == 0:
        shutil.copytree(Path(folder) / "checkpoint-3", Path(copy) / "checkpoint-3")
    dist.barrier()
    return train(group, folder=copy, resume=str(Path(copy) / "checkpoint-3"), **SETTING)


def written_by(folder, group):
    """Names of what this rank alone writes, each rank into a folder of its own."""
    own = Path(folder) / f"rank{dist.get_rank()}"
    train(group, folder=str(own), **SETTING)
    return sorted(path.name for path in (own / "checkpoint-6").glob("*"))


def loaded(checkpoint):
    """A stock model from a checkpoint: its class, its attention, its config keys that name HSAP, its weights."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    config = (Path(checkpoint) / "config.json").read_text()
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    return type(model) is type(small_llama()), model.config._attn_implementation, "hsap" in config, weights
