"""`hsap bench train` and `hsap bench longest`: every way trains the same losses, and what is counted is right."""

import json
import math
import re
from importlib import import_module
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from launched import HSAP, launch
from small import small_llama
from tiny_recipe import write_recipe
from torch.utils.flop_counter import FlopCounterMode

from hsap_hf.cli.bench import steps
from hsap_hf.cli.bench.drawn_packs import DrawnPacks
from hsap_hf.cli.bench.job import answer, out_of_memory
from hsap_hf.cli.bench.longest import find_longest
from hsap_hf.cli.bench.train import find_problems
from hsap_hf.cli.shapes import shape_of
from hsap_hf.comm.loopback import lone_mesh
from hsap_hf.config import HsapPlugin
from hsap_hf.errors import ConfigError, PackError, PackTooLargeError, RankMismatchError
from hsap_hf.hf import HsapHandle, hooks
from hsap_hf.planner import compile_plan

SPLITS = [(1, 1), (4, 1), (2, 2), (1, 4)]
LENGTHS = [150, 40, 9, 9, 1, 30]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module", params=[None, LENGTHS], ids=["recipe", "lengths"])
def rows(gloo, recipe, request):
    """What four ranks measured, by split."""
    asked = {"recipe_file": str(recipe), "overrides": [], "lengths": request.param, "steps": 2, "warmup": 2}
    run = "hsap_hf.cli.bench.steps:measure"
    return {split: gloo.run(run, {**asked, "split": split}) for split in SPLITS}


def test_all_ways_train_the_losses_of_data_parallelism(rows):
    expected = rows[1, 1][0]["losses"]
    assert len(expected) == 4
    assert len(set(expected)) == 4, "it trains"
    for found in rows.values():
        assert found[0]["losses"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("fsdp", "fits"), [(True, True), (True, False), (False, True)])
def test_weights_are_drawn_on_the_device_and_for_fsdp_on_the_host_where_they_do_not_fit(monkeypatch, fsdp, fits):
    device, asked = torch.device("meta"), []

    def load(section, seed, device=None):
        asked.append(device)
        if device is not None and not fits:
            raise torch.OutOfMemoryError
        return torch.nn.Linear(1, 1)

    monkeypatch.setattr(steps, "load_model", load)
    arguments = SimpleNamespace(fsdp=fsdp, seed=0, device=device)
    assert isinstance(steps.draw_model(SimpleNamespace(model=None), arguments), torch.nn.Linear)
    assert asked == ([device] if fits else [device, None])


def test_what_is_measured_is_consistent(rows):
    for split, (row, *others) in rows.items():
        assert all(other["step_ms"] == row["step_ms"] for other in others), "the slowest rank counts everywhere"
        assert 0 < row["tables_ms"] < row["step_ms"]
        assert 0 < row["deal_ms"] < row["step_ms"]
        assert (row["exposed_ms"] > 0) == (split != (1, 1)), "only data parallelism waits for nobody's keys"
        assert row["tokens"] == rows[1, 1][0]["tokens"] > 0
        assert row["tokens_per_second"] * row["step_ms"] / 1e3 == pytest.approx(row["tokens"])


def test_every_timed_deal_is_planned_anew(monkeypatch):
    planned, mesh = [], lone_mesh()
    monkeypatch.setattr(
        hooks, "compile_plan", lambda *args, **words: planned.append(args) or compile_plan(*args, **words)
    )
    with HsapHandle(small_llama(), HsapPlugin(context_size=1), mesh) as handle:
        for _ in range(2):
            steps._deal_ms(handle, DrawnPacks([LENGTHS] * 3, num_parts=1, vocab_size=50), mesh, torch.device("cpu"))
    assert len(planned) == 6


