"""What other placements give, what time is predicted for them, and that ours is ahead where it was promised."""

import pytest

from hsap_hf.planner.cost import (
    Load,
    attention_seconds,
    exchange_seconds,
    layer_seconds,
    linear_seconds,
)
from hsap_hf.planner.documents import pairs
from hsap_hf.planner.machine import H100, H100_FLASH2, MACHINES
from hsap_hf.planner.model import LLAMA3_8B
from hsap_hf.planner.plan import compile_plan
from hsap_hf.planner.report import imbalance
from hsap_hf.planner.simulate import simulate
from hsap_hf.planner.stand_ins import STAND_INS, equal_chunks, power_of_two_groups, zigzag_ring
from hsap_hf.planner.traffic import Traffic

from .packs import REFERENCE


@pytest.mark.parametrize(("name", "place"), STAND_INS)
@pytest.mark.parametrize("context_size", [1, 2, 7, 32])
def test_stand_ins_deal_every_row_once(name: str, place: object, context_size: int) -> None:
    for lengths in ([5], [1, 2, 3], REFERENCE["long_sft_64k"], REFERENCE["half_half_16k"]):
        load = place(lengths, context_size)
        assert sum(load.tokens) == sum(lengths)
        assert sum(load.work) == sum(pairs(0, length) for length in lengths)
        assert sum(load.traffic.fetched) == sum(load.traffic.sent)
        assert len(load.tokens) == context_size
        assert min(load.traffic.fetched) >= 0


def test_a_ring_moves_every_key_to_every_slot() -> None:
    load = zigzag_ring([4_096] * 8, 8)
    assert set(load.traffic.fetched) == {7 * 4_096}


def test_documents_that_fit_a_slot_move_nothing_in_power_of_two_groups() -> None:
    assert set(power_of_two_groups([1_000] * 64, 8).traffic.fetched) == {0}


@pytest.mark.parametrize("mix", ["long_sft", "github"])
def test_ours_fetches_at_most_six_tenths_of_equal_chunks(mix: str) -> None:
    """ccrawl is left out: there no placement with level work can (test_fewest_keys.py)."""
    lengths = REFERENCE[f"{mix}_512k"]
    ours, theirs = compile_plan(lengths, 32).load(), equal_chunks(lengths, 32)
    assert sum(ours.traffic.fetched) <= 0.6 * sum(theirs.traffic.fetched)
    assert imbalance(ours.work) <= 1.01


@pytest.mark.parametrize("ranks_per_node", [None, 8, 1])
def test_no_stand_in_is_predicted_to_be_faster(ranks_per_node: int | None) -> None:
    packs = {name: lengths for name, lengths in REFERENCE.items() if name.endswith("_512k")}
    found = simulate(packs, [8, 32], LLAMA3_8B, H100, ranks_per_node)
    ours = {(one.pack, one.context_size): one for one in found if one.placement == "hsap_hf"}
    for one in found:
        assert ours[one.pack, one.context_size].layer_ms <= 1.02 * one.layer_ms, one


def test_predicted_kernel_speeds_are_those_measured() -> None:
    """Measured on an H100: forward and backward of one long document of 128k tokens, ideal on two GPUs, 32/8 heads."""
    for machine, measured in ((H100_FLASH2, 0.7515), (H100, 0.3906)):
        seconds = attention_seconds(65_536, pairs(0, 131_072) // 2, LLAMA3_8B, machine)
        assert seconds == pytest.approx(measured, rel=0.1)


MEASURED = {
    ("h200", "one_long_64k"): 26.60 + 72.72,
    ("h200", "all_short_64k"): 1.01 + 2.71,
    ("h200", "half_half_64k"): 7.23 + 20.37,
    ("h200", "github_128k"): 16.70 + 45.11,
    ("h100-flash2", "one_long_128k"): 210.07 + 540.73,
    ("h100-flash2", "all_short_128k"): 3.22 + 9.40,
    ("h100-flash2", "github_64k"): 11.83 + 32.87,
}
"""Half of the time of a pack's attention on one H200, in ms (docs/performance.md)."""


@pytest.mark.parametrize(("machine", "pack"), MEASURED)
def test_predicted_attention_is_within_5_percent_of_measured(machine: str, pack: str) -> None:
    lengths, speeds = REFERENCE[pack], next(one for one in MACHINES if one.name == machine)
    work = sum(pairs(0, length) for length in lengths)
    milliseconds = 1e3 * attention_seconds(sum(lengths) / 2, work / 2, LLAMA3_8B, speeds)
    assert milliseconds == pytest.approx(MEASURED[machine, pack], rel=0.05)


def test_a_layer_takes_the_time_of_its_slowest_slot() -> None:
    """In the second slot nothing hides its keys, unless all attention did."""
    load = Load((100, 100), (10**6, 3 * 10**6), (10**6, 0), Traffic([0, 5], [5, 0], [0, 0], [0, 0]))
    linear = linear_seconds(100, LLAMA3_8B, H100)
    attention = attention_seconds(100, 3 * 10**6, LLAMA3_8B, H100)
    exchange = exchange_seconds(5, 0, LLAMA3_8B, H100)
    assert layer_seconds(load, LLAMA3_8B, H100) == pytest.approx(linear + attention + exchange)
    assert layer_seconds(load.all_hides(), LLAMA3_8B, H100) < linear + attention + exchange


def test_nothing_to_exchange_takes_no_time() -> None:
    assert all(exchange_seconds(0, 0, LLAMA3_8B, machine) == 0.0 for machine in MACHINES)
    assert imbalance([]) == imbalance([0, 0]) == 1.0
