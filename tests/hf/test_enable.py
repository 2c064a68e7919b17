"""enable_hsap is one value that can be undone: nothing is left behind, and nothing else is touched."""

import subprocess
import sys

import pytest
from small import small_llama

from hsap_hf import HsapPlugin, disable_hsap, enable_hsap
from hsap_hf.errors import ConfigError
from hsap_hf.planner import compile_plan

GROUPS = [(2, 1), (2, 2)]


@pytest.mark.parametrize("group", GROUPS)
def test_every_way_to_end_it_restores_every_attribute(gloo, group):
    for result in gloo.run("enable_runs:restored", group):
        assert len(result) == 7
        assert all(result.values()), result


def test_a_whole_model_is_saved_once_hsap_is_disabled(gloo):
    for refusal in gloo.run("enable_runs:pickled", (2, 1)):
        assert "call disable_hsap(model) first" in refusal


@pytest.mark.parametrize(
    ("group", "changes", "error", "text"),
    [
        ((3, 1), {}, "ConfigError", "context_size (3) x ulysses_size (1) = 3 does not divide the 4 launched processes"),
        ((1, 4), {"num_attention_heads": 2}, "ConfigError", "does not divide the model's 2 query heads. Use one of"),
        ((2, 1), {"attention_dropout": 0.1}, "UnsupportedModelError", "attention_dropout=0.1 is drawn per rank"),
        (
            (2, 1),
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            "UnsupportedModelError",
            "rope_type 'dynamic' depends on the longest position",
        ),
    ],
)
def test_a_refusal_names_the_cause_on_every_rank_and_changes_nothing(gloo, group, changes, error, text):
    for kind, message, unchanged in gloo.run("enable_runs:refused", group, changes):
        assert kind == error
        assert text in message
        assert unchanged


@pytest.mark.parametrize(
    ("kind", "error", "text"),
    [
        ("settings", "RankMismatchError", "ranks enable HSAP with different settings"),
        ("model", "UnsupportedModelError", "attention_dropout=0.1 is drawn per rank"),
        ("absent", "CollectiveTimeoutError", "3 of 4 ranks called enable_hsap within 1 s"),
    ],
)
def test_what_is_wrong_on_one_rank_is_refused_on_all_before_groups_are_built(gloo, kind, error, text):
    heard = gloo.run("enable_runs:disagreeing", kind)
    assert all(unchanged for _, _, unchanged in heard)
    assert {name for name, _, _ in heard} == {error}
    assert all(text in words for _, words, _ in heard)


def test_enabling_twice_is_an_error_and_enabling_again_after_disabling_is_not(gloo):
    for kind, message, unchanged in gloo.run("enable_runs:twice", (2, 1)):
        assert kind == "ConfigError"
        assert "enabled on this model already. Call disable_hsap(model) first" in message
        assert unchanged


def test_a_second_model_with_the_same_config_object_stays_stock(gloo):
    for names, same, batches, finite, one_config in gloo.run("enable_runs:shared_config", (4, 1)):
        assert names == ("hsap_over_sdpa", "sdpa")
        assert same
        assert batches == 1  # the second model's call was not dealt
        assert finite
        assert one_config  # the first model has its own object back


@pytest.mark.parametrize("first", ["peft", "hsap"])
@pytest.mark.parametrize("group", GROUPS)
def test_adapters_train_the_same_whichever_comes_first(gloo, group, first):
    for (ours, stock), difference, batches, undone in gloo.run("enable_runs:lora", group, first):
        assert ours == pytest.approx(stock, abs=1e-5)
        assert difference <= 1e-5
        assert batches == 1
        assert undone


def test_the_handle_tells_the_plan_and_counts_at_the_collectives(gloo):
    lengths = [50, 1, 2, 3, 4], [10, 10] * 4
    plans = [compile_plan(of_batch, 4) for of_batch in lengths]
    for rank, (before, last, report, group_size) in enumerate(gloo.run("enable_runs:reports", (4, 1))):
        assert before is None
        assert last == [lengths[1], 4]
        assert report["batches"] == 2
        assert report["dealt_tokens"] == sum(plan.tokens(rank) for plan in plans)
        assert report["received_bytes"] == report["received_rows"] * 2 * 16 * 4  # 2 key-value heads, 8 + 8 floats
        assert group_size == 4


