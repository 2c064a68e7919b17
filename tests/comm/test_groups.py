"""Groups are the job's hierarchy and nobody else's."""

import pytest

EVERYONE = [0, 1, 2, 3]
DEVICE = ("context", "ulysses", "group")


@pytest.mark.parametrize(
    ("split", "context", "ulysses"),
    [
        ((4, 1), [EVERYONE] * 4, [[0], [1], [2], [3]]),
        ((1, 4), [[0], [1], [2], [3]], [EVERYONE] * 4),
        ((2, 2), [[0, 2], [1, 3], [0, 2], [1, 3]], [[0, 1], [0, 1], [2, 3], [2, 3]]),
        ((2, 1), [[0, 1], [0, 1], [2, 3], [2, 3]], [[0], [1], [2], [3]]),
    ],
)
def test_ranks_stand_where_they_should_and_in_no_group_of_somebody_else(gloo, split, context, ulysses):
    told = gloo.run("group_runs:told", *split)
    size = split[0] * split[1]
    for rank, axes in enumerate(told):
        ranks = {name: told_ranks for name, (told_ranks, _, _) in axes.items()}
        first = rank // size * size
        shared = EVERYONE[first : first + size]
        assert ranks == {
            "context": context[rank],
            "ulysses": ulysses[rank],
            "group": shared,
            "group_host": shared,
            "world_host": EVERYONE,
        }
        assert not any(is_the_jobs_own for _, is_the_jobs_own, _ in axes.values())


@pytest.mark.parametrize(("seconds", "device"), [(5.0, 1800), (7200.0, 7200)])
def test_what_hangs_on_a_device_is_not_ended_before_the_jobs_own_limit(gloo, seconds, device):
    """gloo's default is half an hour; a host's agreement has the plugin's limit."""
    limits = {
        name: limit for name, (_, _, limit) in gloo.run("group_runs:told", 2, 2, timeout_seconds=seconds)[0].items()
    }
    assert limits == {**dict.fromkeys(DEVICE, device), "group_host": seconds, "world_host": seconds}


def test_a_session_does_not_hear_what_another_one_left(gloo):
    for first, second in gloo.run("group_runs:left_by_an_error"):
        assert first == second > 0


@pytest.mark.parametrize("group", [(1, 4), (2, 2), (4, 1)], ids=lambda group: f"{group[0]}x{group[1]}")
def test_gradients_that_are_ready_at_different_moments_let_nobody_wait(gloo, group):
    """On the communicator of data parallelism, ranks would meet gradients where others trade heads, for ever."""
    norms = gloo.run("group_runs:own_parameters_of_one_rank", group)
    assert len(norms[0]) == 3
    assert min(norms[0]) > 0
    for others in norms[1:]:
        assert others == pytest.approx(norms[0])
