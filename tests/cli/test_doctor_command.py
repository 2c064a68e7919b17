"""`hsap doctor` tells what this machine can run, and whether a model can be trained exactly."""

import pytest
import torch
from transformers import AutoConfig

from hsap_hf.attention import all_kernels


def saved_config(folder, model_type, **changes):
    AutoConfig.for_model(model_type, **changes).save_pretrained(folder)
    return folder


def test_versions_devices_and_kernels_are_listed_with_reasons(hsap):
    code, out, _ = hsap("doctor")
    assert code == 0
    assert torch.__version__ in out
    for kernel in all_kernels():
        assert f"kernel {kernel.name}" in out
    if not torch.cuda.is_available():
        assert "CPU only" in out
        assert "kernel sdpa        ready" in " ".join(out.split("\n")) or "ready" in out
        assert "it runs on cuda, not on cpu" in out


def test_a_supported_model_passes(hsap, tmp_path):
    code, out, _ = hsap("doctor", saved_config(tmp_path, "llama", num_hidden_layers=2))
    assert code == 0
    assert "exact" in out


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels of a machine without GPUs")
@pytest.mark.parametrize(("model", "kernel"), [("gemma2", "dense (sdpa: it has no softcap)."), ("llama", "sdpa.")])
def test_the_kernel_of_a_model_is_named_with_what_was_passed_over(hsap, model, kernel):
    _, out, _ = hsap("doctor", model)
    assert " ".join(out.split()).endswith(f"Its kernel here, in float32: {kernel}")


def test_an_unsupported_model_fails_with_its_reason(hsap, tmp_path):
    code, _, err = hsap("doctor", saved_config(tmp_path, "mamba", num_hidden_layers=2))
    assert code == 1
    assert "HSAP cannot train mamba exactly" in err


def test_a_model_that_is_not_there_is_a_bad_configuration(hsap, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, _, err = hsap("doctor", tmp_path / "nothing")
    assert code == 2
    assert err.startswith("ConfigError: ")


def test_what_the_doctor_cannot_look_at_or_write_is_said_first(hsap, tmp_path, monkeypatch):
    monkeypatch.setattr("hsap_hf.cli.calibrate.calibrate", lambda ranks: pytest.fail("measured"))
    code, _, err = hsap("doctor", "--calibrate", tmp_path / "nowhere" / "machine.json")
    assert (code, "there is no folder" in err) == (2, True)
    code, _, err = hsap("doctor", "recipes/quickstart_cpu.yaml")
    assert (code, "not a recipe" in err) == (2, True)


def test_help_names_every_command(hsap):
    code, out, _ = hsap("--help")
    assert code == 0
    for command in ("train", "verify", "launch", "plan", "doctor"):
        assert command in out


def test_links_between_ranks_are_measured_alike_on_all_of_them(gloo):
    first, *others = gloo.run("hsap_hf.cli.links:measure", {})
    assert others == [first] * 3
    assert 1e-6 < first["message_seconds"] < 1
    assert 1e5 < first["node_bytes"] < 1e13
