"""`hsap train`, `hsap verify` and `hsap launch`: commands that start ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hsap_hf.errors import ConfigError

Ranks = Annotated[int | None, typer.Option("--nproc", min=1, help="Ranks to start: one a GPU, or 2 on CPUs.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run model code from the hub repository.")]


def train(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[RECIPE.yaml] [section.key=value ...]", show_default=False)
    ] = None,
    nproc: Ranks = None,
    trust_remote_code: Trust = False,
) -> None:
    """Train from a recipe; without one, the built-in quick start: 2 CPU ranks, under 90 seconds, no download."""
    from hsap_hf.train.launch import quickstart_recipe

    words = arguments or []
    has_recipe = bool(words) and "=" not in words[0]
    recipe = Path(words[0]) if has_recipe else quickstart_recipe()
    _run(recipe, words[1:] if has_recipe else words, nproc, ["--trust-remote-code"] if trust_remote_code else [])


def verify(
    subject: Annotated[str, typer.Argument(metavar="RECIPE.yaml|MODEL")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[section.key=value ...]")] = None,
    nproc: Ranks = None,
    trust_remote_code: Trust = False,
) -> None:
    """Prove on your own model, without training, that a step with HSAP is the data-parallel step.

    A model, without a recipe, is tried on the quick start's documents: on GPUs in bfloat16 where there are as many as
    ranks, else on CPUs in float32.
    """
    import torch

    from hsap_hf.cli.terminal import check_model_folder
    from hsap_hf.train.launch import quickstart_recipe

    flags = ["--verify", *(["--trust-remote-code"] if trust_remote_code else [])]
    if Path(subject).suffix in (".yaml", ".yml"):
        _run(Path(subject), overrides or [], nproc, flags)
    check_model_folder(subject)
    model = [f"model.name_or_path={subject}", "model.config=null", "data.max_document_tokens=2048"]
    enough = torch.cuda.device_count() >= (nproc or 2)
    gpus = ["training.use_cpu=false", "training.bf16=true"] if enough else []
    _run(quickstart_recipe(), [*model, *gpus, "packing.pack_tokens=4096", *(overrides or [])], nproc, flags)


def launch(
    context: typer.Context,
    config_file: Annotated[Path, typer.Option("--config_file", "--config-file", help="accelerate's keys and hsap:")],
) -> None:
    """accelerate's launcher, fed from one file: `hsap launch --config_file hsap.yaml SCRIPT ...`."""
    from hsap_hf.train.launch import launch_script

    launch_script(config_file, context.args)


def _run(recipe_file: Path, overrides: list[str], nproc: int | None, flags: list[str]) -> None:
    """Check everything that can be checked before a rank starts, then start them and end with their exit code."""
    from hsap_hf.train.launch import default_ranks, launch_recipe
    from hsap_hf.train.recipe import load_recipe

    recipe = load_recipe(recipe_file, overrides)
    ranks = nproc or default_ranks(recipe)
    group = recipe.hsap.context_for(ranks) * recipe.hsap.ulysses_size
    if "--verify" in flags and group == 1:
        raise ConfigError(
            f"nothing to verify: {ranks} ranks in groups of one share no documents. Use --nproc 2 or more, and "
            f"hsap.context_size above 1 (it is {recipe.hsap.context_size})."
        )
    if "--verify" not in flags:
        _make_folder(recipe.training.get("output_dir"))
    raise typer.Exit(launch_recipe(recipe_file, ranks, [*overrides, *flags]))


def _make_folder(output_dir: str | None) -> None:
    """Where every rank would fail to make it, minutes later."""
    try:
        Path(output_dir or ".").expanduser().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"cannot be made ({error.strerror}). Name another."
        raise ConfigError(f"training.output_dir: {output_dir} {reason}") from None
