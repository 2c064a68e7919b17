"""`hsap bench train`: whole Trainer steps of a recipe, with HSAP, as data parallelism and with plain Ulysses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from hsap_hf.cli.bench.job import SLOW_LINK, TOO_LARGE, ask
from hsap_hf.cli.shapes import MODEL_NAMES
from hsap_hf.errors import ConfigError
from hsap_hf.planner.documents import checked_lengths
from hsap_hf.planner.model import MODELS

STEPS_PROGRAM = "hsap_hf.cli.bench.steps"
DATA_PARALLEL = "data parallel"
TOO_LARGE_NOTE = "too large"
_LIMITS = {"bfloat16": 2e-2, "float16": 2e-2, "float32": 1e-4, "float64": 1e-8}
"""Largest difference of a loss from data parallelism's."""
_COLUMNS = {
    "step_ms": ("step", ",.1f"),
    "speedup": ("speed-up", ".3f"),
    "tokens_per_second": ("tokens/s", ",.0f"),
    "tflops_per_rank": ("TFLOP/s", ",.2f"),
    "utilisation": ("of peak", ".1%"),
    "peak_gib": ("GiB", ".1f"),
    "exposed_ms": ("exchange", ",.2f"),
    "deal_ms": ("deal", ",.2f"),
    "tables_ms": ("tables", ",.2f"),
    "loss_difference": ("differs", ".1e"),
}
"""Heading and form by the row's key. Exchange: what waiting for it adds to a step; deal and tables: the host's time for
a batch that was not met before, ranks ready."""

RecipeAndOverrides = Annotated[
    list[str] | None, typer.Argument(metavar="[RECIPE.yaml] [section.key=value ...]", show_default=False)
]
ModelOption = Annotated[
    str | None, typer.Option("--model", help=f"Random weights instead of the recipe's model: {MODEL_NAMES}.")
]
Ranks = Annotated[int, typer.Option("--nproc", min=1, help="Ranks to start: one a GPU, or CPUs.")]
Slow = Annotated[bool, typer.Option("--slow-link", help="Ranks without NVLink: NCCL_P2P_DISABLE=1.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]


def train(
    arguments: RecipeAndOverrides = None,
    nproc: Ranks = 2,
    model: ModelOption = None,
    lengths: Annotated[
        str | None, typer.Option(help="Document lengths of packs of random tokens, instead of the recipe's data.")
    ] = None,
    pack: Annotated[list[str] | None, typer.Option(help="Pack of the file; may be given several times.")] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="Context x ulysses, like 4x2; several times. Default: Nx1.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps; the median counts.")] = 10,
    slow_link: Slow = False,
    as_json: AsJson = False,
) -> None:
    """Whole Trainer steps of a recipe: HSAP beside data parallelism on the same documents, and plain Ulysses.

    Every rank brings the same documents every time, and data parallelism runs on the same kernel: only who computes
    what differs. Losses must agree; 1 where they do not. Without a recipe: the quick start's, on CPUs; with --model on
    GPUs, where there are any. FSDP2: training.fsdp=true. Plain Ulysses, which shares heads, is left out where the ranks
    do not divide them.
    """
    from hsap_hf.cli.bench.request import read_splits
    from hsap_hf.cli.lengths import read_packs

    run = read_run(arguments, model, nproc, slow_link)
    packs: dict[str, list[int] | None] = {"packs of the recipe": None}
    if lengths is not None:
        packs = {name: list(checked_lengths(documents)) for name, documents in read_packs(lengths, pack).items()}
    elif pack:
        raise ConfigError("--pack names a pack of --lengths FILE; give both.")
    ways = [(DATA_PARALLEL, (1, 1)), *(("hsap", one) for one in read_splits(split, nproc))]
    if run.heads is None:
        typer.echo("plain Ulysses is left out: the recipe does not tell the query heads. Add --split 1xN.", err=True)
    elif run.heads % nproc == 0 and ("hsap", (1, nproc)) not in ways:
        ways.append(("ulysses", (1, nproc)))
    rows = []
    for name, documents in packs.items():
        of_pack: list[dict[str, Any]] = []
        for way, one in ways:
            of_pack.append({"pack": name, "way": way, **run.measure(one, documents, steps)})
            typer.echo(_said(of_pack[-1]), err=True)  # minutes pass, and whoever stops it keeps what was measured
        rows += [_beside(row, of_pack[0]) for row in of_pack]
    if as_json:
        typer.echo(json.dumps(rows))
    else:
        _table(rows)
    problems = find_problems(rows)
    for sentence in problems:
        typer.echo(sentence, err=True)
    if problems:
        raise typer.Exit(1)


