"""One forward and backward over dealt tokens is that of the stock model, whatever each rank brings."""

import numpy as np
import pytest
from forward_runs import CASES

GROUPS = [(2, 1), (2, 2), (4, 1), (1, 4)]


def close(result):
    """Float32 gradients of a whole model: 1e-5 of the largest."""
    assert result["loss"] == pytest.approx(result["stock_loss"], abs=1e-5)
    assert result["gradient_difference"] <= 1e-5 * max(1.0, result["largest_gradient"])
    assert result["finite"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("group", GROUPS, ids=lambda group: f"{group[0]}x{group[1]}")
def test_loss_and_gradients_are_those_of_the_stock_model(gloo, group, case):
    for result in gloo.run("forward_runs:step", group, case):
        close(result)
        if case == "ragged":
            assert result["largest_gradient"] > 1e-3
            assert (result["cut"] > 0) == (group[0] > 1)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: f"{group[0]}x{group[1]}")
def test_without_num_items_the_loss_is_the_token_mean_of_the_group(gloo, group):
    for result in gloo.run("forward_runs:step", group, "ragged", with_num_items=False):
        close(result)


@pytest.mark.parametrize("group", [(2, 1), (4, 1), (2, 2)])
def test_ranks_without_labels_only_lend_their_hands(gloo, group):
    for result in gloo.run("forward_runs:step", group, "ragged", supervised_ranks=(2,)):
        close(result)
        assert result["loss"] > 0


@pytest.mark.parametrize("with_num_items", [True, False])
def test_a_pack_without_labels_has_loss_zero_and_gradients_zero_not_nan(gloo, with_num_items):
    settings = {"supervised_ranks": (), "with_num_items": with_num_items}
    for result in gloo.run("forward_runs:step", (4, 1), "ragged", **settings):
        assert result["loss"] == 0.0
        assert result["finite"]
        assert result["gradient_difference"] == result["largest_gradient"] == 0.0
        assert [text[:35] for text in result["said"]] == ["no label of this pack counts (all a"]


@pytest.mark.parametrize("checkpointing", [None, True, False], ids=["none", "reentrant", "not reentrant"])
@pytest.mark.parametrize("group", [(4, 1), (2, 2)])
def test_two_plans_in_flight_do_not_mix(gloo, group, checkpointing):
    """Forward, forward, backward of both: what travels with the batch survives, also a recompute."""
    for result in gloo.run("forward_runs:step", group, "ragged", twice=True, checkpointing=checkpointing):
        close(result)


@pytest.mark.parametrize(("kv_heads", "checkpointing", "auto"), [(2, None, 0), (4, None, 1), (4, False, 0)])
def test_borrowed_keys_are_kept_or_fetched_again_and_auto_saves_memory(gloo, kv_heads, checkpointing, auto):
    """Three times a slot's own rows are too many to keep where every query head has keys of its own; with activation
    checkpointing they are gone before the backward anyway."""
    received = []
    for setting in ("keep", "fetch_again", "auto"):
        options = {"kv_heads": kv_heads, "checkpointing": checkpointing, "borrowed_keys": setting}
        results = gloo.run("forward_runs:step", (4, 1), "only one rank brings something", **options)
        for result in results:
            close(result)
        received.append(sum(result["received_rows"] for result in results))
    assert received[0] < received[1]
    assert received[2] == received[auto]


@pytest.mark.parametrize("borrowed_keys", ["keep", "fetch_again"])
def test_keys_come_in_as_many_messages_as_are_asked_for(gloo, borrowed_keys):
    """Of two layers, in forward and where they are fetched again; each is a collective, even where it is empty."""
    received = []
    for count in (1, 3):
        options = {"borrowed_keys": borrowed_keys, "exchange_messages": count}
        results = gloo.run("forward_runs:step", (4, 1), "one long document", **options)
        for result in results:
            close(result)
            assert result["messages"] == 2 * count * (1 + (borrowed_keys == "fetch_again"))
        received.append([result["received_rows"] for result in results])
    assert received[0] == received[1]
    assert max(received[0]) > 3 * 128