def test_drawn_packs_hold_their_documents_in_another_order_each():
    packs = DrawnPacks([LENGTHS] * 3, num_parts=2, vocab_size=50)
    parts = [packs[item] for item in range(6)]
    assert len({packs.pack(index) for index in range(3)}) == 3
    for index in range(3):
        positions = [p for part in parts[2 * index : 2 * index + 2] for p in part["position_ids"]]
        edges = [row for row, position in enumerate(positions) if position == 0] + [len(positions)]
        assert sorted(b - a for a, b in pairwise(edges)) == sorted(LENGTHS)
    for part in parts:
        rows = zip(part["input_ids"], part["labels"], part["position_ids"], strict=True)
        assert all(label == (-100 if position == 0 else token) for token, label, position in rows)


@pytest.mark.parametrize("tokens", [1, 7, 64])
def test_model_flops_are_what_torch_counts(tokens):
    """torch counts the eager attention's whole square; ours is the causal half with the diagonal."""
    model = small_llama(attn_implementation="eager")
    shape, ids = shape_of(model.config, "small"), torch.arange(tokens)[None] % model.config.vocab_size
    with FlopCounterMode(display=False) as counted:
        model(ids, labels=ids, use_cache=False).loss.backward()
    future = tokens * (tokens - 1) // 2
    masked = 12 * shape.num_layers * shape.num_query_heads * shape.head_dim * future
    assert counted.get_total_flops() == shape.train_flops([tokens]) + masked


@given(
    limit=st.integers(10, 5_000),
    stop=st.integers(10, 5_000),
    precision=st.floats(0.01, 0.9),
    slope=st.sampled_from([math.nan, 1e-4, 1e-2]),
    share=st.sampled_from(
        [
            lambda tokens, limit: math.nan,
            lambda tokens, limit: 0.3 + 0.7 * tokens / limit,
            lambda tokens, limit: 0.3 + 0.5 * (tokens / limit) ** 2,
            lambda tokens, limit: 0.9,
        ]
    ),
)
def test_the_longest_is_found_within_the_precision(limit, stop, precision, slope, share):
    """Whatever is known of memory: nothing, a line, a curve that ends before, or a constant."""
    tried = []

    def use(tokens):
        tried.append(tokens)
        return share(tokens, limit) if tokens <= limit else None

    found = find_longest(use, 10, stop, precision, slope)
    assert found in tried
    assert found <= min(limit, stop)
    assert min(limit, stop) - found <= max(1, precision * found)
    assert len(tried) == len(set(tried)) <= 30
    assert max(tried) <= stop


def test_two_lengths_on_a_line_tell_where_memory_ends():
    tried = []
    find_longest(lambda n: tried.append(n) or (0.25 + n / 400_000 if n <= 300_000 else None), 16_384, 10**7, 0.02)
    assert len(tried) == 4


def test_one_length_and_a_known_slope_are_enough():
    tried = []
    limit = 611_000
    use = lambda n: tried.append(n) or (0.25 + 0.75 * n / limit if n <= limit else None)  # noqa: E731
    assert find_longest(use, 550_000, 10**7, 0.02, slope=0.8 / limit) > 0.98 * limit
    assert len(tried) <= 4


def test_nothing_is_found_where_the_first_does_not_fit():
    assert find_longest(lambda tokens: None, 10, 100, 0.1) is None


def test_ways_are_held_against_data_parallelism(gloo, hsap, monkeypatch, recipe):
    """The whole command, but that its ranks are there already; 5 query heads leave no Ulysses of 4 to compare with."""

    def ask(program, request, ranks, environment):
        assert (ranks, environment) == (4, {})
        return 0, gloo.run(f"{program}:measure", json.loads(json.dumps(request)))[0]

    monkeypatch.setattr(import_module("hsap_hf.cli.bench.train"), "ask", ask)  # the package has a function `train`
    heads = [f"model.config.{name}=5" for name in ("num_attention_heads", "num_key_value_heads")]
    words = [recipe, *heads, "model.config.hidden_size=40", "--steps", 1, "--nproc", 4, "--json"]
    code, out, err = hsap("bench", "train", *words)
    assert code == 0, err
    baseline, row = json.loads(out)
    assert [baseline["way"], row["way"], row["split"]] == ["data parallel", "hsap", "4x1"]
    assert row["loss_difference"] < 1e-5
    assert [row["kernel"], row["link"]] == [baseline["kernel"], baseline["link"]] == ["sdpa", "gloo"]
    assert row["speedup"] == pytest.approx(baseline["step_ms"] / row["step_ms"])
    figures = rf"step {row['step_ms']:,.1f}, .*, deal {row['deal_ms']:,.2f}, tables {row['tables_ms']:,.2f}"
    assert re.search(rf", hsap 4x1: {figures}$", err, re.MULTILINE), err  # whoever stops it keeps them


