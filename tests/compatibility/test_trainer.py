"""A stock Trainer with HSAP trains exactly as plain data parallelism does on the same ranks, whatever is on."""

import numpy as np
import pytest

GROUPS = [(2, 1), (1, 2), (2, 2), (4, 1)]
DDP = "plain DDP, same 4 ranks"


@pytest.fixture(scope="module")
def plain(gloo):
    """What plain DDP with stock SDPA gives; every setting is run once."""
    runs = {}

    def run(**settings):
        key = repr(sorted(settings.items()))
        if key not in runs:
            runs[key] = gloo.run("trainer_runs:train", None, **settings)
        return runs[key]

    return run


def difference(ours, stock, losses=1e-5, norms=1e-4, evaluated=1e-6, weights=1e-6):
    """The largest difference of two runs, after holding every part of them against its limit."""
    parts = {}
    for mine, theirs in zip(ours, stock, strict=True):  # by rank
        for name, limit in (("loss", losses), ("grad_norm", norms), ("eval_loss", evaluated)):
            assert len(mine[name]) == len(theirs[name]) > 0, name
            parts[name] = np.abs(np.subtract(mine[name], theirs[name])).max()
            assert parts[name] <= limit, name
        for name in ("learning_rate", "tokens_seen", "total_batch", "counted"):
            assert mine[name] == theirs[name], name
    assert ours[0]["weights"].keys() == stock[0]["weights"].keys()
    parts["weights"] = max(
        np.abs(ours[0]["weights"][name] - value).max() for name, value in stock[0]["weights"].items()
    )
    assert parts["weights"] <= weights
    return max(parts.values())


@pytest.mark.shows("gradient accumulation 1 and 3, 20 steps, groups 2x1, 1x2, 2x2 and 4x1", DDP)
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("group", GROUPS, ids=lambda group: f"{group[0]}x{group[1]}")
def test_twenty_steps_on_four_ranks_are_those_of_plain_ddp(gloo, plain, show, group, accumulation):
    setting = {"gradient_accumulation_steps": accumulation, "max_steps": 20}
    ours, stock = gloo.run("trainer_runs:train", group, **setting), plain(**setting)
    assert len(stock[0]["loss"]) == 20
    show(difference(ours, stock))
    assert ours[0]["total_batch"] == 4 * 4 * accumulation
    if group[0] > 1:
        assert sum(of_rank["report"]["received_rows"] for of_rank in ours) > 0  # documents really were cut


FEATURES = {
    "gradient clipping that bites": {"max_grad_norm": 0.05},
    "cosine schedule with warmup": {"lr_scheduler_type": "cosine", "warmup_steps": 3},
    "epochs, the last batch uneven": {
        "data": "few",
        "max_steps": -1,
        "num_train_epochs": 2,
        "gradient_accumulation_steps": 4,
    },
    "loader workers": {"dataloader_num_workers": 1, "dataloader_persistent_workers": True},
    "IterableDataset, sharded by rank": {"data": "iterable", "accelerator_config": {"dispatch_batches": False}},
    "IterableDataset, read by rank 0": {"data": "iterable", "collator": "fixed"},
    "datasets streaming": {"data": "streamed", "accelerator_config": {"dispatch_batches": False}},
    "activation checkpointing, not reentrant": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "gradient_accumulation_steps": 2,
    },
    "activation checkpointing, reentrant": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
        "gradient_accumulation_steps": 2,
    },
    "DataCollatorWithFlattening": {},
    "padded rows": {"collator": "right"},
    "left-padded rows": {"collator": "left"},
    "one document per rank": {"per_device_train_batch_size": 1},
    "one-token documents": {"data": "one-token"},
    "documents without labels": {"data": "partly masked", "per_device_train_batch_size": 1},
    "LoRA (peft)": {"change": "lora"},
    "frozen embeddings and layers": {"change": "frozen"},
    "tied embeddings": {"config": {"tie_word_embeddings": True}},
    "evaluation amid training, uneven": {"eval_strategy": "steps", "eval_steps": 3},
    "torch_compile, all but the deal and attention (backend eager: graphs without generated code)": {
        "torch_compile": True,
        "torch_compile_backend": "eager",
        "max_steps": 2,
    },
    "another optimizer (Adafactor)": {"optim": "adafactor"},
    "use_liger_kernel: fused linear cross entropy, no logits (Triton's interpreter)": {
        "use_liger_kernel": True,
        "liger_kernel_config": {
            "fused_linear_cross_entropy": True,
            **dict.fromkeys(("cross_entropy", "rms_norm", "rope", "swiglu"), False),
        },
        "max_steps": 2,
    },
}


@pytest.mark.parametrize(
    "setting",
    [
        pytest.param(setting, marks=pytest.mark.shows(feature, f"{DDP}, group 2x2"), id=feature)
        for feature, setting in FEATURES.items()
    ],
)
def test_what_a_fine_tuner_switches_on_changes_nothing(gloo, plain, show, setting):
    ours = gloo.run("trainer_runs:train", (2, 2), **setting)
    compiled = {"torch_compile", "torch_compile_backend"}
    show(difference(ours, plain(**{name: value for name, value in setting.items() if name not in compiled})))
    assert sum(of_rank["report"]["received_rows"] for of_rank in ours) > 0
    assert ours[0]["compiled_graphs"] > 0 or "torch_compile" not in setting


@pytest.mark.shows("bf16=True (autocast)", f"{DDP}, group 2x2")
def test_mixed_precision_agrees_within_its_own_noise(gloo, plain, show):
    """Stock bfloat16 against stock float32 says how large that noise is."""
    stock, exact = plain(bf16=True), plain()
    noise = np.abs(np.subtract(stock[0]["loss"], exact[0]["loss"])).max()
    ours = gloo.run("trainer_runs:train", (2, 2), bf16=True)
    assert noise > 1e-5, "nothing was computed in bfloat16"
    show(difference(ours, stock, losses=2 * noise, norms=1e-2, evaluated=2 * noise, weights=2e-4))
