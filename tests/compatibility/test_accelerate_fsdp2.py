"""FSDP2 through `accelerate launch` on two GPUs: the same losses, weights and checkpoints with HSAP as without."""

import json
import os
import sys

import gpu_figures
import numpy as np
import pytest
import torch
from launched import REPOSITORY, free_port, launch
from safetensors.numpy import load_file

pytestmark = pytest.mark.skipif(not torch.cuda.is_available() or torch.cuda.device_count() < 2, reason="needs two GPUs")

CONFIG = REPOSITORY / "recipes" / "accelerate" / "fsdp2_8gpu.yaml"
SCRIPTS = REPOSITORY / "tests" / "compatibility"
PLAIN, WHOLE = "FSDP2 without HSAP, same 2 ranks", "the run without a stop"
KINDS = {"full": "full fine-tuning", "lora": "LoRA (peft)"}
LIMITS = {"loss": 1e-5, "grad_norm": 1e-5, "eval_loss": 1e-5, "learning_rate": 0, "weights": 5e-5}
"""Weights went up to 6e-4 far; where a gradient is hardly more than its rounding, AdamW makes a step of it all the
same."""


def of_each_kind(feature, against):
    """A test for full fine-tuning and one for LoRA, each with its row of the page."""
    rows = {kind: pytest.mark.shows_on_gpus(f"{words}: {feature}", against) for kind, words in KINDS.items()}
    return pytest.mark.parametrize("kind", [pytest.param(kind, marks=row, id=kind) for kind, row in rows.items()])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder where the job left its runs."""
    folder = tmp_path_factory.mktemp("fsdp2")
    words = ["--config_file", CONFIG, "--num_processes", 2, "--mixed_precision", "no", "--main_process_port"]
    words += [free_port(), SCRIPTS / "fsdp2_script.py", folder]
    path = os.pathsep.join([str(REPOSITORY / "tests"), str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    ended = launch(sys.executable, "-m", "accelerate.commands.launch", *words, deadline=240, PYTHONPATH=path)
    assert ended.code == 0, ended.out[-2000:] + ended.err[-6000:]
    return folder


def difference(runs, ours, theirs):
    """Largest difference of two runs, by what is compared."""
    (seen, weights), (wanted_seen, wanted) = (
        (json.loads((runs / f"{run}.json").read_text()), np.load(runs / f"{run}.npz")) for run in (ours, theirs)
    )
    assert set(weights) == set(wanted)
    assert len(seen["loss"]) == 12
    assert len(set(seen["loss"])) > 4  # in bfloat16 some of them are equal
    assert len(seen["eval_loss"]) == 2
    assert seen["tokens_seen"] == wanted_seen["tokens_seen"]
    assert [found["received_rows"] > 0 for found in (seen, wanted_seen)] == ["shared" in ours, "shared" in theirs]
    off = {name: float(np.abs(np.subtract(seen[name], wanted_seen[name])).max()) for name in LIMITS if name in seen}
    return off | {"weights": largest_difference(weights, wanted)}


def largest_difference(weights, wanted):
    return float(np.max([np.abs(weights[name] - wanted[name]).max() for name in wanted]))


def check(off, limits):
    assert all(off[name] <= limit for name, limit in limits.items()), f"{off} against {limits}"


@of_each_kind("losses, gradient norms, evaluation, final weights", PLAIN)
def test_training_is_that_of_fsdp2(runs, show, kind):
    off = difference(runs, f"{kind} shared", f"{kind} plain")
    show(max(off.values()))
    check(off, LIMITS)


@of_each_kind("resume in the same group", WHOLE)
def test_a_resumed_run_takes_the_same_steps(runs, show, kind):
    off = difference(runs, f"{kind} shared resumed", f"{kind} shared")
    show(max(off.values()))
    stock = difference(runs, f"{kind} plain resumed", f"{kind} plain")
    check(off, {name: 4 * own for name, own in stock.items()})  # bitwise, unless FSDP2 itself is not


@of_each_kind("resume of FSDP2 without HSAP, for comparison", WHOLE)
def test_fsdp2_itself_resumes(runs, show, kind):
    off = difference(runs, f"{kind} plain resumed", f"{kind} plain")
    show(max(off.values()))
    check(off, LIMITS)


@of_each_kind("resume without HSAP", "the HSAP run without a stop")
def test_a_run_resumes_without_hsap(runs, show, kind):
    off = difference(runs, f"{kind} plain after all", f"{kind} shared")
    show(max(off.values()))
    check(off, LIMITS)


@pytest.fixture(scope="module")
def loaded(runs):
    """The same folder, with the weights that stock from_pretrained found in the last checkpoints."""
    ended = launch(sys.executable, SCRIPTS / "stock_loading_script.py", runs, CUDA_VISIBLE_DEVICES="")
    assert ended.code == 0, ended.err[-6000:]
    return runs


@of_each_kind("checkpoints load without hsap_hf", "weights in memory")
def test_a_checkpoint_is_a_plain_one(loaded, show, kind):
    found, wanted = np.load(loaded / f"{kind} shared loaded.npz"), np.load(loaded / f"{kind} shared.npz")
    assert set(found) == set(wanted)
    off = largest_difference(found, wanted)
    show(off)
    assert off == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_holds_what_it_holds_without_hsap(runs, kind):
    ours, theirs = (runs / f"{kind} {way}" / "checkpoint-12" for way in ("shared", "plain"))
    assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}
    weights, config = {
        "full": ("model.safetensors", "config.json"),
        "lora": ("adapter_model.safetensors", "adapter_config.json"),
    }[kind]
    assert (ours / weights).is_file()
    assert "hsap" not in (ours / config).read_text()


@pytest.mark.shows_on_gpus("full fine-tuning in bfloat16, activation checkpointing", PLAIN)
def test_half_precision_differs_by_no_more_than_its_own_rounding(runs, show):
    off, rounding = difference(runs, "half shared", "half plain"), difference(runs, "half plain", "full plain")
    show(max(off.values()))
    check(off, {name: 2 * rounding[name] for name in ("loss", "grad_norm")})
    shared, plain, full = (np.load(runs / f"{run}.npz") for run in ("half shared", "half plain", "full plain"))
    base = load_file(runs / "base" / "model.safetensors")
    assert distance(shared, plain) <= 1.5 * distance(plain, full)
    assert distance(shared, plain) <= 0.1 * distance(shared, base), "what training changed is far more"


def distance(ours, theirs):
    """Norm of the difference of two sets of weights."""
    return float(np.sqrt(sum(np.square(ours[name] - theirs[name]).sum() for name in theirs)))


def test_what_was_measured_is_kept(request, runs, shown):
    if not request.config.getoption("--write-docs"):
        pytest.skip("without --write-docs")
    assert not request.session.testsfailed
    mine = [item for item in request.session.items if item.path == request.path]
    gpu_figures.keep(shown, gpu_figures.features(mine), f"2 x {torch.cuda.get_device_name(0)}")
