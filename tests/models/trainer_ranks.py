"""What a gloo rank does for one family: a stock Trainer as plain DDP with stock attention, and with HSAP in 2x2."""

from __future__ import annotations

import random
import tempfile
from typing import Any

import torch
from families import FAMILIES, UNTUNED, VOCABULARY, build
from torch.nn.utils.rnn import pad_sequence
from transformers import DataCollatorWithFlattening, Trainer, TrainerCallback, TrainingArguments

from hsap_hf import HsapPlugin, enable_hsap
from hsap_hf.hf.enable import causal_model

STEPS = 3
LOGGED = ("loss", "grad_norm")
LIMIT = 1e-6
"""Of weights."""
NOISE = 1e-7
"""Clipped gradients below it may be rounding. Sums in another order move a gradient by about 1e-9, and Adam's first
step lr * g / (|g| + eps) turns that into lr * 1e-9 * eps / (|g| + eps)^2: more than LIMIT from |g| = 1.2e-8 down."""
PADDED = {"gpt_oss", "opt"}
"""Model types that build their stock mask without position_ids: flattened documents would see each other."""


def compare_trainers(name: str) -> dict[str, Any]:
    """Largest differences over all steps between the two runs, on this rank.

    `steady_weights`: of weights whose stock gradient was above NOISE at every step; `amplified`: how many of the
    others are off by more than LIMIT, by parameter.
    """
    family = next(family for family in FAMILIES + UNTUNED if family.name == name)
    collator = _pad if family.model_type in PADDED else DataCollatorWithFlattening()
    stock, ours = build(family), build(family)
    watch, cuts = Watch(), Cuts()
    theirs = _train(stock, collator, watch)
    with enable_hsap(ours, HsapPlugin(context_size=2, ulysses_size=2)) as cuts.handle:
        mine = _train(ours, collator, cuts)
    losses, norms = (
        torch.tensor([[step[key] for step in run] for run in (mine, theirs)], dtype=torch.float64) for key in LOGGED
    )
    largest, largest_steady, amplified = [], [], {}
    for (name, weight), (_, other) in zip(_tensors(stock), _tensors(ours), strict=True):
        off = (weight - other).abs()
        steady = watch.smallest.get(name, torch.full_like(off, torch.inf)) >= NOISE
        largest.append(off.max())
        largest_steady.append((off * steady).max())
        if count := int((~steady & (off > LIMIT)).sum()):
            amplified[name] = count
    return {  # tensors all the way: their max keeps NaN
        "steps": [len(mine), len(theirs)],
        "cuts": cuts.by_step,
        "loss": float((losses[0] - losses[1]).abs().max()),
        "norm": float((norms[0] / norms[1] - 1).abs().max()),
        "weights": float(torch.stack(largest).max()),
        "steady_weights": float(torch.stack(largest_steady).max()),
        "amplified": amplified,
    }


def _tensors(model: Any) -> list[tuple[str, torch.Tensor]]:
    return [(name, value.detach()) for name, value in (*model.named_parameters(), *model.named_buffers())]


class Documents(torch.utils.data.Dataset):
    """One batch of four documents for each of four ranks and every step, short ones and long ones."""

    def __init__(self) -> None:
        draw = random.Random(0)
        lengths = [draw.choice((2, 3, 5, 9, 17, 30, 61)) for _ in range(STEPS * 4 * 4)]
        self.tokens = [[draw.randrange(3, VOCABULARY) for _ in range(length)] for length in lengths]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, item: int) -> dict[str, list[int]]:
        return {"input_ids": self.tokens[item], "labels": self.tokens[item]}


class Cuts(TrainerCallback):
    """How many documents the plan of each step cut."""

    def __init__(self) -> None:
        self.handle: Any = None
        self.by_step: list[int] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.by_step.append(len(self.handle.plan.cut_documents))


class Watch(TrainerCallback):
    """The smallest gradient that every weight got, as the optimizer sees it."""

    def __init__(self) -> None:
        self.smallest: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, *args: Any, model: Any, **kwargs: Any) -> None:
        for name, weight in causal_model(model).named_parameters():
            grad = weight.grad.abs()
            self.smallest[name] = grad.minimum(self.smallest.get(name, grad))


def _pad(examples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """A row for each document."""
    rows = [torch.tensor(example["input_ids"]) for example in examples]
    labels = pad_sequence(rows, batch_first=True, padding_value=-100)
    return {
        "input_ids": pad_sequence(rows, batch_first=True),
        "attention_mask": (labels != -100).long(),
        "labels": labels,
    }


def _train(model: Any, collator: Any, *callbacks: TrainerCallback) -> list[dict[str, float]]:
    """What Trainer logged at each step."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            use_cpu=True,
            per_device_train_batch_size=4,
            max_steps=STEPS,
            learning_rate=5e-5,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            ddp_find_unused_parameters=False,
        )
        trainer = Trainer(
            model, arguments, train_dataset=Documents(), data_collator=collator, callbacks=list(callbacks)
        )
        trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]
