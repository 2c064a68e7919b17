"""One rank of `hsap bench train` and `hsap bench longest`: started by torch.distributed.run.

Trains a few steps of a recipe with one split of the ranks, Trainer and all, and times them.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from itertools import chain
from typing import Any

import torch
import transformers
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainingArguments

from hsap_hf.attention import compile_tables
from hsap_hf.cli.bench.drawn_packs import DrawnPacks
from hsap_hf.cli.bench.job import answer, link_of
from hsap_hf.cli.bench.step_times import StepClock, Waits, watch
from hsap_hf.cli.bench.timing import median_ms
from hsap_hf.cli.shapes import shape_of
from hsap_hf.comm import HsapMesh, build_mesh, device_type_of, world_size
from hsap_hf.comm.loopback import lone_mesh
from hsap_hf.config import HsapPlugin
from hsap_hf.data import HsapDataCollator, PackedDataset
from hsap_hf.errors import ConfigError
from hsap_hf.hf import HsapHandle, causal_model, check_model_support
from hsap_hf.planner import Plan
from hsap_hf.train.model import load_model
from hsap_hf.train.recipe import Recipe, build_training_arguments, load_recipe
from hsap_hf.train.report import compute_dtype, kernel_name
from hsap_hf.train.run import load_corpus

PEAK_FLOPS = {"H100 80GB HBM3": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 and float16 FLOP/s of a GPU's data sheet, by words of its name."""
_OVERRIDES = (
    *("save_strategy='no'", "eval_strategy='no'", "push_to_hub=false", "report_to=none", "disable_tqdm=true"),
    *("logging_strategy=steps", "logging_steps=1", "logging_nan_inf_filter=false"),  # every loss, as it is
)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What one launch trains: a recipe, or packs of given lengths with it, on one split of its ranks."""

    recipe_file: str
    overrides: list[str]
    split: tuple[int, int]
    """(context, ulysses). 1, 1 is data parallelism: every rank computes what it brings, on the same kernel."""
    lengths: list[int] | None
    """Documents of every pack; None: the recipe's own packs."""
    steps: int
    """Steps that count."""
    warmup: int
    """Steps before them: the optimizer allocates its state, allocators and kernels settle."""
    warmup_lengths: list[int] | None = None
    """Documents of every pack of those steps, where they are others."""
    profile: bool = True
    """On CUDA one more step at the end, whose profile says how long the exchange was exposed."""

    @property
    def profiled_steps(self) -> int:
        return int(self.profile and torch.cuda.is_available())

    @property
    def all_steps(self) -> int:
        return self.warmup + self.steps + self.profiled_steps

    def recipe(self) -> Recipe:
        """The recipe to train, with nothing on top of the steps."""
        training = [f"training.{text}" for text in (*_OVERRIDES, f"max_steps={self.all_steps}")]
        return load_recipe(self.recipe_file, [*self.overrides, *training])


def draw_model(recipe: Recipe, arguments: TrainingArguments) -> Any:
    """The recipe's model, drawn on the GPU, because 8B random weights take minutes on the host. FSDP shards from the
    host's memory: there it ends, and there it is drawn where a GPU cannot hold it."""
    if not arguments.fsdp:
        return load_model(recipe.model, arguments.seed, arguments.device)
    try:
        model = load_model(recipe.model, arguments.seed, arguments.device).cpu()
    except torch.OutOfMemoryError:
        model = load_model(recipe.model, arguments.seed)
    torch.cuda.empty_cache()
    return model


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Train the steps; what they took, the largest of all ranks."""
    asked = Asked(**request)
    recipe = asked.recipe()
    arguments = build_training_arguments(recipe)
    model = draw_model(recipe, arguments)
    base = causal_model(model)
    check_model_support(base)
    dataset = _packs(asked, recipe, arguments, base.config.vocab_size)
    timed = _timed_lengths(dataset, arguments.gradient_accumulation_steps, asked)
    plugin = replace(recipe.hsap, context_size=asked.split[0], ulysses_size=asked.split[1])
    mesh = build_mesh(plugin, device_type_of(base)) if world_size() > 1 else lone_mesh()
    cuda = arguments.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    times, losses = _train(model, plugin, mesh, arguments, dataset, asked)
    peak_gib, room_gib = _memory_gib() if cuda else (math.nan, math.nan)
    own = torch.tensor([*times.values(), peak_gib, room_gib], dtype=torch.float64)
    table = mesh.world_host.all_gather(own, "gather measurements")
    *slowest, peak_gib, _ = table.amax(0).tolist()
    room_gib = float(table[:, -1].min())
    times = dict(zip(times, slowest, strict=True))
    dtype = compute_dtype(model, arguments)
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "date": datetime.now(timezone.utc).date().isoformat(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "link": link_of(arguments.device.type),
        "dtype": dtype,
        "kernel": kernel_name(plugin.kernel, model, arguments),
        "weights": base.num_parameters(),
        **times,
        "peak_gib": peak_gib if cuda else None,
        "room_gib": room_gib if cuda else None,
        "losses": losses,
        **_speeds(timed, times["step_ms"] / 1e3, base, dtype, arguments.world_size),
    }


def _memory_gib() -> tuple[float, float]:
    """The most that was allocated at once, and what could have been: others use the device's memory too."""
    free, _ = torch.cuda.mem_get_info()
    return torch.cuda.max_memory_allocated() / 2**30, (free + torch.cuda.memory_reserved()) / 2**30


