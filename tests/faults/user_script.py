"""A user's own training script that goes wrong on rank 1: stock Trainer, enable_hsap, nothing else.

python user_script.py FAULT (batch | callback): the fault happens while rank 1 prepares its third batch, or between two
micro-batches of one step, when the others wait for its next forward.
"""

import os
import signal
import sys
import tempfile
import time

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DataCollatorWithFlattening,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hsap_hf import HsapPlugin, enable_hsap

FAULT, PLACE = sys.argv[1:]
RANK = int(os.environ["RANK"])
TINY = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


class FaultyCollator(DataCollatorWithFlattening):
    """Behaves for two batches."""

    calls = 0

    def __call__(self, examples):
        self.calls += 1
        batch = super().__call__(examples)
        if PLACE == "batch" and self.calls == 3:
            fault(batch)
        return batch


class FaultyCallback(TrainerCallback):
    """Behaves for one step."""

    def on_substep_end(self, args, state, control, **kwargs):
        if PLACE == "callback" and state.global_step == 1:
            fault({})


def fault(batch):
    if RANK != 1:
        return
    print("FAULT", time.time(), flush=True)
    if FAULT == "raises":
        raise ValueError("row 7 is no JSON")
    if FAULT == "hole":
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        batch["attention_mask"][0, 3] = 0
    if FAULT == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if FAULT == "sleeps":
        time.sleep(6)


arguments = TrainingArguments(
    tempfile.mkdtemp(),
    use_cpu=True,
    max_steps=3,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=2 if PLACE == "callback" else 1,
    report_to=[],
    save_strategy="no",
    disable_tqdm=True,
    ddp_find_unused_parameters=False,
)
if FAULT == "qwen3_next":
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(FAULT))
    print("FAULT", time.time(), flush=True)
else:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **TINY))
enable_hsap(model, HsapPlugin(context_size=2, timeout_seconds=3 if FAULT == "sleeps" else 60))
rows = [{"input_ids": list(range(3, 12 + i % 5)), "labels": list(range(3, 12 + i % 5))} for i in range(40)]
Trainer(model, arguments, train_dataset=rows, data_collator=FaultyCollator(), callbacks=[FaultyCallback()]).train()
print("TRAINED", flush=True)
