"""TRL's trainers with HSAP train and evaluate exactly as they do with plain data parallelism on the same ranks."""

from importlib.util import find_spec

import numpy as np
import pytest

DDP = "plain DDP, same 4 ranks"
GROUP = (2, 2)

pytestmark = pytest.mark.skipif(find_spec("trl") is None or find_spec("peft") is None, reason="needs trl and peft")

PREFERRED = {"optim": "sgd", "learning_rate": 1e-2}
"""Prompts shared by both answers leave gradients of pure rounding, which Adam would blow up to whole steps."""


@pytest.fixture(scope="module")
def plain(gloo):
    """What plain DDP with stock SDPA gives; every setting is run once."""
    runs = {}

    def run(function, **settings):
        key = (function, repr(sorted(settings.items())))
        if key not in runs:
            runs[key] = gloo.run(function, None, **settings)
        return runs[key]

    return run


def limit(name, value):
    """How far a logged value may be from the one of plain DDP."""
    if name.endswith(("num_tokens", "learning_rate")):
        return 0
    if "grad_norm" in name:
        return 1e-4 * value
    return 1e-5 * max(1, abs(value)) if "logps" in name else 1e-5  # sums over the tokens of an answer


def difference(ours, stock, weights=1e-6):
    """The largest difference of two runs, after holding every logged value and the weights against their limits."""
    found = []
    for mine, theirs in zip(ours, stock, strict=True):  # by rank
        assert len(mine["logs"]) == len(theirs["logs"]) >= 6
        for got, wanted in zip(mine["logs"], theirs["logs"], strict=True):
            assert got.keys() == wanted.keys()
            for name, value in wanted.items():
                if "rewards/accuracies" in name and abs(wanted[name.replace("accuracies", "margins")]) < 1e-6:
                    continue  # policy and reference are still the same model: rounding decides which reward is larger
                found.append(abs(got[name] - value))
                assert found[-1] <= limit(name, value), (name, got[name], value)
    assert ours[0]["weights"].keys() == stock[0]["weights"].keys()
    found.append(max(np.abs(ours[0]["weights"][name] - value).max() for name, value in stock[0]["weights"].items()))
    assert found[-1] <= weights
    return max(found)


def cut_documents(ours):
    """Whether keys of cut documents really travelled."""
    return sum(of_rank["report"]["received_rows"] for of_rank in ours) > 0


PACKED = {
    "bfd": {"packing_strategy": "bfd"},
    "bfd_split": {"packing_strategy": "bfd_split", "max_length": 64},  # splits documents that bfd would shorten
    "wrapped": {"packing_strategy": "wrapped"},  # by design a row is one document
    "wrapped, padding-free": {"packing_strategy": "wrapped", "padding_free": True},
}


@pytest.mark.shows("TRL SFTTrainer, packing with every strategy, with bfd also groups 2x1 and 4x1", DDP)
@pytest.mark.parametrize(
    ("group", "strategy"), [((2, 1), "bfd"), ((4, 1), "bfd"), *((GROUP, strategy) for strategy in PACKED)], ids=str
)
def test_packed_rows_train_like_plain_ddp(gloo, plain, show, group, strategy):
    setting = {"packing": True, **PACKED[strategy]}
    ours, stock = gloo.run("trl_runs:train", group, **setting), plain("trl_runs:train", **setting)
    show(difference(ours, stock))
    assert cut_documents(ours)
    assert {"loss", "entropy", "mean_token_accuracy", "num_tokens"} <= stock[0]["logs"][0].keys()


@pytest.mark.shows("TRL's plain-DDP reference keeps packed documents apart", "each document alone in its row")
@pytest.mark.parametrize(
    "setting",
    [{"packing": True}, {"packing": True, **PACKED["bfd_split"]}, {"padding_free": True, "max_length": None}],
    ids=["bfd", "bfd_split", "padding-free"],
)
def test_the_reference_itself_keeps_documents_apart(gloo, show, setting):
    batches = gloo.run("trl_runs:apart", **setting)
    assert min(batch["documents"] for batch in batches) > 1
    assert min(abs(batch["without edges"] - batch["alone"]) for batch in batches) > 1e-3
    apart = max(abs(batch["together"] - batch["alone"]) for batch in batches)
    assert apart <= 2e-6
    show(apart)