def _train(
    model: Any,
    plugin: HsapPlugin,
    mesh: HsapMesh,
    arguments: TrainingArguments,
    dataset: Dataset[Any],
    asked: Asked,
) -> tuple[dict[str, float], list[float]]:
    """Times of this rank in milliseconds, by their keys of the answer; and the losses of all steps."""
    waits = Waits()
    clock = StepClock(waits, arguments.device.type == "cuda", arguments.max_steps if asked.profiled_steps else None)
    with HsapHandle(model, plugin, watch(mesh, waits)) as handle:
        trainer = Trainer(model, arguments, train_dataset=dataset, data_collator=HsapDataCollator(), callbacks=[clock])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        assert handle.plan is not None
        times = {
            "step_ms": statistics.median(clock.step_ms[asked.warmup : asked.warmup + asked.steps]),
            "exposed_ms": statistics.median(clock.exposed_ms[asked.warmup :] or clock.exposed_ms),
            "deal_ms": _deal_ms(handle, dataset, mesh, arguments.device),
            "tables_ms": _tables_ms(handle.plan, mesh, arguments.device),
        }
    return times, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def _packs(asked: Asked, recipe: Recipe, arguments: TrainingArguments, vocab_size: int) -> DrawnPacks | PackedDataset:
    """The same packs, in parts for every rank, whatever the split."""
    ranks = arguments.world_size
    if asked.lengths is not None:
        accumulated = arguments.gradient_accumulation_steps
        warmup = [asked.warmup_lengths or asked.lengths] * (asked.warmup * accumulated)
        others = [asked.lengths] * ((asked.all_steps - asked.warmup) * accumulated)
        return DrawnPacks(warmup + others, ranks, vocab_size)
    documents = load_corpus(recipe, arguments).documents
    return PackedDataset(documents, pack_tokens=recipe.packing.pack_tokens, group_size=ranks, seed=recipe.packing.seed)


def _timed_lengths(dataset: DrawnPacks | PackedDataset, accumulated: int, asked: Asked) -> list[list[int]]:
    """Documents of every step that counts. Raises ConfigError where the data set ends before."""
    if dataset.num_packs < accumulated * asked.all_steps:
        raise ConfigError(
            f"{asked.steps} steps, {asked.warmup} to warm up, of {accumulated} packs each need more packs than "
            f"the recipe's {dataset.num_packs}. Lower --steps, or give --lengths."
        )
    return [
        [span.tokens for index in range(step * accumulated, (step + 1) * accumulated) for span in dataset.pack(index)]
        for step in range(asked.warmup, asked.warmup + asked.steps)
    ]


def _deal_ms(handle: HsapHandle, dataset: DrawnPacks | PackedDataset, mesh: HsapMesh, device: torch.device) -> float:
    """Reading, agreeing, planning and dealing one batch that was not met before, while nothing else runs, from when all
    ranks have theirs."""
    assert handle.dealer is not None
    times, world = [], mesh.world_host
    for index in range(min(10, dataset.num_packs)):
        batch = HsapDataCollator()([dataset[index * world.size + world.rank]])
        batch = {name: value.to(device) for name, value in batch.items()}
        handle.dealer.forget_plans()
        world.all_reduce_max(torch.zeros(1), "start together")
        begun = time.perf_counter()
        handle.dealer.deal(batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append((time.perf_counter() - begun) * 1e3)
    return statistics.median(times)


def _tables_ms(plan: Plan, mesh: HsapMesh, device: torch.device) -> float:
    """Compiling one window's tables of a plan, which its first layer does for all layers with that window."""

    def compile_once() -> None:
        words = {"near_slots": mesh.near_slots, "ulysses_size": mesh.ulysses.size}
        compile_tables(plan, mesh.context.rank, None, device, **words)

    return median_ms(compile_once, 10, torch.device("cpu"))


def _speeds(
    timed: Sequence[Sequence[int]], seconds: float, base: Any, dtype: str, ranks: int
) -> dict[str, float | None]:
    """Tokens and model FLOP a second; recomputed layers do not count, nor does attention between documents.

    FLOP are not counted for experts and where weights are frozen.
    """
    tokens = sum(chain.from_iterable(timed)) / len(timed)
    flops = peak = None
    experts = any(hasattr(base.config, name) for name in ("num_experts", "num_local_experts", "n_routed_experts"))
    if not experts and all(parameter.requires_grad for parameter in base.parameters()):
        shape = shape_of(base.config, base.config.model_type)
        flops = sum(shape.train_flops(lengths) for lengths in timed) / len(timed) / seconds / ranks
        if dtype in ("bfloat16", "float16") and torch.cuda.is_available():
            name = torch.cuda.get_device_name()
            peak = next((speed for words, speed in PEAK_FLOPS.items() if words in name), None)
    return {
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "tflops_per_rank": None if flops is None else flops / 1e12,
        "utilisation": None if flops is None or peak is None else flops / peak,
    }


if __name__ == "__main__":
    sys.exit(answer(sys.argv[1:], measure))
