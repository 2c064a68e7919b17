"""Runs on one rank of the gloo pool: a stock Trainer, with HSAP or as plain data parallelism."""

import multiprocessing
import tempfile

import torch
import torch.distributed as dist
from small import COLLATORS, Documents, small_llama
from transformers import Trainer, TrainerCallback, TrainingArguments

from hsap_hf import HsapPlugin, enable_hsap

DEFAULTS = {
    "use_cpu": True,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "max_steps": 8,
    "logging_steps": 1,
    "include_num_input_tokens_seen": "all",
    "report_to": [],
    "save_strategy": "no",
    "learning_rate": 5e-5,
    "ddp_find_unused_parameters": False,
    "disable_tqdm": True,
    "seed": 1,
}
EVALUATED = 27
"""Documents to evaluate on: with four ranks of four, the last batch is uneven."""


class Stream(torch.utils.data.IterableDataset):
    """The documents one after the other, without a length."""

    def __iter__(self):
        documents = Documents()
        return (documents[item] for item in range(len(documents)))


def _streamed():
    from datasets import Dataset

    return Dataset.from_list(list(Documents())).to_iterable_dataset(num_shards=4)


DATA = {
    "listed": Documents,
    "few": lambda: Documents(96),
    "iterable": Stream,
    "streamed": _streamed,
    "partly masked": lambda: Documents(masked_every=2),
    "one-token": lambda: Documents(lengths=(1, 1, 2, 60)),
}


def _lora(model):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))


def _frozen(model):
    model.get_input_embeddings().requires_grad_(False)
    model.model.layers[0].requires_grad_(False)
    return model


CHANGES = {None: lambda model: model, "lora": _lora, "frozen": _frozen}


class Counted(TrainerCallback):
    """What a callback sees at the end of each step."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append((state.global_step, round(state.epoch, 9), state.num_input_tokens_seen))


def train(
    group,
    *,
    data="listed",
    collator="flattening",
    change=None,
    config=None,
    metrics=False,
    resume=None,
    folder=None,
    **arguments,
):
    """Train and evaluate once; `group` is (context_size, ulysses_size), or None for plain DDP with stock SDPA."""
    if arguments.get("dataloader_num_workers"):
        _may_have_children()
    model = CHANGES[change](small_llama(**(config or {})))
    logits = {"return_logits": "brought"} if metrics else {}
    sizes = dict(zip(("context_size", "ulysses_size"), group or (), strict=False))
    handle = enable_hsap(model, HsapPlugin(**sizes, **logits, debug=True)) if group else None
    counted = Counted()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model,
            TrainingArguments(folder or scratch, **DEFAULTS | arguments),
            train_dataset=DATA[data](),
            eval_dataset=torch.utils.data.Subset(Documents(), range(EVALUATED)),
            data_collator=COLLATORS[collator](),
            callbacks=[counted],
            compute_metrics=_metrics if metrics else None,
        )
        trainer.train(resume_from_checkpoint=resume)
        evaluated = trainer.evaluate()
        predicted = trainer.predict(trainer.eval_dataset) if metrics else None
    report = handle.report() if handle else {}
    if handle:
        handle.disable()
    logs, state = trainer.state.log_history, trainer.state

    def logged(name):
        return [entry[name] for entry in logs if name in entry]

    return {
        "loss": logged("loss"),
        "grad_norm": logged("grad_norm"),
        "learning_rate": logged("learning_rate"),
        "eval_loss": logged("eval_loss"),
        "evaluated": {
            name: value for name, value in evaluated.items() if name.startswith("eval_") and "per" not in name
        },
        "predicted": predicted and predicted.predictions,
        "labels": predicted and predicted.label_ids,
        "counted": counted.seen,
        "tokens_seen": state.num_input_tokens_seen,
        "total_batch": trainer.get_total_train_batch_size(trainer.args),
        "best": (state.best_global_step, state.best_metric),
        "report": report,
        "compiled_graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
        "weights": {name: value.float().numpy() for name, value in model.state_dict().items()}
        if dist.get_rank() == 0
        else {},
    }


def _metrics(prediction):
    hits = (prediction.predictions.argmax(-1)[:, :-1] == prediction.label_ids[:, 1:]) & (
        prediction.label_ids[:, 1:] >= 0
    )
    return {"accuracy": hits.sum() / (prediction.label_ids[:, 1:] >= 0).sum()}


def _may_have_children():
    """A rank of the pool is a daemon that was spawned; loader workers are its forked children, as in a real job."""
    multiprocessing.current_process()._config["daemon"] = False
    multiprocessing.set_start_method("fork", force=True)