def test_the_longest_document_that_fits(recipe, tmp_path):
    """The whole command: ranks start, answer, and end with a code that is understood."""
    search = ["--nproc", 2, "--start", 64, "--stop", 100, "--precision", 0.57, "--json"]
    words = [recipe, "hsap.max_tokens_per_rank=40", *search]
    ended = launch(HSAP, "bench", "longest", *words, cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert ended.code == 0, ended.err
    (row,) = json.loads(ended.out)
    assert (row["tokens"], row["tried"]) == (64, [64, 100])
    assert "max_tokens_per_rank is 40" in ended.err


def measured(gloo, recipe, *overrides):
    request = {"recipe_file": str(recipe), "overrides": overrides, "lengths": LENGTHS, "split": (4, 1)}
    request |= {"steps": 1, "warmup": 1}
    return gloo.run("hsap_hf.cli.bench.steps:measure", request)[0]


def test_a_recipe_with_adapters_is_measured_without_counting_flop(gloo, recipe):
    row = measured(gloo, recipe, "model.lora={r: 4, target_modules: all-linear}")
    assert row["step_ms"] > 0
    assert row["tflops_per_rank"] is None


def test_a_loss_that_is_no_number_is_seen(gloo, recipe):
    losses = measured(gloo, recipe, "training.learning_rate=1e30", "training.logging_strategy='no'")["losses"]
    assert len(losses) == 2
    assert math.isfinite(losses[0])
    assert not math.isfinite(losses[1])


@pytest.mark.parametrize(
    ("note", "loss_difference", "problems"),
    [
        (None, 1e-6, 0),
        (None, 1e-2, 1),
        (None, float("nan"), 1),
        ("too large", None, 0),
        ("ended with code -9", None, 1),
    ],
)
def test_another_loss_and_a_failure_are_problems(note, loss_difference, problems):
    row = {"pack": "p", "way": "hsap", "split": "2x1", "dtype": "float32", "loss_difference": loss_difference}
    assert len(find_problems([{**row, "note": note}])) == problems


def test_memory_that_ends_is_recognised_however_it_is_said():
    wrapped = RankMismatchError("another rank left")
    wrapped.__cause__ = RuntimeError("NCCL error: Failed to CUDA calloc async 8 bytes")
    assert out_of_memory(wrapped)
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."))
    assert not out_of_memory(RuntimeError("shape mismatch"))
    assert not out_of_memory(None)


@pytest.mark.parametrize(
    ("error", "code"),
    [(PackTooLargeError("deals 50"), 3), (PackError("holes"), 1), (ConfigError("no such file"), 2)],
)
def test_an_error_of_ours_has_its_exit_code(tmp_path, capsys, error, code):
    def fail(request):
        raise error

    (tmp_path / "request.json").write_text("{}")
    assert answer([tmp_path / "request.json", tmp_path / "answer.json"], fail) == code
    assert str(error) in capsys.readouterr().err
    assert not (tmp_path / "answer.json").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--model", "llama-9"], "llama-9: not one of llama-3-8b"),
        (["--pack", "one"], "give both"),
        (["--split", "3x1"], "must be the 2 ranks"),
        (["--lengths", "100,-50"], "-50 tokens"),
        (["training.max_stepz=3"], "max_stepz"),
    ],
)
def test_what_cannot_run_is_refused_before_any_rank_starts(hsap, words, text):
    code, _, err = hsap("bench", "train", *words)
    assert code == 2
    assert text in err
