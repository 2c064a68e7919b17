"""What users change on a model is exact, refused, or said."""

from types import MethodType

import pytest
import torch
from own_runs import focal_loss
from small import small_llama
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from hsap_hf.comm.axis import explained
from hsap_hf.errors import UnsupportedModelError
from hsap_hf.hf import check_model_support


@pytest.mark.parametrize("kind", ["packed", "left"])
@pytest.mark.parametrize("group", [(2, 1), (2, 2)])
def test_a_loss_of_ones_own_trains_and_evaluates(gloo, group, kind):
    for ours, stock in gloo.run("own_runs:own_loss", group, kind):
        assert ours == pytest.approx(stock, abs=1e-5)


@pytest.mark.parametrize("kind", ["packed", "right"])
@pytest.mark.parametrize("group", [(4, 1), (1, 2)])
def test_brought_logits_carry_gradients(gloo, group, kind):
    assert max(gloo.run("own_runs:loss_of_logits", group, kind)) < 1e-4


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("prompt", "adapter 'default' (PromptTuningConfig) puts virtual tokens before every row"),
        ("router", "output_router_logits adds a loss that is not a sum over tokens"),
        ("alora", "adapter 'default' is an activated LoRA"),
        ("late loss", "model.loss_function was set after enable_hsap"),
        ("noise", "neftune_noise_alpha: the noise depends on the length of a row"),
    ],
)
def test_what_hsap_does_not_follow_is_refused_in_words(gloo, what, text):
    assert all(text in said for said in gloo.run("own_runs:refused", what))


@pytest.mark.parametrize("family", ["full", "window"])
def test_parts_of_a_model_and_models_of_its_configuration_stay_stock(gloo, family):
    for differences, batches in gloo.run("own_runs:parts_called", family):
        assert differences == [0.0] * 7
        assert batches == 2


def test_a_forward_that_goes_past_the_call_is_stock_and_said(gloo):
    for ours, stock, batches, said in gloo.run("own_runs:past_the_hooks"):
        assert ours == stock
        assert batches == 0
        assert any("goes past the call of the whole model" in text for text in said)


def test_a_model_inside_ddp_is_enabled_like_a_bare_one(gloo):
    for wrapped, bare in gloo.run("own_runs:loss_through_ddp"):
        assert wrapped == bare > 0


def test_evaluation_without_logits_is_said_once_in_a_group(gloo):
    said = gloo.run("own_runs:evaluations", "none")
    assert [len(texts) for texts in said] == [1, 0, 1, 0]
    assert "return_logits='brought'" in said[0][0]
    assert not any(gloo.run("own_runs:evaluations", "brought"))


def test_a_loss_that_misses_logits_learns_which_setting_gives_them(gloo):
    for texts in gloo.run("own_runs:loss_that_reads_logits", "none"):
        assert len(texts) == 1
        assert "return_logits='brought'" in texts[0]
    assert not any(gloo.run("own_runs:loss_that_reads_logits", "brought"))


def shifts_itself(logits, labels, vocab_size, num_items_in_batch=None, **kwargs):
    logits, labels = logits[:, :-1].reshape(-1, vocab_size), labels[:, 1:].reshape(-1)
    return F.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch


def takes_the_mean(logits, labels, vocab_size, shift_labels=None, **kwargs):
    labels = F.pad(labels, (0, 1), value=-100)[:, 1:] if shift_labels is None else shift_labels
    return F.cross_entropy(logits.view(-1, vocab_size), labels.reshape(-1))


@pytest.mark.parametrize("loss", [shifts_itself, takes_the_mean])
def test_a_loss_that_ranks_cannot_share_is_refused(loss):
    model = small_llama()
    model.loss_function = loss
    with pytest.raises(UnsupportedModelError, match="its loss is not a sum over tokens"):
        check_model_support(model)
    model.loss_function = focal_loss
    check_model_support(model)


def test_attention_of_ones_own_is_refused_not_replaced():
    def sharp(module, query, *others, **options):
        return sdpa_attention_forward(module, 3 * query, *others, **options)

    AttentionInterface.register("sharp", sharp)
    model = small_llama()
    model.set_attn_implementation("sharp")
    with pytest.raises(UnsupportedModelError, match=r"its attention is 'sharp' of \S*test_own_functions"):
        check_model_support(model)
    for stock in ("sdpa", "eager", "flex_attention"):
        model.set_attn_implementation(stock)
        assert check_model_support(model).note is None


def test_a_forward_replaced_on_an_instance_is_said():
    model = small_llama()
    layer = model.model.layers[1].self_attn
    stock = type(layer).forward
    layer.forward = MethodType(stock, layer)
    assert check_model_support(model).note is None
    layer.forward = MethodType(lambda self, hidden_states, **options: stock(self, hidden_states, **options), layer)
    assert check_model_support(model).note.startswith("LlamaAttention: the forward was replaced on the instance")


def test_a_rank_without_memory_blames_no_other_rank():
    with pytest.raises(torch.AcceleratorError, match="device-side assert"), explained("exchange", 1.0):
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")
    with pytest.raises(torch.OutOfMemoryError, match="mine"), explained("exchange", 1.0):
        raise torch.OutOfMemoryError("mine")
