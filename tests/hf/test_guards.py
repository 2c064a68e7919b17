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


def test_evaluation_does_not_count_as_training(gloo):
    assert gloo.run("guard_runs:trained_batches") == [[0, 1]] * 4


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


def test_what_ended_early_does_not_decide_what_later_batches_compute_with(gloo):
    for before, *later in gloo.run("guard_runs:losses_around_what_ended_early"):
        assert later == [before] * 2


def test_a_copy_generates_with_its_own_weights_and_undoes_only_itself(gloo):
    for (original, twin, undone), kept in gloo.run("guard_runs:generations_of_a_copy"):
        assert original != twin == undone
        assert kept


def test_a_generate_that_the_model_was_given_runs_on_stock_attention_and_stays(gloo):
    assert set(gloo.run("guard_runs:generation_of_ones_own")) == {(("sdpa", "own"), True)}


def test_generation_without_a_cache_is_not_shared(gloo):
    for stock, ours, batches in gloo.run("guard_runs:generation_without_a_cache"):
        assert ours == stock
        assert batches == 0


def test_a_prepared_trainer_evaluates_what_its_rank_brought_and_counts_over_all_ranks(gloo):
    for stock, ours, refused in gloo.run("guard_runs:evaluation_of_a_prepared_trainer"):
        assert ours == pytest.approx([stock, stock], rel=1e-5)
        assert "average_tokens_across_devices=False" in refused


def test_a_prepared_trainer_predicts_what_its_rank_brought_or_nothing(gloo):
    for difference, refused, disabled in gloo.run("guard_runs:predictions_of_a_prepared_trainer"):
        assert difference < 1e-4
        assert refused.startswith("predict: after prepare_trainer these are logits of dealt tokens.")
        assert disabled == []
