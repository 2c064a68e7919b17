"""A fault of one rank ends every rank within seconds, and each says which rank and why."""

import os
import re
from pathlib import Path

import pytest
from launched import PYTHON, launch_ranks

SCRIPT = Path(__file__).with_name("user_script.py")
SECONDS = 10


def allowed_seconds():
    """The promise, stretched on a machine that has much more to do than these two ranks."""
    return SECONDS * max(1.0, os.getloadavg()[0] / (2 * (os.cpu_count() or 1)))


def failed_at(ranks):
    return max(float(line.split()[1]) for rank in ranks for line in rank.out.splitlines() if line.startswith("FAULT"))


def last_error(rank):
    """The text of the exception that ended the process; torch writes `[rank0]: ` before every line."""
    text = re.sub(r"^\[rank\d+\]: ?", "", rank.err, flags=re.M)
    errors = re.findall(
        r"^(?:[\w.]*\.)?(\w+(?:Error|Exception): .*?)(?=^Traceback|^During|^The above|^\[|\Z)", text, re.M | re.S
    )
    assert errors, f"no error was printed:\n{text[-3000:]}"
    return errors[-1]


def check_failed_together(ranks):
    for number, rank in enumerate(ranks):
        assert rank.code is not None, f"rank {number} did not end:\n{rank.err[-2000:]}"
        assert rank.code != 0, f"rank {number} ended well:\n{rank.out[-2000:]}"
        assert rank.ended_at - failed_at(ranks) < allowed_seconds()
        assert "TRAINED" not in rank.out


@pytest.mark.parametrize("place", ["callback", "batch"])
def test_an_exception_on_one_rank_ends_both_with_its_cause(place):
    ranks = launch_ranks(PYTHON, SCRIPT, "raises", place)
    check_failed_together(ranks)
    assert "RankMismatchError: rank 1: ValueError: row 7 is no JSON" in last_error(ranks[0])
    assert "ValueError: row 7 is no JSON" in last_error(ranks[1])
    assert "[rank1]:" in ranks[1].err  # torch names the rank that raised


def test_a_bad_batch_on_one_rank_ends_both_with_the_same_error():
    ranks = launch_ranks(PYTHON, SCRIPT, "hole", "batch")
    check_failed_together(ranks)
    assert last_error(ranks[0]).strip() == last_error(ranks[1]).strip()
    assert "PackError: rank 1: attention_mask has holes in row 0" in last_error(ranks[0])


def test_a_model_that_would_be_wrong_is_refused_by_name_on_every_rank():
    ranks = launch_ranks(PYTHON, SCRIPT, "qwen3_next", "batch")
    check_failed_together(ranks)
    for rank in ranks:
        assert "HSAP cannot train qwen3_next exactly" in last_error(rank)


def test_a_killed_rank_is_noticed_and_the_phase_named():
    ranks = launch_ranks(PYTHON, SCRIPT, "killed", "callback")
    check_failed_together(ranks)
    assert ranks[1].code == -9
    assert "RankMismatchError: another rank left in phase 'gather lengths'" in last_error(ranks[0])


def test_a_sleeping_rank_is_not_waited_for_longer_than_the_timeout():
    """Where Trainer itself gathers token counts before the forward, TrainingArguments.ddp_timeout counts instead."""
    survivor, sleeper = launch_ranks(PYTHON, SCRIPT, "sleeps", "callback")
    assert survivor.code not in (0, None)
    assert survivor.ended_at - failed_at([sleeper]) < allowed_seconds()
    error = last_error(survivor)
    assert "CollectiveTimeoutError: waited 3 s for other ranks in phase 'gather lengths'" in error
    assert "raise timeout_seconds" in error
