"""What cannot be composed with HSAP is refused by name on every rank, before anything is trained."""

import pytest

JOBS = {
    "DeepSpeed": "DeepSpeed runs forward, backward and the gradient sums in an engine of its own",
    "Megatron-LM": "Megatron-LM replaces the model and its loss",
    "tensor parallelism (accelerate)": "parallelism_config.tp_size=2: ranks would bring one batch several times",
    "context parallelism (accelerate)": "parallelism_config.cp_size=2: it cuts the rows that HSAP deals",
    "sequence parallelism (accelerate)": "parallelism_config.sp_size=2: it cuts the same rows",
    "FSDP version 1": "FSDP version 1 copies what travels with a batch",
    "tensor parallelism (tp_plan)": "the model was loaded with tensor parallelism (tp_size=2)",
    "expert parallelism": "the model was loaded with expert parallelism (ep_size=2)",
    "pipeline parallelism": "the model was loaded with pipeline parallelism (pp_size=2)",
    "device_map over several devices": "device_map spreads the model over 0, 1",
}


@pytest.mark.parametrize(
    ("kind", "text"),
    [pytest.param(kind, text, marks=pytest.mark.refuses(kind), id=kind) for kind, text in JOBS.items()],
)
def test_another_strategy_is_refused_when_hsap_is_enabled(gloo, show, kind, text):
    for words in gloo.run("strategy_runs:refusal", kind, False):
        assert text in words
    show(words)


@pytest.mark.parametrize("kind", ["DeepSpeed", "tensor parallelism (accelerate)"])
def test_a_strategy_that_comes_later_is_refused_by_the_first_batch(gloo, kind):
    for words in gloo.run("strategy_runs:refusal", kind, True):
        assert JOBS[kind] in words
