"""Thirty steps of two micro-batches through the real command line: every way to run them is on one trajectory."""

import json
import re
import shutil

import numpy as np
import pytest
from launched import ACCELERATE, HSAP, REPOSITORY, free_port, launch
from tiny_recipe import write_recipe

STEPS = 30
LIMIT = 1e-5
"""Of the loss of every step. Residuals must also have no drift: their mean is within their own noise of zero."""


def losses(folder, *words, launcher=(HSAP, "train")):
    """Loss by step of one run, and the terminal's text."""
    recipe = write_recipe(folder, max_steps=STEPS, save_steps=STEPS // 2, gradient_accumulation_steps=2)
    ended = launch(*launcher, recipe, *words)
    assert ended.code == 0, ended.err[-3000:]
    state = json.loads((folder / "out" / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    return np.array([entry["loss"] for entry in state["log_history"] if "loss" in entry]), ended.out


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """One rank, where nothing is dealt: its folder and its losses."""
    folder = tmp_path_factory.mktemp("plain")
    return folder, losses(folder, "--nproc", 1)[0]


def assert_same_trajectory(ours, plain):
    assert len(ours) == len(plain) == STEPS
    residual = ours - plain
    assert np.abs(residual).max() <= LIMIT
    assert abs(residual.mean()) <= 4 * residual.std() / STEPS**0.5 + 1e-9
    assert plain[-5:].mean() < plain[:5].mean() - 0.01  # and it is a trajectory that goes somewhere


def test_a_recipe_has_one_trajectory_on_four_ranks(tmp_path, plain):
    ours, shown = losses(tmp_path, "--nproc", 4, "hsap.ulysses_size=2", "logging.proof=true")
    assert_same_trajectory(ours, plain[1])
    assert "1 replicas x 2 context x 2 ulysses" in shown
    assert "proof passed" in shown
    assert re.search(r"leak between documents.*\s0\s", shown)


def test_accelerate_launch_resumes_on_it_in_other_groups(tmp_path, plain):
    folder, whole = plain
    checkpoint = tmp_path / "out" / f"checkpoint-{STEPS // 2}"
    shutil.copytree(folder / "out" / checkpoint.name, checkpoint)
    accelerate = [ACCELERATE, "launch", "--config_file", REPOSITORY / "recipes" / "accelerate" / "cpu_2.yaml"]
    launcher = [*accelerate, "--main_process_port", free_port(), "-m", "hsap_hf.train"]
    resumed, shown = losses(tmp_path, f"training.resume_from_checkpoint={checkpoint}", launcher=launcher)
    assert_same_trajectory(resumed, whole)
    assert "2 ranks = 1 replicas x 2 context" in shown
