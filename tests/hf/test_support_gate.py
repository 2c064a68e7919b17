"""Models that HSAP would compute wrong are refused by name, with every reason; the others pass."""

import copy
import re

import pytest
import torch
from small import small_llama
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hsap_hf.errors import UnsupportedModelError
from hsap_hf.hf import check_model_support
from hsap_hf.hf.interface import register_resting
from hsap_hf.hf.patch import AttentionPatch

SMALL = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 64, "vocab_size": 128}


def on_meta(model_type, **changes):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **changes))


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "mistral", "gemma2", "olmo2", "phi3", "gpt_oss"])
def test_models_whose_tokens_meet_only_in_causal_attention_pass(model_type):
    check_model_support(on_meta(model_type))


@pytest.mark.parametrize(
    ("model_type", "changes", "reason"),
    [
        ("qwen3_next", {}, "linear_attention"),
        ("mamba", {}, "does not call attention through Transformers' AttentionInterface"),
        ("jamba", {}, "does not call attention through Transformers' AttentionInterface"),
        ("bloom", {}, "does not call attention through Transformers' AttentionInterface"),
        ("falcon", {}, "does not call attention through Transformers' AttentionInterface"),
        ("lfm2", {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2}, "conv"),
        ("llama4_text", {}, "chunked_attention"),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic' depends on"),
        ("mixtral", {"output_router_logits": True}, "Set config.output_router_logits=False"),
        (
            "roberta",
            {"is_decoder": True, "attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0},
            "without position_ids it counts positions from another number than 0",
        ),
        ("llama", {"attention_dropout": 0.1}, "attention_dropout=0.1 is drawn per rank"),
    ],
)
def test_models_that_would_be_silently_wrong_are_refused_by_name(model_type, changes, reason):
    with pytest.raises(UnsupportedModelError) as caught:
        check_model_support(on_meta(model_type, **changes))
    assert f"HSAP cannot train {model_type} exactly:" in str(caught.value)
    assert reason in str(caught.value)


def test_scales_that_begin_at_far_positions_are_met_by_the_probe():
    """llama4 scales queries by the place in the row, from position 8,192 on, where layers have no rotary embedding."""
    kinds = {"layer_types": ["full_attention"] * 2, "no_rope_layers": [1, 0], "num_hidden_layers": 2}
    with pytest.raises(UnsupportedModelError, match="HSAP cannot train llama4_text exactly"):
        check_model_support(on_meta("llama4_text", **kinds))


def test_every_reason_is_listed_at_once():
    changes = {"attention_dropout": 0.5, "output_router_logits": True}
    with pytest.raises(UnsupportedModelError) as caught:
        check_model_support(on_meta("mixtral", **changes))
    reasons = [line for line in str(caught.value).splitlines() if line.startswith("- ")]
    assert len(reasons) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile imports much
def test_something_that_is_no_transformers_model_is_refused():
    with pytest.raises(UnsupportedModelError, match="it is a Linear; needs a Transformers causal language model"):
        check_model_support(torch.nn.Linear(2, 2))
    with pytest.raises(UnsupportedModelError, match=r"Call enable_hsap before torch\.compile"):
        check_model_support(torch.compile(small_llama()))


@pytest.mark.parametrize("stock", ["sdpa", "eager", "flash_attention_2", "org/flash-attn2@main:fast"])
def test_names_at_rest_look_like_nothing_else(stock):
    name = register_resting(stock)
    assert name in ALL_ATTENTION_FUNCTIONS
    assert re.fullmatch(r"hsap_over_\w+", name)
    assert "flash" not in name


def test_a_part_with_a_configuration_of_its_own_takes_the_same_attention():
    model = small_llama()
    model.model.rotary_emb.config = copy.deepcopy(model.config)  # as in GraniteSWA
    patch = AttentionPatch(model)
    patch.apply()
    assert {config._attn_implementation for config in patch.configs()} == {"hsap_over_sdpa"}
    patch.undo()
    assert model.config._attn_implementation == model.model.rotary_emb.config._attn_implementation == "sdpa"


def test_a_check_leaves_the_model_and_the_random_state_alone():
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SMALL))
    state, config, draw = model.state_dict(), model.config.to_dict(), torch.get_rng_state()
    before = {name: value.clone() for name, value in state.items()}
    check_model_support(model)
    assert torch.equal(torch.get_rng_state(), draw)
    assert model.config.to_dict() == config
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
