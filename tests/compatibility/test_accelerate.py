"""Without Trainer: the loop that docs/compatibility.md shows."""

import numpy as np
import pytest
from test_trainer import DDP, GROUPS


@pytest.mark.shows("a bare Accelerate loop, groups 2x1, 1x2, 2x2 and 4x1", DDP)
@pytest.mark.parametrize("group", GROUPS, ids=lambda group: f"{group[0]}x{group[1]}")
def test_a_bare_loop_is_data_parallelism(gloo, show, group):
    (losses, weights), (plain, wanted) = (gloo.run("accelerate_runs:run", of)[0] for of in (group, None))
    assert len(losses) == 6
    assert len(set(plain)) == 6
    off = [np.abs(np.subtract(losses, plain)).max(), *(np.abs(weights[name] - w).max() for name, w in wanted.items())]
    show(max(off))
    assert max(off) <= 1e-5


@pytest.mark.shows(
    "a loss without num_items_in_batch: the token mean of the group", "the losses of all ranks, by their tokens"
)
def test_a_mean_is_taken_over_the_tokens_of_the_group(gloo, show):
    for ours, token_mean, mean_of_ranks in gloo.run("accelerate_runs:means", (4, 1)):
        assert ours == pytest.approx(token_mean, abs=1e-6)
        assert abs(mean_of_ranks - token_mean) > 1e-4  # what plain data parallelism reports for the same call
        show(abs(ours - token_mean))


def sharded_difference(gloo, **setting):
    """Largest difference of losses, gradient norms and weights under FSDP2, documents cut."""
    (seen, weights, rows), (plain, wanted, _) = (
        gloo.run("accelerate_runs:sharded", of, **setting)[0] for of in ((2, 2), None)
    )
    assert len(seen) == 6
    assert rows > 0
    off = [np.abs(np.subtract(seen, plain)).max(), *(np.abs(weights[name] - w).max() for name, w in wanted.items())]
    return max(off)


@pytest.mark.shows("FSDP2 (fully_shard, on CPUs), with and without activation checkpointing", "FSDP2 without HSAP")
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
def test_sharded_weights_train_alike(gloo, show, checkpointing):
    off = sharded_difference(gloo, checkpointing=checkpointing)
    show(off)
    assert off <= 1e-6


@pytest.mark.shows("FSDP2 with param_dtype bfloat16", "FSDP2 without HSAP")
def test_sharded_weights_in_half_precision_train_alike(gloo, show):
    off = sharded_difference(gloo, dtype="bfloat16")
    show(off)
    assert off <= 1e-2  # what bfloat16 itself rounds by, below
    exact, rounded = (gloo.run("accelerate_runs:sharded", None, dtype=dtype)[0][0] for dtype in (None, "bfloat16"))
    assert off <= 4 * np.abs(np.subtract(rounded, exact)).max()
