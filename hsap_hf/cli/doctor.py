"""`hsap doctor`: what this machine can run, and whether a model can be trained exactly."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hsap_hf.hf import ModelReport
    from hsap_hf.planner.machine import Machine


def doctor(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL_OR_CONFIG]", show_default=False)] = None,
    calibrate: Annotated[
        Path | None, typer.Option(help="Measure this device into FILE, for `hsap plan --machine FILE`.")
    ] = None,
    nproc: Annotated[
        int, typer.Option("--nproc", min=1, help="With --calibrate: measure links between N ranks of this machine too.")
    ] = 1,
) -> None:
    """Versions, devices, kernels with the reason where one is missing; with a model, whether HSAP supports it."""
    import torch
    from rich.markup import escape
    from rich.table import Table

    from hsap_hf.attention import Scores, all_kernels
    from hsap_hf.cli.terminal import console

    page = console()
    table = Table(show_header=False, box=None)
    for package in ("hsap-hf", "torch", "transformers", "accelerate", "datasets", "peft", "trl"):
        table.add_row(package, _version(package))
    table.add_row("python", platform.python_version())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    table.add_row("devices", ", ".join(names) or "CPU only")
    dtype = "bfloat16" if device == "cuda" else "float32"
    for kernel in all_kernels():
        reason = kernel.missing(Scores(1.0), 128, 128, dtype, device)
        table.add_row(
            f"kernel {kernel.name}", escape(f"ready, {kernel.version()}" if reason is None else f"no: {reason}")
        )
    page.print(table)
    if calibrate is not None:
        _calibrate(calibrate, nproc)
    if model is not None:
        report = _check(model)
        page.print(escape(f"{model}: supported. {report.describe()}{_kernel(report, dtype, device)}"))


def _kernel(report: ModelReport, dtype: str, device: str) -> str:
    """Which kernel its attention takes on this device, and why none before it."""
    from hsap_hf.attention import Scores, find_kernel

    if report.head_dim is None or report.value_dim is None:
        return ""
    scores = Scores(1.0, softcap=report.softcap)
    kernel, passed_over = find_kernel("auto", scores, report.head_dim, report.value_dim, dtype, device)
    reasons = f" ({'; '.join(passed_over)})" if passed_over else ""
    return f" Its kernel here, in {dtype}: {kernel.name if kernel else 'none'}{reasons}."


def _calibrate(path: Path, nproc: int) -> None:
    """Measure, write the file, and say what was measured and what was not."""
    from hsap_hf.cli.calibrate import calibrate
    from hsap_hf.cli.shapes import write_machine
    from hsap_hf.cli.terminal import check_folder, console

    check_folder(path, "--calibrate")
    machine = calibrate(nproc)
    write_machine(machine, path)
    console().print(
        f"{path}: attention {machine.forward_flops / 1e12:.3g} TFLOP/s forward and "
        f"{machine.backward_flops / 1e12:.3g} backward on long documents, half of it at {machine.half_length:,.0f} "
        f"tokens; matrix products {machine.linear_flops / 1e12:.3g}.\n{_links(machine, nproc)}",
        highlight=False,
        markup=False,
    )


def _links(machine: Machine, nproc: int) -> str:
    between = f"{machine.network_bytes / 1e9:.3g} GB/s between nodes; put your own figures there."
    inside = f"{machine.node_bytes / 1e9:.3g} GB/s inside a node of {machine.node_ranks}"
    if nproc == 1:
        return f"Not measured: links between devices (--nproc N does). The file has {inside} and {between}"
    small = f"{machine.message_seconds * 1e6:,.0f} us for an exchange that carries next to nothing"
    return f"Links between {nproc} ranks: {inside}, {small}.\nNot measured: links between nodes. The file has {between}"


def _check(name: str) -> ModelReport:
    """Build the model (or a `model_type` with default sizes) without weights and run the gate, which raises."""
    import torch
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

    from hsap_hf.cli.terminal import check_model_folder
    from hsap_hf.errors import ConfigError
    from hsap_hf.hf import check_model_support

    if Path(name).suffix in (".yaml", ".yml"):
        raise ConfigError(f"{name}: the doctor looks at a model: a folder, a hub name or a model_type, not a recipe.")
    check_model_folder(name)
    try:
        config = AutoConfig.for_model(name) if name in CONFIG_MAPPING else AutoConfig.from_pretrained(name)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name}: {str(error).splitlines()[0]}") from error
    return check_model_support(model)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
