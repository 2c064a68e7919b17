"""What tests measured on two GPUs, kept in docs/measured for the page: the machines that write it have none."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

import pytest

KEPT = Path(__file__).parents[2] / "docs" / "measured" / "fsdp2_2xh100.json"
MARKER = "shows_on_gpus"
PACKAGES = ("torch", "transformers", "accelerate", "peft")

_SECTION = """
## On two GPUs

FSDP2 as users start it, by tests/compatibility/test_accelerate_fsdp2.py: `accelerate launch --config_file
recipes/accelerate/fsdp2_8gpu.yaml --num_processes 2`, a stock Trainer, 12 steps of AdamW with gradient accumulation 2,
evaluation with an uneven last batch and a checkpoint every six; with HSAP both ranks are one group. In float32, where
attention takes the dense kernel, unless a row says bfloat16: there accelerate rounds losses to bfloat16 too.

Measured on {device}, {date}: {versions}.
The same tests passed on 2 x NVIDIA H200 with transformers 5.24.0 on 2026-11-28.

| feature | compared with | largest difference |
|---|---|---|
"""


def features(items: Iterable[pytest.Item]) -> dict[str, str]:
    """What it is compared with, by feature, in the order of the tests."""
    return dict(marker.args for item in items for marker in item.iter_markers(MARKER))


def keep(shown: Mapping[str, list[float | str]], features: Iterable[str], device: str) -> None:
    """Write the largest difference of every feature. Raises KeyError where one was not measured."""
    figures = {feature: max(float(found) for found in shown[feature]) for feature in features}
    versions = {package: version(package) for package in PACKAGES}
    date = datetime.date.today().isoformat()
    text = json.dumps({"device": device, "date": date, "versions": versions, "figures": figures}, indent=1)
    KEPT.write_text(text + "\n")


def section(items: Iterable[pytest.Item]) -> str:
    """The page's section; empty as long as nothing was measured. A feature without a figure shows `-`."""
    if not KEPT.exists():
        return ""
    kept = json.loads(KEPT.read_text())
    figures = {feature: f"{figure:.1e}" for feature, figure in kept["figures"].items()}
    rows = [f"| {feature} | {against} | {figures.get(feature, '-')} |" for feature, against in features(items).items()]
    versions = ", ".join(f"{package} {number}" for package, number in kept["versions"].items())
    return _SECTION.format(device=kept["device"], date=kept["date"], versions=versions) + "\n".join(rows) + "\n"
