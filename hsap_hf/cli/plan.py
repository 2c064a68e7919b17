"""`hsap plan`: see how a pack is dealt before it runs."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hsap_hf.cli.lengths import read_lengths
from hsap_hf.cli.shapes import MACHINE_NAMES, MODEL_NAMES, read_machine, read_model, shape_of
from hsap_hf.errors import ConfigError
from hsap_hf.planner import compile_plan
from hsap_hf.planner.model import LLAMA3_8B, Model
from hsap_hf.planner.recommend import slots_per_node
from hsap_hf.planner.report import plan_as_dict

if TYPE_CHECKING:
    from hsap_hf.train.recipe import Recipe


def plan(
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE.yaml]", show_default=False)] = None,
    lengths: Annotated[str | None, typer.Option(help="Document lengths: a list like 900,40,8 or a JSON file.")] = None,
    pack: Annotated[str | None, typer.Option(help="Name of a pack in the file, or its number in the recipe.")] = None,
    context_size: Annotated[
        int | None, typer.Option("--context-size", "-c", min=1, help="Slots of a group. Default: the recipe's, or 4.")
    ] = None,
    ulysses_size: Annotated[
        int | None, typer.Option("--ulysses-size", "-u", min=1, help="Ranks of a slot. Default: the recipe's, or 1.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help=f"Shape to predict for: {MODEL_NAMES}, a folder or a hub name. Default: the recipe's."),
    ] = None,
    machine: Annotated[
        str, typer.Option(help=f"Machine to predict for: {MACHINE_NAMES}, or a file of `hsap doctor --calibrate`.")
    ] = "h100",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the pack into FILE.svg or FILE.png.")] = None,
) -> None:
    """Who computes which rows of a pack, what travels, how level the work is, and how long it should take."""
    if (recipe is None) == (lengths is None):
        raise ConfigError("hsap plan needs a recipe or --lengths, and only one of them.")
    named = read_model(model) if model is not None else None
    if recipe is not None:
        from hsap_hf.train.recipe import load_recipe

        loaded = load_recipe(recipe)
        documents, shape = _pack_of(loaded, pack), named or _shape_of(loaded)
        if loaded.hsap.context_size != "auto":
            context_size = context_size or loaded.hsap.context_size
        ulysses_size = ulysses_size or loaded.hsap.ulysses_size
    else:
        documents, shape = read_lengths(str(lengths), pack), named or LLAMA3_8B
    context_size, ulysses_size = context_size or 4, ulysses_size or 1
    target = read_machine(machine)
    node = slots_per_node(ulysses_size, target)
    start = time.perf_counter()
    compiled = compile_plan(documents, context_size, ranks_per_node=node)
    shown = plan_as_dict(compiled, ulysses_size, (time.perf_counter() - start) * 1e3)
    if plot is not None:
        from hsap_hf.cli.picture import draw_plan

        draw_plan(compiled, plot)
    if as_json:
        typer.echo(json.dumps(shown))
    else:
        from hsap_hf.cli.plan_table import show_plan

        show_plan(compiled, shown, shape, target)


def _pack_of(recipe: Recipe, pack: str | None) -> list[int]:
    """Document lengths of one pack of the recipe's first epoch; the first one where none is named."""
    from hsap_hf.data import PackedDataset
    from hsap_hf.data.corpus import load_documents

    options = asdict(recipe.data)
    source, tokenizer = options.pop("source"), options.pop("tokenizer") or recipe.model.name_or_path
    corpus = load_documents(source, tokenizer, **options)
    packing = recipe.packing
    dataset = PackedDataset(corpus.documents, pack_tokens=packing.pack_tokens, seed=packing.seed)
    number = int(pack) if pack is not None and pack.isdigit() else 0 if pack is None else -1
    if not 0 <= number < dataset.num_packs:
        raise ConfigError(f"--pack {pack!r}: the recipe makes {dataset.num_packs} packs; give a number below that.")
    return [span.tokens for span in dataset.pack(number)]


def _shape_of(recipe: Recipe) -> Model:
    if recipe.model.name_or_path is not None:
        return read_model(recipe.model.name_or_path)
    from transformers import AutoConfig

    options = dict(recipe.model.config or {})
    model_type = options.pop("model_type")
    return shape_of(AutoConfig.for_model(model_type, **options), f"the recipe's {model_type}")