FED = {
    "padding-free": {"padding_free": True, "max_length": None},
    "padded": {},
    "padded to a multiple of 32": {"pad_to_multiple_of": 32},
}


@pytest.mark.shows("TRL SFTTrainer, padding-free and padded batches", DDP)
@pytest.mark.parametrize("batches", FED)
def test_batches_that_are_not_packed_train_like_plain_ddp(gloo, plain, show, batches):
    ours, stock = gloo.run("trl_runs:train", GROUP, **FED[batches]), plain("trl_runs:train", **FED[batches])
    show(difference(ours, stock))
    assert cut_documents(ours)


@pytest.mark.shows("TRL SFTTrainer, gradient accumulation 3", DDP)
def test_accumulated_gradients_are_those_of_plain_ddp(gloo, plain, show):
    setting = {"packing": True, "gradient_accumulation_steps": 3}
    ours, stock = gloo.run("trl_runs:train", GROUP, **setting), plain("trl_runs:train", **setting)
    show(difference(ours, stock))
    assert cut_documents(ours)


MASKED = {
    "completion-only, packed": {"data": "completions", "packing": True},
    "assistant-only": {"data": "chats", "assistant_only_loss": True},
}


@pytest.mark.shows("TRL SFTTrainer, completion-only and assistant-only loss", DDP)
@pytest.mark.parametrize("loss", MASKED)
def test_a_loss_on_answers_only_is_that_of_plain_ddp(gloo, plain, show, loss):
    ours, stock = gloo.run("trl_runs:train", GROUP, **MASKED[loss]), plain("trl_runs:train", **MASKED[loss])
    show(difference(ours, stock))
    assert cut_documents(ours)
    everything = {name: value for name, value in MASKED[loss].items() if name != "assistant_only_loss"}
    everything |= {"completion_only_loss": False} if "completion" in loss else {}
    unmasked = plain("trl_runs:train", **everything)
    assert abs(unmasked[0]["logs"][0]["loss"] - stock[0]["logs"][0]["loss"]) > 1e-4  # the mask was in force


@pytest.mark.shows("TRL SFTTrainer with peft_config (LoRA), enable_hsap before or after it wraps the model", DDP)
@pytest.mark.parametrize("enabled", ["before", "after"])
def test_lora_trains_like_plain_ddp_wherever_hsap_is_enabled(gloo, plain, show, enabled):
    setting = {"packing": True, "lora": True}
    ours, stock = gloo.run("trl_runs:train", GROUP, enabled=enabled, **setting), plain("trl_runs:train", **setting)
    show(difference(ours, stock))
    assert cut_documents(ours)
    assert any("lora" in name for name in stock[0]["weights"])


@pytest.mark.shows("TRL evaluation with an uneven last batch, during training and after it", DDP)
@pytest.mark.parametrize("fed", [{"packing": True}, {"packing": True, "eval_packing": False}], ids=str)
def test_evaluation_with_an_uneven_last_batch_is_that_of_plain_ddp(gloo, plain, show, fed):
    setting = {"eval_strategy": "steps", "eval_steps": 2, **fed}
    ours, stock = gloo.run("trl_runs:train", GROUP, **setting), plain("trl_runs:train", **setting)
    show(difference(ours, stock))
    evaluated = [entry for entry in stock[0]["logs"] if "eval_loss" in entry]
    assert len(evaluated) == 3 + 1
    assert {"eval_loss", "eval_entropy", "eval_mean_token_accuracy"} <= evaluated[0].keys()


@pytest.mark.shows("TRL SFTTrainer, loss_type nll, dft and chunked_nll", DDP)
@pytest.mark.parametrize("loss_type", ["nll", "dft", "chunked_nll"])
def test_every_loss_type_is_that_of_plain_ddp(gloo, plain, show, loss_type):
    setting = {"packing": True, "loss_type": loss_type}
    ours, stock = gloo.run("trl_runs:train", GROUP, **setting), plain("trl_runs:train", **setting)
    show(difference(ours, stock))
    assert cut_documents(ours)
    nll = plain("trl_runs:train", packing=True, loss_type="nll")
    assert (abs(nll[0]["logs"][0]["loss"] - stock[0]["logs"][0]["loss"]) > 1) == (loss_type == "dft")