@dataclass(frozen=True)
class Run:
    """What is the same in all measurements of a command."""

    recipe_file: Path
    overrides: list[str]
    ranks: int
    environment: dict[str, str]
    heads: int | None
    """Query heads, where the recipe tells them."""

    def measure(self, split: tuple[int, int], lengths: list[int] | None, steps: int, **more: Any) -> dict[str, Any]:
        """A row: what the ranks of one launch measured, or a note that says why they did not.

        more: other fields of `steps.Asked`.
        """
        request = {
            "recipe_file": str(self.recipe_file),
            "overrides": self.overrides,
            "split": split,
            "lengths": lengths,
            "steps": steps,
            "warmup": 2,
            **more,
        }
        code, found = ask(STEPS_PROGRAM, request, self.ranks, self.environment)
        if code == 2:
            raise typer.Exit(code)
        note = None if code == 0 else TOO_LARGE_NOTE if code == TOO_LARGE else f"ended with code {code}"
        return {"split": f"{split[0]}x{split[1]}", "ranks": self.ranks, "note": note, "losses": [], **(found or {})}


def read_run(arguments: Sequence[str] | None, model: str | None, ranks: int, slow_link: bool) -> Run:
    """The recipe of the command line (or the quick start's), checked before a rank starts. Raises ConfigError."""
    from hsap_hf.train.launch import quickstart_recipe
    from hsap_hf.train.recipe import load_recipe

    words = list(arguments or [])
    recipe_file = Path(words.pop(0)) if words and "=" not in words[0] else quickstart_recipe()
    overrides = words if model is None else [*_model_overrides(model), *words]
    config = load_recipe(recipe_file, overrides).model.config or {}
    return Run(recipe_file, overrides, ranks, dict(SLOW_LINK) if slow_link else {}, config.get("num_attention_heads"))


def _model_overrides(name: str) -> list[str]:
    """A recipe's model section for random weights of a named shape, on GPUs where there are any."""
    import torch

    shape = next((model for model in MODELS if model.name == name), None)
    if shape is None:
        raise ConfigError(f"--model {name}: not one of {MODEL_NAMES}. For your own write model.name_or_path=FOLDER.")
    config = {
        "model_type": "qwen3" if name.startswith("qwen3") else "llama",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_query_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "tie_word_embeddings": shape.tied_embeddings,
    }
    device = f"training.use_cpu={json.dumps(not torch.cuda.is_available())}"
    return ["model.name_or_path=null", f"model.config={json.dumps(config)}", device]


def _said(row: dict[str, Any]) -> str:
    """All figures of a row in one line, as soon as they are there."""
    known = {name: column for name, column in _COLUMNS.items() if row.get(name) is not None}
    figures = row["note"] or ", ".join(f"{heading} {row[name]:{form}}" for name, (heading, form) in known.items())
    return f"{row['pack']}, {row['way']} {row['split']}: {figures}"


def _beside(row: dict[str, Any], baseline: dict[str, Any]) -> dict[str, Any]:
    """The row, with its speed and losses held against data parallelism's, where both ran."""
    if row["note"] or baseline["note"]:
        return {**row, "speedup": None, "loss_difference": None}
    differences = [abs(own - theirs) for own, theirs in zip(row["losses"], baseline["losses"], strict=True)]
    return {**row, "speedup": baseline["step_ms"] / row["step_ms"], "loss_difference": max(differences)}


def find_problems(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A sentence for every way that failed, or whose losses are not those of data parallelism."""
    found = []
    for row in rows:
        if row["note"] not in (None, TOO_LARGE_NOTE):
            found.append(f"{row['pack']}, {row['way']} {row['split']}: {row['note']}.")
        difference, limit = row["loss_difference"], _LIMITS.get(row.get("dtype"), 0.0)
        if difference is not None and not difference <= limit:  # NaN is wrong too
            text = f"losses differ by {difference:.2g} from data parallelism's; up to {limit} is fine."
            found.append(f"{row['pack']}, {row['way']} {row['split']}: {text}")
    return found


def _table(rows: Sequence[dict[str, Any]]) -> None:
    from rich import box
    from rich.table import Table

    from hsap_hf.cli.terminal import console

    page = console()
    ran = next((row for row in rows if row["note"] is None), None)
    if ran is not None:
        device = f"{ran['ranks']} ranks of {ran['device']}, {ran['dtype']}, torch {ran['torch']}"
        page.print(f"{device}, {ran['weights']:,} weights; ms of a step, median, slowest rank")
    columns = {name: column for name, column in _COLUMNS.items() if any(row.get(name) is not None for row in rows)}
    if "utilisation" in columns:
        del columns["tflops_per_rank"]
    for pack in dict.fromkeys(row["pack"] for row in rows):
        table = Table(title=pack, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for column in ("way", *(heading for heading, _ in columns.values())):
            table.add_column(column, justify="left" if column == "way" else "right")
        for row in rows:
            if row["pack"] == pack:
                way = f"{row['way']} {row['split']}" if row["way"] == "hsap" else row["way"]
                figures = [_figure(row.get(name), form) for name, (_, form) in columns.items()]
                table.add_row(way, *([row["note"]] if row["note"] else figures))
        page.print(table)


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
