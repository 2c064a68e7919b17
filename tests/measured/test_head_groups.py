"""The program that times head groups on GPUs computes what the engine does, with all exchanges under way first."""

from unittest.mock import patch

import head_groups
import pytest
import torch
from head_groups import GROUPS, grouped_way, joined, measured

from hsap_hf.cli.bench.measurement import Bench
from hsap_hf.cli.bench.request import Request
from hsap_hf.cli.bench.ways import hsap_way
from hsap_hf.cli.bench.whole_pack import Shape, draw_pack
from hsap_hf.comm import build_mesh
from hsap_hf.comm.axis import ProcessAxis
from hsap_hf.config import HsapPlugin

RANKS, CPU = 4, torch.device("cpu")
LENGTHS = [301, 64, 9, 33, 1, 120]
SHAPE = Shape(8, 4, 16, "auto")


def mesh_of_all():
    return build_mesh(HsapPlugin(context_size=RANKS), "cpu")


def results(way):
    out, saved = way.forward()
    return [out, *way.backward(saved)]


def grouped_and_engine(groups, num_messages):
    """Output and gradients of one rank: of groups, and of all heads at once."""
    pack, mesh = draw_pack(LENGTHS, SHAPE, CPU), mesh_of_all()
    way = joined(grouped_way(pack, SHAPE, mesh, groups, num_messages))
    return results(way), results(hsap_way(pack, SHAPE, mesh, num_messages))


def events(groups):
    """What one forward does, in order: "post" an exchange, "attend"."""
    pack, mesh = draw_pack(LENGTHS, SHAPE, CPU), mesh_of_all()
    way, kernel, seen = grouped_way(pack, SHAPE, mesh, groups, 1), type(pack.kernel), []

    def seen_as(word, called):
        return lambda *args, **kwargs: (seen.append(word), called(*args, **kwargs))[1]

    with (
        patch.object(ProcessAxis, "all_to_all", seen_as("post", ProcessAxis.all_to_all)),
        patch.object(kernel, "forward", seen_as("attend", kernel.forward)),
    ):
        way.forward()
    return seen


def names_and_times():
    request = Request(packs={"mixed": LENGTHS}, splits=[(RANKS, 1)], shape=SHAPE, repeats=1)
    with patch.object(head_groups, "best_num_messages", lambda load: 2), patch.object(head_groups, "ROUNDS", 1):
        return measured(Bench(request, CPU, {(RANKS, 1): mesh_of_all()}), SHAPE, LENGTHS)


@pytest.mark.parametrize("num_messages", [1, 2])
@pytest.mark.parametrize("groups", GROUPS)
def test_groups_compute_what_all_heads_at_once_do(gloo, groups, num_messages):
    for found, expected in gloo.run("test_head_groups:grouped_and_engine", groups, num_messages):
        assert [len(x.shape) for x in found] == [3] * 4
        for mine, engines in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, engines, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups", GROUPS)
def test_exchanges_of_all_groups_are_posted_before_anything_is_attended(gloo, groups):
    for seen in gloo.run("test_head_groups:events", groups):
        posted, attended = seen[:groups], seen[groups:]
        assert posted == ["post"] * groups
        assert set(attended) == {"attend"}
        assert len(attended) >= groups


def test_every_number_of_groups_and_messages_is_right_and_timed(gloo):
    for rows in gloo.run("test_head_groups:names_and_times"):
        names = [f"groups {groups}, messages of each {number}" for number in (2, 1) for groups in GROUPS]
        assert [name for name, *_ in rows] == names
        assert all(min(numbers) > 0 for _, *numbers in rows)