@pytest.mark.refuses("prepare_trainer: label smoothing, compute_loss_func, compute_metrics")
@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"label_smoothing_factor": 0.1}, "label_smoother"),
        ({"given": {"compute_loss_func": "sum"}}, "compute_loss_func"),
        ({"given": {"compute_metrics": "sum"}}, "compute_metrics"),
    ],
    ids=["label smoothing", "compute_loss_func", "compute_metrics"],
)
def test_what_needs_logits_is_refused_by_name_on_every_rank(gloo, show, setting, named):
    texts = gloo.run("trl_runs:refused", GROUP, packing=True, **setting)
    assert len(set(texts)) == 1
    assert texts[0].startswith(f"ConfigError: prepare_trainer: {named} would")
    show(texts[0])


@pytest.mark.shows("TRL SFTTrainer without prepare_trainer, training", DDP)
@pytest.mark.parametrize("batches", [{"packing": True}, {}], ids=["packed", "padded"])
def test_training_is_that_of_plain_ddp_without_prepare_trainer_too(gloo, plain, show, batches):
    ours = gloo.run("trl_runs:train", GROUP, prepared=False, evaluated=False, **batches)
    show(difference(ours, plain("trl_runs:train", evaluated=False, **batches)))
    assert cut_documents(ours)


@pytest.mark.shows("TRL SFTTrainer without prepare_trainer, evaluation", DDP)
@pytest.mark.parametrize("batches", [{"packing": True}, {}], ids=["packed", "padded"])
def test_evaluation_is_that_of_plain_ddp_without_prepare_trainer_too(gloo, plain, show, batches):
    setting = {"eval_strategy": "steps", "eval_steps": 2, **batches}
    ours, stock = gloo.run("trl_runs:train", GROUP, prepared=False, **setting), plain("trl_runs:train", **setting)
    show(difference(ours, stock))
    assert cut_documents(ours)


@pytest.mark.shows("TRL SFTTrainer with label smoothing, without prepare_trainer: not shared, one warning", DDP)
def test_label_smoothing_takes_the_stock_attention_and_says_so(gloo, plain, show):
    setting = {"packing": True, "label_smoothing_factor": 0.1}
    ours, stock = gloo.run("trl_runs:train", GROUP, prepared=False, **setting), plain("trl_runs:train", **setting)
    show(difference(ours, stock))
    for of_rank in ours:
        assert [text.startswith("a training forward without labels") for text in of_rank["said"]] == [True]


@pytest.mark.shows("TRL DPOTrainer, reference model given, loaded, the policy without its adapter, or precomputed", DDP)
@pytest.mark.parametrize(
    ("reference", "enabled"),
    [
        ("given", "before"),
        ("loaded", "before"),
        ("loaded", "after"),
        ("adapter", "before"),
        ("precomputed", "before"),
    ],
)
def test_preferences_train_and_evaluate_like_plain_ddp(gloo, plain, show, reference, enabled):
    ours = gloo.run("trl_runs:prefer", GROUP, reference=reference, enabled=enabled, **PREFERRED)
    stock = plain("trl_runs:prefer", reference=reference, **PREFERRED)
    show(difference(ours, stock))
    assert cut_documents(ours)
    assert {"loss", "rewards/chosen", "rewards/margins", "logps/rejected"} <= stock[0]["logs"][0].keys()


@pytest.mark.shows("TRL KTOTrainer and GRPOTrainer", DDP)
@pytest.mark.parametrize("trainer", ["judge", "reward"], ids=["kto", "grpo"])
def test_rewards_train_like_plain_ddp(gloo, plain, show, trainer):
    ours, stock = gloo.run(f"trl_runs:{trainer}", GROUP), plain(f"trl_runs:{trainer}")
    show(difference(ours, stock))
    assert cut_documents(ours)
