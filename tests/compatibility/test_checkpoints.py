"""Checkpoints are plain Transformers checkpoints, and resuming goes on as if nothing had happened."""

import numpy as np
import pytest


@pytest.fixture(scope="module")
def through(gloo, tmp_path_factory):
    """A run in 2x2 that saved after three of six steps: its folder, and what it gave."""
    folder = tmp_path_factory.mktemp("through")
    return folder, gloo.run("checkpoint_runs:through", str(folder), (2, 2))


@pytest.mark.parametrize(
    ("group", "limit"),
    [
        pytest.param((2, 2), 0.0, marks=pytest.mark.shows("resume in the same groups", "the run without a stop")),
        pytest.param((4, 1), 1e-6, marks=pytest.mark.shows("resume in other groups", "the run without a stop")),
        pytest.param(None, 1e-6, marks=pytest.mark.shows("resume without HSAP", "the run without a stop")),
    ],
    ids=["same groups", "other groups", "no groups"],
)
def test_a_resumed_run_takes_the_same_steps(gloo, through, tmp_path, show, group, limit):
    folder, whole = through
    again = gloo.run("checkpoint_runs:resumed", str(folder), str(tmp_path), group)
    off = [np.abs(again[0]["weights"][name] - value).max() for name, value in whole[0]["weights"].items()]
    losses = np.abs(np.subtract(again[0]["loss"][-3:], whole[0]["loss"][-3:])).max()
    show(max(*off, losses))
    assert max(*off) <= limit
    assert losses <= limit
    assert again[0]["tokens_seen"] == whole[0]["tokens_seen"]


@pytest.mark.shows("checkpoints load without hsap_hf", "weights in memory")
def test_a_checkpoint_is_a_plain_transformers_checkpoint(gloo, through, show):
    folder, whole = through
    stock, attention, named, weights = gloo.run("checkpoint_runs:loaded", str(folder / "checkpoint-6"))[0]
    assert stock
    assert attention == "sdpa"
    assert not named
    off = max(np.abs(weights[name] - value).max() for name, value in whole[0]["weights"].items())
    show(off)
    assert off == 0
    assert (folder / "checkpoint-6" / "model.safetensors").is_file()


def test_only_one_rank_writes_the_model(gloo, tmp_path):
    ours = gloo.run("checkpoint_runs:written_by", str(tmp_path / "ours"), (2, 2))
    stock = gloo.run("checkpoint_runs:written_by", str(tmp_path / "stock"), None)
    assert ours == stock
    assert "model.safetensors" in ours[0]
    assert all("model.safetensors" not in of_rank for of_rank in ours[1:])
