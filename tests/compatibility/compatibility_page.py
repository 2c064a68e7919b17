"""docs/compatibility.md as text, from the markers of this folder's tests and what a run measured."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import accelerate_runs
import gpu_figures
import pytest

_TOP = """<!-- Written by `pytest tests/compatibility --write-docs`; do not edit. -->
# Compatibility

An HSAP run is the data-parallel run: the same batches on the same ranks, with documents shared inside each group. Every
row below is a test in tests/compatibility, on four CPU ranks over gloo and in float32 where nothing else is said. Where
the second column says plain DDP, both ways train, with AdamW (DPO, KTO, GRPO and the bare loops: SGD), and every logged
loss and gradient norm, evaluation, the learning rate, token counts and the final weights are compared. Listed is the
largest difference of anything the test compares.

| | supported | where it was run |
|---|---|---|
| torch | 2.10 and newer | 2.13 (CPU), 2.11 (H100, H200) |
| transformers | 5.9 and newer | 5.24; the core also with 5.17 in `.ci/run`, and with 5.9 by hand |
| accelerate | 1.12 and newer | 1.15 |
| trl | 1.16 | 1.16 |
| peft | 0.18 and newer | 0.21 |

FSDP2 is compared through torch's own `fully_shard`, which runs on CPUs. Accelerate turns FSDP2 on for GPUs only: that
way of starting it, with saving and resuming, is compared by test_accelerate_fsdp2.py, which runs where there are two.
On two H100s fifty steps of a 1B model gave the losses of one GPU within bf16
([performance.md](performance.md#a-1b-llama-on-two-gpus)).

## Exact

"""
_REFUSED = """
## Refused

On every rank, in these words: by `enable_hsap` or, where accelerate is configured after it, by the first batch; the
last one by `prepare_trainer` (for `compute_metrics` it names `return_logits="brought"` as the other way out).

| what | words |
|---|---|
"""
_NOTES = """
## Worth knowing

* **torch_compile** compiles everything but the deal and attention, which change with every batch: one graph break
  before the model and one around each attention. Lengths differ between batches, so steps recompile until shapes are
  dynamic; `enable_hsap` raises torch's limit of recompilations (`torch._dynamo.config.recompile_limit`) from 8 to 64,
  without which layers then run uncompiled. With activation checkpointing no layer is compiled: torch gives up a layer
  whose graph breaks inside a checkpoint (torch 2.13: 1 of 113 linear layers, a script that was not kept). The default
  backend (inductor) ran once by hand on two CPU ranks: losses within 4.8e-7.
* **Not shared, with a warning.** With `label_smoothing_factor` or `compute_loss_func` Trainer takes the labels away
  before the model sees them: every rank then computes its own batch, as without HSAP. `average_tokens_across_devices`
  must stay True: numbers of tokens that differ in a group are refused in the first batch.
* **Columns that Trainer drops** before a collator sees them: [scripts.md](scripts.md#columns-that-trainer-drops).
* **full_determinism** reaches the flash kernels' backward, too, where the sums of several blocks meet (tested on
  stand-ins of flash-attn 2 and 3, not on GPUs).
* **A loss taken as a mean.** A forward without `num_items_in_batch` returns the mean over the supervised tokens of the
  *group*. Plain data parallelism takes the mean over each rank's tokens and averages those, which weighs a token of a
  short batch more. Trainer always passes `num_items_in_batch`, so there both are the same number.
* **Refused, too**: adapters with virtual tokens (prompt tuning) or invocation tokens (activated LoRA); in the first
  batch `neftune_noise_alpha`, whose noise depends on the length of a row, and a `loss_function` set after enabling.
* **Padding** is dropped, not computed: logits returned to the caller hold zeros there.
* **Timeouts.** `timeout_seconds` counts where HSAP waits for a batch; where Trainer gathers token counts before it,
  `TrainingArguments.ddp_timeout` counts. NCCL ends exchanges on GPUs that take longer than both. It counts from when
  the host asked for them, so a step longer than that needs a larger one of the two.
* **Logits in a loss of your own.** `outputs.logits` is None unless `return_logits` asks for them, in training too: a
  `compute_loss` that reads them needs "brought", as its error then says, and `compute_metrics` gets empty predictions
  without. "brought" sends their gradients the other way, which is a message that all ranks of a group must take part
  in: a loss that leaves the logits out on some ranks lets the others wait.
* **Calls that go past the model's own** (`model.model(...)`, or PEFT's AdaLoRA, which calls `model.forward`) are not
  shared: they take the stock attention and masks on what this rank has, and in training a warning says so.
* **Resuming** is bitwise where DDP's own sums are: DDP orders its buckets anew after the first step of a process
  unless `ddp_find_unused_parameters` is set, and plain DDP then resumes with rounding too (2e-9 here).
* **LoRA, Liger's loss and FSDP2** together fail in the first step where embeddings are not tied (seen on an 8B Llama
  with accelerate 1.15: `got mixed torch.Tensor and DTensor`). Accelerate then shards the output layer by itself, and
  Liger reads its weight outside of its forward. LoRA has few gradients: take DDP, or leave Liger out.
* **Checkpoints under FSDP2** are plain with `fsdp_state_dict_type: FULL_STATE_DICT`, as in
  recipes/accelerate/fsdp2_8gpu.yaml; with SHARDED_STATE_DICT Trainer saves neither model.safetensors nor config.json.
  From such full checkpoints accelerate resumes LoRA since 1.15; before, it restored the shards of rank 0 only.
* **Stock packs that leak.** GPT-OSS and OPT build their stock mask without `position_ids` (transformers 5.24): packed
  documents see each other there, with or without HSAP on one rank. With HSAP on several ranks they do not.

## A bare Accelerate loop

What follows is run by the tests, as plain data parallelism and in groups.

```python
"""


_IMPORTS = """import torch
from accelerate import Accelerator

from hsap_hf import HsapPlugin, enable_hsap


"""


def page(items: Sequence[pytest.Item], shown: dict[str, list[float | str]]) -> str:
    """The whole file; what was not measured shows `-`."""
    exact, refused = ({}, {})
    for item in items:
        for marker in item.iter_markers("shows"):
            exact[marker.args[0]] = marker.args[1]
        for marker in item.iter_markers("refuses"):
            refused[marker.args[0]] = None
    rows = [f"| {feature} | {against} | {_figure(shown.get(feature))} |" for feature, against in exact.items()]
    words = [f"| {what} | {_words(shown.get(what))} |" for what in refused]
    head = "| feature | compared with | largest difference |\n|---|---|---|\n"
    loop = _IMPORTS + inspect.getsource(accelerate_runs.loop)
    exact_table = head + "\n".join(rows) + "\n" + gpu_figures.section(items)
    return _TOP + exact_table + _REFUSED + "\n".join(words) + "\n" + _NOTES + loop + "```\n"


def _figure(found: list[float | str] | None) -> str:
    numbers = [one for one in found or [] if not isinstance(one, str)]
    return f"{max(numbers):.1e}" if numbers else "-"


def _words(found: list[float | str] | None) -> str:
    if not found:
        return "-"
    words = " ".join(str(found[0]).split())
    return words.partition("this job: - ")[2] or words
