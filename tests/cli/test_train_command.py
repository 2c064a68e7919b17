"""Launchers start what they are asked for, and refuse what cannot work before any rank starts."""

import re
from pathlib import Path

import pytest
from launched import ACCELERATE, HSAP, PYTHON, REPOSITORY, free_port, launch
from tiny_recipe import write_recipe

from hsap_hf.train.recipe import load_recipe

SCRIPT = Path(__file__).with_name("enabled_script.py")
ACCELERATE_FILES = REPOSITORY / "recipes" / "accelerate"


def ranks_said(ended):
    """Each rank's words, in order; ranks that share a pipe may end two lines at once."""
    return sorted(re.findall(r"RANK \d of \d: \d slots, \d", ended.out))


def test_accelerate_launch_runs_a_script_with_the_environments_configuration(tmp_path):
    (tmp_path / "hsap.yaml").write_text("context_size: 2\n")
    words = ["--config_file", ACCELERATE_FILES / "cpu_2.yaml", "--main_process_port", free_port(), SCRIPT]
    ended = launch(ACCELERATE, "launch", *words, HSAP_CONFIG_FILE=tmp_path / "hsap.yaml")
    assert ended.code == 0, ended.err[-3000:]
    assert ranks_said(ended) == [f"RANK {r} of 2: 2 slots, 2" for r in range(2)]


def test_hsap_launch_runs_a_script_from_one_file(tmp_path):
    words = ["--config_file", ACCELERATE_FILES / "hsap_cpu_2.yaml", "--main_process_port", free_port(), SCRIPT]
    ended = launch(HSAP, "launch", *words)
    assert ended.code == 0, ended.err[-3000:]
    assert ranks_said(ended) == [f"RANK {r} of 2: 2 slots, 2" for r in range(2)]


def test_a_wrong_recipe_is_refused_before_any_rank_starts(tmp_path):
    ended = launch(PYTHON, "-m", "hsap_hf", "train", write_recipe(tmp_path), "training.max_step=2", "packing.tokens=9")
    assert ended.code == 2
    assert "unknown key 'max_step'; did you mean 'max_steps'?" in ended.err
    assert "unknown key 'tokens'; did you mean 'pack_tokens'?" in ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "out").exists()


def test_ranks_that_do_not_fill_groups_are_refused_before_any_rank_starts(tmp_path, hsap):
    code, out, err = hsap("train", write_recipe(tmp_path), "--nproc", 3, "hsap.context_size=2")
    assert (code, out) == (2, "")
    assert "= 2 does not divide the 3 launched processes. Launch a multiple of 2" in err


def test_where_results_go_is_made_before_any_rank_starts(tmp_path, hsap, monkeypatch):
    seen = []
    monkeypatch.setattr("hsap_hf.train.launch.launch_ranks", lambda *_: seen.append((tmp_path / "out").is_dir()) or 0)
    recipe = write_recipe(tmp_path)
    (tmp_path / "file").touch()
    code, _, err = hsap("train", recipe, "--nproc", 2, f"training.output_dir={tmp_path / 'file' / 'runs'}")
    assert (code, seen) == (2, [])
    assert f"training.output_dir: {tmp_path}/file/runs cannot be made (Not a directory). Name another." in err
    assert hsap("train", recipe, "--nproc", 2)[0] == 0
    assert seen == [True]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hsap("train", recipe, "--nproc", 2, "training.output_dir=~/mine")[0] == 0
    assert (tmp_path / "mine").is_dir()


def test_a_folder_that_is_not_there_is_no_model_of_the_hub(hsap):
    code, _, err = hsap("verify", "models/of/mine", "--nproc", 2)
    assert code == 2
    assert "models/of/mine: no such folder." in err


@pytest.mark.parametrize(("gpus", "where"), [(0, "cpu"), (1, "cpu"), (2, "gpu")])
def test_a_model_without_a_recipe_is_verified_on_gpus_where_ranks_have_one_each(
    tmp_path, hsap, monkeypatch, gpus, where
):
    seen = []
    monkeypatch.setattr("hsap_hf.train.launch.launch_ranks", lambda *words: seen.extend(words[2]) or 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert hsap("verify", tmp_path, "--nproc", 2)[0] == 0
    recipe = load_recipe(Path(seen[0]), [word for word in seen[1:] if not word.startswith("--")])
    assert recipe.training["use_cpu"] is (where == "cpu")
    assert recipe.training.get("bf16", False) is (where == "gpu")


def test_groups_of_one_have_nothing_to_verify(hsap, monkeypatch):
    monkeypatch.setattr("hsap_hf.train.launch.launch_ranks", lambda *_: pytest.fail("ranks were started"))
    for words in (["--nproc", 1], ["--nproc", 2, "hsap.context_size=1"]):
        code, _, err = hsap("verify", "recipes/quickstart_cpu.yaml", *words)
        assert code == 2
        assert "in groups of one share no documents" in err


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            "distributed_type: MULTI_CPU\nnum_processes: 2\nhsap:\n  context_size: 2\n",
            "with distributed_type MULTI_CPU accelerate starts one process, not 2. Write distributed_type: MULTI_GPU",
        ),
        ("distributed_type: MULTI_GPU\nnum_processes: 2\n", "no `hsap:` section"),
        ("num_processes: 3\nhsap:\n  context_size: 2\n", "does not divide the 3 launched processes"),
        ("num_processes: 3\ndynamo_backend: 'NO'\nhsap:\n  context_size: 2\n", "does not divide the 3 launched"),
        ("num_processes: 2\nhsap:\n  context_sise: 2\n", "did you mean 'context_size'?"),
        ("num_procesess: 2\nhsap:\n  context_size: 2\n", "unknown key 'num_procesess'; did you mean 'num_processes'?"),
    ],
)
def test_hsap_launch_refuses_files_that_cannot_work(tmp_path, hsap, content, text):
    (tmp_path / "file.yaml").write_text(content)
    code, _, err = hsap("launch", "--config_file", tmp_path / "file.yaml", SCRIPT)
    assert code == 2
    assert text in err
