"""Evaluation, metrics and predictions are those of data-parallel evaluation, sample by sample."""

import numpy as np
import pytest
from test_trainer import DDP, difference

SETTING = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 6, "learning_rate": 1e-3}


@pytest.fixture(scope="module", params=["flattening", "right"], ids=["flattened rows", "padded rows"])
def runs(request, gloo):
    """(HSAP, plain DDP) with metrics, the best model loaded at the end."""
    best = {
        "save_strategy": "steps",
        "save_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "accuracy",
    }
    setting = {"metrics": True, "collator": request.param, **SETTING, **best}
    return [gloo.run("trainer_runs:train", group, **setting) for group in ((2, 2), None)]


@pytest.mark.shows('compute_metrics and predict, return_logits="brought"', f"{DDP}, group 2x2")
def test_metrics_and_predictions_are_in_the_callers_order(runs, show):
    for mine, theirs in zip(*runs, strict=True):
        assert mine["predicted"].shape == theirs["predicted"].shape
        kept = theirs["labels"] != -100  # the stock model computes something for padding, HSAP does not
        assert kept.sum() > 500
        off = np.abs(mine["predicted"] - theirs["predicted"])[kept].max()
        show(off)
        assert off <= 1e-5
        assert 0 < mine["evaluated"]["eval_accuracy"] == theirs["evaluated"]["eval_accuracy"]


@pytest.mark.shows("load_best_model_at_end", f"{DDP}, group 2x2")
def test_the_same_model_is_the_best(runs, show):
    assert runs[0][0]["best"][0] == runs[1][0]["best"][0]
    show(difference(*runs, weights=1e-5))
