"""What would go wrong in silence is exact, refused or said."""

import pytest


def test_float32_weights_under_autocast_train_in_half_precision(gloo):
    for ours, stock in gloo.run("guard_runs:autocast_losses"):
        assert ours == pytest.approx(stock, rel=2e-3)
        assert ours > 1


def test_ranks_that_divide_by_counts_of_their_own_are_refused(gloo):
    for text in gloo.run("guard_runs:counts_of_single_ranks"):
        assert "num_items_in_batch of different values" in text
        assert "average_tokens_across_devices=True" in text


def test_a_training_forward_without_labels_is_said_once(gloo):
    for said in gloo.run("guard_runs:training_without_labels"):
        assert len(said) == 1
        assert "a training forward without labels is not shared" in said[0]


def test_a_deep_copy_is_undone_by_itself(gloo):
    for result in gloo.run("guard_runs:copied_model"):
        assert result == (True, True, "sdpa", 0)


def test_changes_of_the_config_survive_disabling(gloo):
    assert set(gloo.run("guard_runs:resized_vocabulary")) == {(101, "sdpa")}


def test_generation_with_a_static_cache_never_changes(gloo):
    for ours, stock in gloo.run("guard_runs:static_cache_generation"):
        assert ours == stock


def test_gradients_that_nobody_reduced_end_the_job(gloo):
    """As where DDP spans a part of the ranks; noticed at the batch after the first step."""
    (said,) = {tuple(said) for said in gloo.run("guard_runs:weights_trained_alone")}
    assert said[0] == "trained"
    assert "weights differ between ranks" in said[1]
    assert "not reduced over all 4 ranks" in said[1]


def test_an_infinite_loss_names_rank_and_documents_before_any_backward(gloo):
    """In debug mode."""
    ((text, has_gradient),) = set(gloo.run("guard_runs:infinite_loss"))
    assert text.startswith("rank ")
    assert "the loss is nan. This rank computes tokens of" in text
    assert "40" in text
    assert not has_gradient
