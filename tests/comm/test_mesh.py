"""How groups lie on nodes."""

import pytest

from hsap_hf.comm import mesh
from hsap_hf.comm.mesh import slots_of_node, take_own_gpu
from hsap_hf.config import HsapPlugin


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


@pytest.mark.parametrize(("chosen", "taken"), [(False, [1]), (True, [])])
def test_a_rank_takes_its_own_gpu_unless_one_was_chosen(monkeypatch, chosen, taken):
    """Of four on its machine; else every rank that names a kernel would ask the first."""
    asked = []
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: chosen)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.set_device", asked.append)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 5)
    take_own_gpu()
    assert asked == taken


def test_groups_of_gpus_are_made_on_the_ranks_own(monkeypatch):
    """A model still on the CPU lets nobody choose a GPU before."""
    order = []
    monkeypatch.setattr(mesh, "take_own_gpu", lambda: order.append("own"))

    def make_groups(*_):
        assert order == ["own"]
        raise InterruptedError

    monkeypatch.setattr(mesh, "make_groups", make_groups)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    with pytest.raises(InterruptedError):
        mesh.build_mesh(HsapPlugin(), "cuda")
