"""`hsap plan`, `hsap bench plan` and the calibration file, as a user types them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hsap_hf.cli import app
from hsap_hf.errors import ConfigError, PlanError

REFERENCE = str(Path(__file__).parents[1] / "planner" / "reference.json")
PACK = ["--lengths", "40000,6000,900,700,300,100"]


def shown(*words: str, columns: int = 300) -> str:
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": str(columns)})
    if result.exception is not None:
        raise result.exception
    return result.output


def test_the_table_shows_slots_bytes_time_memory_and_advice() -> None:
    text = shown("plan", *PACK, "-c", "4")
    for expected in (
        "48,000 tokens; llama-3-8b on h100",
        "12,000",
        "work imbalance 1.00",
        "MiB on average",
        "ring or all-gather 140.6, Ulysses alone 175.8",
        "of ideal), step",
        "GB a rank",
        "recommended for 4 ranks: --context-size 4 --ulysses-size 1",
        "trading heads for tokens takes",
        "planned in",
    ):
        assert expected in text


def test_json_keeps_its_format() -> None:
    found = json.loads(shown("plan", *PACK, "-c", "4", "-u", "2", "--json", "--model", "qwen3-8b"))
    assert (found["context_size"], found["ulysses_size"]) == (4, 2)
    assert sum(slot["tokens"] for slot in found["slots"]) == 48_000
    assert "model" not in found


def test_a_recipe_brings_its_model(tmp_path: Path) -> None:
    assert "the recipe's llama" in shown("plan", "recipes/quickstart_cpu.yaml", "-c", "2")


def test_models_and_machines_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ConfigError, match="not one of h100"):
        shown("plan", *PACK, "--machine", "z80")
    with pytest.raises(ConfigError, match="not one of llama-3-8b"):
        shown("plan", *PACK, "--model", "./no-such-folder")
    with pytest.raises(PlanError, match="does not divide the 32 query heads"):
        shown("plan", *PACK, "-u", "3")


def test_sizes_that_the_heads_forbid_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "qwen2", "num_attention_heads": 14, "num_key_value_heads": 2, "hidden_size": 896})
    )
    text = shown("plan", *PACK, "-c", "8", "--model", str(tmp_path))
    assert "ulysses_size 4 and 8: impossible, 14 query heads" in text
    assert "Ulysses alone impossible" in text


def test_bench_plan_sets_ours_beside_others() -> None:
    rows = json.loads(shown("bench", "plan", "--lengths", REFERENCE, "--pack", "github_64k", "-c", "8", "--json"))
    layer = {row["placement"]: row["layer_ms"] for row in rows}
    assert len(rows) == 7
    assert layer["hsap_hf"] == min(layer.values()) <= layer["hsap_hf runs 8 x 1"]
    text = shown("bench", "plan", *PACK, "-c", "2", "--copies", "2")
    assert "predicted, not measured" in text
    assert "power-of-two groups" in text


def test_a_calibrated_machine_can_be_planned_for(tmp_path: Path) -> None:
    file = tmp_path / "machine.json"
    assert "Not measured: links" in shown("doctor", "--calibrate", str(file))
    machine = json.loads(file.read_text())
    assert machine["half_length"] >= 0
    assert min(value for value in machine.values() if isinstance(value, float)) >= 0
    assert f"on {machine['name']}" in shown("plan", *PACK, "-c", "2", "--machine", str(file))
    file.write_text("{}")
    with pytest.raises(ConfigError, match="calibrate"):
        shown("plan", *PACK, "--machine", str(file))
