"""What the layers of a dealt batch share."""

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import LlamaConfig, LlamaForCausalLM

from hsap_hf import HsapPlugin
from hsap_hf.attention import Scores
from hsap_hf.comm.loopback import lone_mesh
from hsap_hf.hf.dealt import DealtBatch
from hsap_hf.hf.hooks import _recomputes
from hsap_hf.planner import compile_plan


def dealt(lengths, context_size):
    return DealtBatch(
        mesh=lone_mesh(),
        plan=compile_plan(lengths, context_size),
        deal=None,
        brought=None,
        tokens=torch.zeros(8, 3, dtype=torch.int64),
        num_supervised=0,
        plugin=HsapPlugin(),
        recomputes=lambda: False,
        tables={},
    )


def test_a_window_that_hides_nothing_is_none():
    batch, rows = dealt([5, 3], 1), torch.zeros(8, 2, 4)
    windows = [batch.call(rows, rows, rows, Scores(1.0, window)).scores.window for window in (None, 5, 6, 4)]
    assert windows == [None, None, None, 4]
    assert set(batch.tables) == {None, 4}


@pytest.mark.parametrize(("window", "kept"), [(None, False), (16, True)])
def test_layers_keep_borrowed_keys_where_their_own_window_lets_them_borrow_few(window, kept):
    """One document on eight slots: a slot fetches five times its own rows, or with the window 15 and 15."""
    rows = torch.zeros(8, 2, 4)
    assert dealt([1_310], 8).call(rows, rows, rows, Scores(1.0, window)).keep_borrowed is kept


ENABLE = "activation_checkpointing_enable"  # older transformers call it gradient checkpointing
ENABLE = ENABLE if hasattr(LlamaForCausalLM, ENABLE) else "gradient_checkpointing_enable"


@pytest.fixture
def model():
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, **shape))


@pytest.mark.parametrize("wrapped", [False, True])
def test_layers_recompute_where_all_of_them_do(model, wrapped):
    """Also inside DDP, which has no such switch of its own."""
    seen = nn.ModuleList([model]) if wrapped else model
    assert not _recomputes(seen)
    getattr(model, ENABLE)()
    assert _recomputes(seen)
    model.model.layers[1].gradient_checkpointing = False  # every_n_layers=2
    assert not _recomputes(seen)


def test_layers_in_wrappers_of_fsdp_recompute_where_all_of_them_are(model):
    layers = model.model.layers
    layers[0] = checkpoint_wrapper(layers[0])
    assert not _recomputes(model)
    layers[1] = checkpoint_wrapper(layers[1])
    assert _recomputes(model)
