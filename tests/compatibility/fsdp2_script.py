"""FSDP2 through `accelerate launch`: every run that test_accelerate_fsdp2.py compares, in one job of two GPUs.

What a run saw and ended with is written to FOLDER/RUN.json and FOLDER/RUN.npz, its checkpoints to FOLDER/RUN.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from accelerate import PartialState
from small import COLLATORS, Documents, small_llama
from torch.distributed.tensor import DTensor
from trainer_runs import DEFAULTS, EVALUATED
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, set_seed

from hsap_hf import HsapPlugin, enable_hsap

SETTING = DEFAULTS | {
    "use_cpu": False,
    "gradient_accumulation_steps": 2,
    "max_steps": 12,
    "learning_rate": 1e-4,
    "eval_strategy": "steps",
    "eval_steps": 6,
    "save_strategy": "steps",
    "save_steps": 6,
}
HALF = {"bf16": True, "gradient_checkpointing": True, "save_strategy": "no"}
LOGGED = ("loss", "grad_norm", "eval_loss", "learning_rate")


def lora(model):
    from peft import LoraConfig, get_peft_model

    set_seed(0)
    options = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    return get_peft_model(model, LoraConfig(**options))


def train(folder, run, *, shared, resume=None, **arguments):
    """Train as this rank of the job: all of it, or from the middle of the run `resume`."""
    training = TrainingArguments(str(folder / run), **SETTING | arguments)
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    if run.startswith("lora"):
        model = lora(model)
    handle = enable_hsap(model, HsapPlugin(context_size=2, debug=True)) if shared else None
    trainer = Trainer(
        model,
        training,
        train_dataset=Documents(),
        eval_dataset=torch.utils.data.Subset(Documents(), range(EVALUATED)),
        data_collator=COLLATORS["flattening"](),
    )
    trainer.train(resume_from_checkpoint=resume and str(folder / resume / "checkpoint-6"))
    assert trainer.accelerator.is_fsdp2
    shards = trainer.model.state_dict()
    assert all(isinstance(shard, DTensor) for shard in shards.values())
    weights = {name: shard.full_tensor().float().cpu().numpy() for name, shard in shards.items()}
    rows = torch.tensor(handle.report()["received_rows"] if handle else 0, device=training.device)
    dist.all_reduce(rows)
    if handle:
        handle.disable()
    if training.process_index == 0:
        history = trainer.state.log_history
        seen = {name: [entry[name] for entry in history if name in entry] for name in LOGGED}
        counts = {"tokens_seen": trainer.state.num_input_tokens_seen, "received_rows": int(rows)}
        (folder / f"{run}.json").write_text(json.dumps(seen | counts))
        np.savez(folder / f"{run}.npz", **weights)


def main(folder):
    state = PartialState()  # starts the ranks
    if state.is_main_process:
        small_llama(hidden_size=128).save_pretrained(folder / "base")
    state.wait_for_everyone()
    for kind in ("full", "lora"):
        for shared in (False, True):
            run = f"{kind} shared" if shared else f"{kind} plain"
            train(folder, run, shared=shared)
            train(folder, f"{run} resumed", shared=shared, resume=run)
        train(folder, f"{kind} plain after all", shared=False, resume=f"{kind} shared")
    for shared in (False, True):
        train(folder, "half shared" if shared else "half plain", shared=shared, **HALF)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