def test_a_group_of_one_keeps_stock_attention_bit_for_bit():
    model = small_llama()
    from forward_runs import packed

    batch = packed([9, 5, 1])
    stock = {name: value for name, value in batch.items() if name != "cu_seqlens"}
    want = model(**stock, use_cache=False)
    with enable_hsap(model, HsapPlugin(context_size=1)) as handle:
        got = model(**batch)
        assert handle.mesh is None
        assert handle.group_size == 1
        assert model.config._attn_implementation == "sdpa"
    assert got.loss.equal(want.loss)
    assert got.logits.equal(want.logits)


def test_disabling_a_model_that_was_never_enabled_changes_nothing():
    model = small_llama()
    before = dict(vars(model))
    disable_hsap(model)
    assert vars(model) == before


def test_what_is_no_plugin_is_refused_by_its_type():
    with pytest.raises(ConfigError, match="plugin is a dict, needs HsapPlugin"):
        enable_hsap(small_llama(), {"context_size": 2})


def test_without_launched_ranks_a_larger_group_is_refused():
    with pytest.raises(ConfigError, match=r"context_size \(2\) .* = 2 does not divide the 1 launched"):
        enable_hsap(small_llama(), HsapPlugin(context_size=2))


def test_ranks_that_are_not_connected_yet_are_refused_with_the_way_to_connect_them(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match=r"4 ranks were launched, but torch.distributed is not running .*Training"):
        enable_hsap(small_llama(), HsapPlugin(context_size="auto"))


def test_without_a_plugin_the_environment_is_read(monkeypatch, tmp_path):
    (tmp_path / "hsap.yaml").write_text("accelerate_key: 1\nhsap:\n  context_size: 1\n  timeout_seconds: 7\n")
    monkeypatch.setenv("HSAP_CONFIG_FILE", str(tmp_path / "hsap.yaml"))
    monkeypatch.setenv("HSAP_DEBUG", "true")
    with enable_hsap(small_llama()) as handle:
        assert handle.plugin == HsapPlugin(context_size=1, timeout_seconds=7, debug=True)


def test_all_ranks_take_the_same_slots_for_neighbours(gloo):
    """The number of messages depends on them, so one rank's own environment must not decide."""
    seen = [gloo.run("enable_runs:near_slots", (4, 1), blind) for blind in (None, 2)]
    assert seen[1] == [1] * 4
    assert len(set(seen[0])) == 1
    assert seen[0] != seen[1]


@pytest.mark.parametrize("count", [0, 17, True, "two"])
def test_numbers_of_messages_that_cannot_be_are_refused(count):
    with pytest.raises(ConfigError, match=r"hsap.exchange_messages: got .*, needs .*\"auto\"|'auto'"):
        HsapPlugin(exchange_messages=count)


def test_a_misspelt_name_in_the_environment_is_refused(monkeypatch):
    monkeypatch.setenv("HSAP_CONTEXTSIZE", "2")
    with pytest.raises(ConfigError, match="'HSAP_CONTEXTSIZE'; did you mean 'HSAP_CONTEXT_SIZE'"):
        enable_hsap(small_llama())


def test_importing_the_package_imports_no_framework_and_reads_no_environment():
    script = (
        "import os, sys\n"
        "class Watched(dict):\n"
        "    def __getitem__(self, key): seen.append(key); return dict.__getitem__(self, key)\n"
        "    def get(self, key, default=None): seen.append(key); return dict.get(self, key, default)\n"
        "    def __contains__(self, key): seen.append(key); return dict.__contains__(self, key)\n"
        "seen = []\n"
        "os.environ = Watched(os.environ)\n"
        "import hsap_hf\n"
        "print([n for n in ('torch', 'transformers', 'flash_attn', 'accelerate') if n in sys.modules])\n"
        "print([key for key in seen if 'HSAP' in str(key)])\n"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines() == ["[]", "[]"]