@pytest.mark.parametrize("group", [(2, 1), (2, 2), (4, 1)])
@pytest.mark.parametrize("kind", ["packed", "right", "left"])
def test_brought_logits_are_the_stock_logits_of_the_callers_batch(gloo, group, kind):
    for result in gloo.run("forward_runs:logits", group, kind, "brought"):
        assert result["same_shape"]
        assert result["difference"] <= 5e-6
        assert result["at_padding"] == 0.0
        assert result["loss"] == pytest.approx(0.0, abs=5e-6)


def test_logits_are_dropped_or_dealt_as_asked(gloo):
    assert gloo.run("forward_runs:logits", (4, 1), "packed", "none") == [None] * 4
    shapes = gloo.run("forward_runs:logits", (4, 1), "packed", "dealt")
    tokens = 30 + 2 + 1 + 1 + 64 + 9 + 17 + 3
    assert sum(shape[1] for shape in shapes) == tokens
    assert max(shape[1] for shape in shapes) - min(shape[1] for shape in shapes) <= 1


@pytest.mark.parametrize("group", [(2, 1), (2, 2)])
def test_generation_and_calls_without_labels_keep_every_bit(gloo, group):
    assert gloo.run("forward_runs:inference", group) == [[True, True, True]] * 4


@pytest.mark.parametrize(
    ("bad", "error", "text"),
    [
        ("hole", "PackError", "rank 2: attention_mask has holes in row 0"),
        ("4-D", "PackError", "rank 2: attention_mask is a 4-D mask [1, 1, 8, 8]; needs a padding mask"),
        ("embeds", "PackError", "rank 2: input_ids: got nothing"),
    ],
)
def test_a_bad_batch_on_one_rank_is_the_same_error_on_every_rank_of_the_job(gloo, bad, error, text):
    """Also on the ranks of the other replica."""
    results = gloo.run("forward_runs:failing", (2, 1), ["packed", "packed", bad, "packed"])
    assert {result[0] for result in results} == {error}
    assert len({result[1] for result in results}) == 1
    assert text in results[0][1]


def test_a_pack_that_is_too_large_is_refused_with_the_size_that_fits(gloo):
    results = gloo.run("forward_runs:failing", (2, 1), ["packed"] * 4, options={"max_tokens_per_rank": 12})
    want = "a pack of 26 tokens deals 13 to one rank; max_tokens_per_rank is 12. A group of 2 ranks fits 24 tokens"
    assert all(kind == "PackTooLargeError" and want in text for kind, text in results)


def test_training_on_one_rank_and_evaluation_on_another_is_an_error_everywhere(gloo):
    results = gloo.run("forward_runs:failing", (4, 1), ["packed"] * 4, grad_ranks=(0, 1, 2))
    assert all(kind == "RankMismatchError" and "different calls" in text for kind, text in results)


def test_ulysses_ranks_are_innermost_and_replicas_outermost(gloo):
    everyone = [0, 1, 2, 3]
    for rank, layout in enumerate(gloo.run("forward_runs:mesh_layout", (2, 2))):
        pair = [rank - rank % 2, rank - rank % 2 + 1]
        assert layout == [pair, [rank % 2, rank % 2 + 2], everyone, everyone, everyone, 0]
    for rank, layout in enumerate(gloo.run("forward_runs:mesh_layout", (2, 1))):
        pair = [rank - rank % 2, rank - rank % 2 + 1]
        assert layout == [[rank], pair, pair, pair, everyone, rank // 2]


@pytest.mark.parametrize("group", [(4, 1), (2, 2)], ids=["4x1", "2x2"])
def test_a_slow_rank_changes_no_bit_of_anyones_steps(gloo, group):
    prompt, delayed = (gloo.run("forward_runs:steps_in_a_row", group, late) for late in (None, 3))
    for ours, theirs in zip(delayed, prompt, strict=True):
        assert len(ours) == len(theirs) == 12
        for step, expected in zip(ours, theirs, strict=True):
            assert all(np.array_equal(x, y) for x, y in zip(step, expected, strict=True))
            assert all(np.isfinite(x).all() for x in step)
    assert any(np.abs(step[1]).max() > 0 for steps in prompt for step in steps)
