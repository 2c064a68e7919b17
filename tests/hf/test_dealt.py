"""What the layers of a dealt batch share."""

import torch

from hsap_hf import HsapPlugin
from hsap_hf.attention import Scores
from hsap_hf.comm.loopback import lone_mesh
from hsap_hf.hf.dealt import DealtBatch
from hsap_hf.planner import compile_plan


def test_a_window_that_hides_nothing_is_none():
    tokens = torch.zeros(8, 3, dtype=torch.int64)
    batch = DealtBatch(
        mesh=lone_mesh(),
        plan=compile_plan([5, 3], 1),
        deal=None,
        brought=None,
        tokens=tokens,
        num_supervised=0,
        plugin=HsapPlugin(),
        recomputes=lambda: False,
        tables={},
    )
    rows = torch.zeros(8, 2, 4)
    windows = [batch.call(rows, rows, rows, Scores(1.0, window)).scores.window for window in (None, 5, 6, 4)]
    assert windows == [None, None, None, 4]
    assert set(batch.tables) == {None, 4}
