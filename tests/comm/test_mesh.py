"""How groups lie on nodes."""

import pytest

from hsap_hf.comm.mesh import slots_of_node


@pytest.mark.parametrize(
    ("ranks", "context_size", "ulysses_size", "slots"),
    [
        (8, 8, 1, 8),
        (8, 2, 1, 2),  # several groups on a node
        (8, 16, 1, 8),  # a group on two nodes
        (8, 4, 8, 1),  # a slot is a node
        (8, 16, 2, 4),
        (1, 2, 1, 1),
        (8, 6, 1, None),  # the second group lies on two nodes
        (4, 6, 1, None),
        (6, 3, 4, None),  # a slot lies on two nodes
        (2, 3, 4, None),
    ],
)
def test_slots_of_a_node(ranks, context_size, ulysses_size, slots):
    assert slots_of_node(ranks, context_size, ulysses_size) == slots
