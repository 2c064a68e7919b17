"""Starting ranks: torch.distributed.run for our own programs, accelerate's launcher for the user's own scripts."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import torch
import yaml

from hsap_hf.config import EXPECTED_RANKS, HsapPlugin
from hsap_hf.errors import ConfigError
from hsap_hf.strict import read_yaml, unknown_keys
from hsap_hf.train.recipe import Recipe


def default_ranks(recipe: Recipe) -> int:
    """One rank a GPU; without GPUs the group the recipe asks for, or two."""
    if torch.cuda.is_available() and not recipe.training.get("use_cpu"):
        return torch.cuda.device_count()
    return 2 if recipe.hsap.context_size == "auto" else recipe.hsap.context_size * recipe.hsap.ulysses_size


def launch_recipe(recipe_file: Path, num_ranks: int, arguments: Sequence[str]) -> int:
    """Run `hsap_hf.train` on `num_ranks` ranks of this machine; returns the exit code of the first rank that failed."""
    environment = {"TOKENIZERS_PARALLELISM": os.environ.get("TOKENIZERS_PARALLELISM", "true")}
    return launch_ranks("hsap_hf.train", num_ranks, [str(recipe_file), *arguments], environment)


def launch_ranks(module: str, num_ranks: int, arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run `python -m module` on `num_ranks` ranks of this machine; the exit code of the first rank that failed, or 0.

    environment: variables the ranks see besides this process' own.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    before = dict(os.environ)
    os.environ.update({EXPECTED_RANKS: str(num_ranks), **environment})
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_ranks)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # each rank prints its own error
    command = ["--standalone", f"--nproc-per-node={num_ranks}", "-m", module, *arguments]
    try:
        run(get_args_parser().parse_args(command))
    except ChildFailedError as error:
        return next(iter(error.failures.values())).exitcode
    finally:  # a benchmark launches several times, with other ranks
        os.environ.clear()
        os.environ.update(before)
    return 0


def launch_script(config_file: Path, arguments: Sequence[str]) -> None:
    """`accelerate launch` from one file that holds accelerate's keys and an `hsap:` section.

    The section reaches the script through HSAP_CONFIG_FILE, where `enable_hsap(model)` reads it. Ends the process
    with the script's exit code. Raises ConfigError for a section that cannot work.
    """
    from accelerate.commands.config.config_args import ClusterConfig
    from accelerate.commands.launch import launch_command, launch_command_parser

    content = read_yaml(config_file)
    section = content.pop("hsap", None)
    if not isinstance(section, dict):
        raise ConfigError(f"{config_file}: no `hsap:` section. Add one, or use `accelerate launch` for other files.")
    plugin = HsapPlugin.from_mapping(section, f"{config_file}: hsap")
    known = [*(field.name for field in fields(ClusterConfig)), "dynamo_backend", "fp16"]  # two old ones it still reads
    problems = unknown_keys(content, known, str(config_file))
    if problems:
        raise ConfigError("\n".join(problems))
    num_ranks = content.get("num_processes", 1)
    if content.get("distributed_type") == "MULTI_CPU" and num_ranks > 1:
        raise ConfigError(
            f"{config_file}: with distributed_type MULTI_CPU accelerate starts one process, not {num_ranks}. "
            f"Write distributed_type: MULTI_GPU and use_cpu: true."
        )
    with tempfile.TemporaryDirectory(prefix="hsap_") as folder:
        accelerate_file, hsap_file = Path(folder, "accelerate.yaml"), Path(folder, "hsap.yaml")
        accelerate_file.write_text(yaml.safe_dump(content))
        hsap_file.write_text(yaml.safe_dump(section))
        os.environ["HSAP_CONFIG_FILE"] = str(hsap_file)
        words = launch_command_parser().parse_args(["--config_file", str(accelerate_file), *arguments])
        plugin.context_for(words.num_processes or num_ranks)
        launch_command(words)


def quickstart_recipe() -> Path:
    """The recipe `hsap train` runs without arguments: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    places = [package / "recipes" / "quickstart_cpu.yaml", package.parent / "recipes" / "quickstart_cpu.yaml"]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise ConfigError(
            f"the built-in recipe is missing; looked in {', '.join(map(str, places))}. Reinstall hsap-hf."
        )
    return found
