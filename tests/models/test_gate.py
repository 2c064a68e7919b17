"""The gate: what is refused and why, what passes, and that asking costs and changes nothing."""

import time

import pytest
import torch
from families import FAMILIES, UNTUNED, build
from refusals import REFUSALS
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

from hsap_hf.errors import ConfigError, UnsupportedModelError
from hsap_hf.hf.probe import probe_model
from hsap_hf.hf.support import check_kernel, check_model_support

BY_NAME = {family.name: family for family in FAMILIES + UNTUNED}


def without_weights(model_type, **options):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **options))


@pytest.mark.parametrize("family", FAMILIES + UNTUNED, ids=lambda family: family.name)
def test_every_listed_family_is_probed_and_passes(family):
    report = check_model_support(build(family))
    assert report.note is None
    assert report.model_type == family.model_type


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name)
def test_refusals_name_the_reason(refusal):
    with pytest.raises(UnsupportedModelError, match="exactly:") as caught:
        check_model_support(refusal.model())
    assert refusal.says in str(caught.value)


def test_several_reasons_are_listed_together():
    model = without_weights("mixtral", output_router_logits=True, attention_dropout=0.1)
    with pytest.raises(UnsupportedModelError) as caught:
        check_model_support(model)
    assert "output_router_logits" in str(caught.value)
    assert "attention_dropout" in str(caught.value)


@pytest.mark.parametrize(
    ("model_type", "options", "where"),
    [
        ("qwen3_next", {}, "Qwen3NextGatedDeltaNet"),
        ("lfm2", {"full_attn_idxs": [2, 5]}, "Lfm2ShortConv"),
        ("jamba", {}, "JambaMambaMixer"),
        ("recurrent_gemma", {}, "RecurrentGemmaRecurrentBlock"),
    ],
)
def test_the_probe_finds_mixing_without_reading_the_configuration(model_type, options, where):
    (problem,) = probe_model(without_weights(model_type, **options)).problems
    assert f"meet outside attention in {where}" in problem


class NeighbourMixer(nn.Module):
    """A short convolution hidden in an ordinary model: what no configuration tells."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x + 0.01 * x.roll(1, dims=1))


class LlamaWithMixer(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.model.layers[1].mlp = NeighbourMixer(self.model.layers[1].mlp)


class RowAttention(LlamaAttention):
    """Scales by the place in the row instead of the position."""

    def forward(self, hidden_states, *args, **kwargs):
        rows = torch.arange(hidden_states.shape[1], device=hidden_states.device, dtype=hidden_states.dtype)
        return super().forward(hidden_states * (1 + 0.1 * rows[:, None]), *args, **kwargs)


class LlamaByRow(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        for index, layer in enumerate(self.model.layers):
            layer.self_attn = RowAttention(config, index)


class LlamaWithOwnLoss(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.loss = out.loss + out.logits.square().mean() if kwargs.get("labels") is not None else None
        return out


class MistralWithoutWindow(LlamaAttention):
    """Masks a window, but does not tell the attention function."""

    def forward(self, hidden_states, position_embeddings, attention_mask=None, **kwargs):
        if attention_mask is not None or self.config._attn_implementation == "sdpa":
            rows = torch.arange(hidden_states.shape[1])
            far = (rows[:, None] - rows) >= 4
            attention_mask = torch.zeros(len(rows), len(rows), dtype=hidden_states.dtype)
            ahead = rows[:, None] < rows
            attention_mask = attention_mask.masked_fill(far | ahead, -1e30)[None, None]
        return super().forward(hidden_states, position_embeddings, attention_mask, **kwargs)


class LlamaWithHiddenWindow(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        for index, layer in enumerate(self.model.layers):
            layer.self_attn = MistralWithoutWindow(config, index)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (LlamaWithMixer, "meet outside attention in NeighbourMixer"),
        (LlamaByRow, "position_ids alone"),
        (LlamaWithOwnLoss, "its loss is not a sum over tokens"),
        (LlamaWithHiddenWindow, "not only what it passes"),
    ],
)
def test_the_probe_finds_what_no_configuration_tells(kind, says):
    with pytest.raises(UnsupportedModelError, match=says):
        check_model_support(kind(BY_NAME["Llama 3"].config()))


def test_a_70b_model_costs_less_than_a_second_and_leaves_random_states_alone():
    model = without_weights(
        "llama",
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
    )
    state, config = torch.get_rng_state(), model.config.to_dict()
    check_model_support(model)
    start = time.perf_counter()
    report = check_model_support(model)
    assert time.perf_counter() - start < 1.0
    assert report.note is None
    assert torch.equal(torch.get_rng_state(), state)
    assert model.config.to_dict() == config
    assert model.config._attn_implementation == "sdpa"


def test_a_model_whose_copy_cannot_be_built_is_not_refused():
    class Stubborn(LlamaForCausalLM):
        def __init__(self, config):
            if config.hidden_size != 32:
                raise ValueError("only 32")
            super().__init__(config)

    class Wide(LlamaForCausalLM):
        def __init__(self, config):
            super().__init__(config)
            with torch.device("meta"):
                self.wide = nn.Linear(10_000, 10_000)

    config = BY_NAME["Llama 3"].config()
    assert "only 32" in check_model_support(Stubborn(config)).note
    assert "weights" in check_model_support(Wide(config)).note


@pytest.mark.parametrize(
    ("name", "kernel", "says"),
    [
        ("Gemma 2", "sdpa", "no softcap"),
        ("Llama 3", "torch_flash", "runs on cuda"),
    ],
)
def test_a_kernel_that_cannot_is_refused_with_those_that_can(name, kernel, says):
    report = check_model_support(build(BY_NAME[name]))
    check_kernel(report, "auto", "float32", "cpu")
    check_kernel(report, "dense", "float32", "cpu")
    with pytest.raises(ConfigError, match=says) as caught:
        check_kernel(report, kernel, "float32", "cpu")
    assert "dense" in str(caught.value)


def test_wide_heads_are_refused_on_kernels_that_end_at_256():
    report = check_model_support(without_weights("llama", head_dim=320))
    with pytest.raises(ConfigError, match="at most 256 wide, not 320"):
        check_kernel(report, "torch_flash", "bfloat16", "cuda")
