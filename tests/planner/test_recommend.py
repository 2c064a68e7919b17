"""The cost model knows Ulysses and nodes, and its advice follows from both."""

from dataclasses import replace

import pytest

from hsap_hf.errors import PlanError
from hsap_hf.planner.cost import (
    exchange_seconds,
    ideal_seconds,
    key_bytes,
    layer_seconds,
    memory_bytes,
    step_seconds,
    ulysses_bytes,
    ulysses_seconds,
)
from hsap_hf.planner.machine import H100, H100_SLOW
from hsap_hf.planner.model import LLAMA3_2_1B, LLAMA3_8B, MODELS, QWEN3_0_6B
from hsap_hf.planner.plan import compile_plan
from hsap_hf.planner.recommend import recommend, ulysses_sizes

from .packs import REFERENCE


def test_models_have_the_published_number_of_weights() -> None:
    billions = {"llama-3-8b": 8.03, "llama-3.2-1b": 1.236, "qwen3-0.6b": 0.596, "qwen3-8b": 8.19}
    for model in MODELS:
        assert model.weights / 1e9 == pytest.approx(billions[model.name], rel=0.005)


@pytest.mark.parametrize(
    ("ulysses_size", "heads"), [(1, 8), (2, 4), (4, 2), (8, 1), (16, 1), (32, 1)], ids="u{0}".format
)
def test_key_value_heads_are_shared_and_then_copied(ulysses_size: int, heads: int) -> None:
    assert LLAMA3_8B.kv_heads_per_rank(ulysses_size) == heads
    assert key_bytes(LLAMA3_8B, ulysses_size) == 4 * heads * 128


def test_ulysses_must_divide_the_query_heads() -> None:
    with pytest.raises(PlanError, match="does not divide the 16 query heads"):
        QWEN3_0_6B.kv_heads_per_rank(3)
    assert ulysses_sizes(12, QWEN3_0_6B, H100) == [1, 2, 4]
    assert ulysses_sizes(12, replace(QWEN3_0_6B, num_query_heads=14), H100) == [1, 2]


def test_trading_heads_moves_queries_keys_values_and_outputs() -> None:
    """2 ranks, 100 tokens of a slot: each keeps half of its 50 rows' heads and receives as much from the other."""
    heads = 32 + 32 + 8 + 8
    assert ulysses_bytes(100, 2, LLAMA3_8B) == 50 * heads // 2 * 128 * 2
    assert ulysses_seconds(100, 1, LLAMA3_8B, H100) == 0
    twice = 2 * ulysses_bytes(100, 2, LLAMA3_8B) / H100.node_bytes
    assert ulysses_seconds(100, 2, LLAMA3_8B, H100) == pytest.approx(6 * H100.message_seconds + twice)


def test_ulysses_divides_the_bytes_of_a_network_card() -> None:
    empty = 2 * H100.message_seconds
    alone = exchange_seconds(0, 10**6, LLAMA3_8B, H100) - empty
    assert exchange_seconds(0, 10**6, LLAMA3_8B, H100, 4) - empty == pytest.approx(alone / 4)
    assert alone == pytest.approx(10**6 * 2 * key_bytes(LLAMA3_8B) / H100.network_bytes)
    assert exchange_seconds(10**6, 10**6, LLAMA3_8B, H100) - empty == alone  # both kinds of link at once


def test_inside_a_node_context_alone_is_recommended_for_grouped_heads() -> None:
    for mix in ("long_sft", "github", "ccrawl", "half_half", "one_long"):
        choices = recommend(REFERENCE[f"{mix}_64k"], 8, LLAMA3_8B, H100)
        assert (choices[0].context_size, choices[0].ulysses_size) == (8, 1)
        assert sorted(choice.ulysses_size for choice in choices) == [1, 2, 4, 8]
        assert [choice.layer_seconds for choice in choices] == sorted(choice.layer_seconds for choice in choices)


def test_across_slow_nodes_ulysses_is_recommended_and_the_reason_said() -> None:
    choices = recommend(REFERENCE["github_512k"], 64, LLAMA3_8B, H100_SLOW)
    assert choices[0].ulysses_size > 1
    assert "nothing hides" in choices[0].reason
    alone = next(choice for choice in choices if choice.ulysses_size == 1)
    assert "keys between nodes" in alone.reason
    assert choices[0].layer_seconds < 0.8 * alone.layer_seconds


@pytest.mark.parametrize("mix", ["long_sft", "github", "ccrawl", "half_half"])
def test_at_1024_gpus_a_layer_is_near_ideal(mix: str) -> None:
    """8k tokens a GPU, nodes of 8, 50 GB/s between them; 8 packs of 1M tokens joined."""
    lengths = REFERENCE[f"{mix}_1024k"] * 8
    best = recommend(lengths, 1_024, LLAMA3_8B, H100)[0]
    assert (best.context_size, best.ulysses_size) == (128, 8)
    load = compile_plan(lengths, 128, ranks_per_node=1).load(1)
    ideal = ideal_seconds(load.tokens, load.work, LLAMA3_8B, H100) / 8
    assert ideal / best.layer_seconds >= 0.91
    assert ideal / layer_seconds(load.all_hides(), LLAMA3_8B, H100, 8) >= 0.92  # what the placement leaves room for


def test_where_little_attention_hides_keys_the_advice_is_to_send_fewer_of_them() -> None:
    """Of a long document on many slots a slot computes next to nothing while its keys are on their way."""
    choices = {choice.ulysses_size: choice for choice in recommend(REFERENCE["github_512k"], 64, LLAMA3_8B, H100)}
    assert list(choices) == [8, 4, 2, 1]
    assert "of that beside no attention" in choices[1].reason
    assert choices[8].layer_seconds < 0.9 * choices[1].layer_seconds


def test_a_step_is_its_layers_and_the_output_and_memory_falls_with_ranks() -> None:
    few, many = (compile_plan(REFERENCE["long_sft_64k"], slots).load() for slots in (4, 8))
    layers = LLAMA3_2_1B.num_layers * layer_seconds(few, LLAMA3_2_1B, H100)
    assert layers < step_seconds(few, LLAMA3_2_1B, H100) < 2 * layers
    assert memory_bytes(many, LLAMA3_2_1B, 8) < 0.6 * memory_bytes(few, LLAMA3_2_1B, 4)
