"""The banner of a run."""

from types import SimpleNamespace

import torch

from hsap_hf.train.report import _kernel


def lines(monkeypatch, device):
    """Of the kernel, for a small model in bfloat16, where no package with kernels is installed."""
    monkeypatch.setattr("hsap_hf.attention.kernels.base._not_loaded", lambda package: "it is not installed")
    config = SimpleNamespace(head_dim=64, _attn_implementation="sdpa")
    arguments = SimpleNamespace(bf16=True, fp16=False, device=torch.device(device))
    recipe, handle = SimpleNamespace(hsap=SimpleNamespace(kernel="auto")), SimpleNamespace(mesh="of two ranks")
    return _kernel(recipe, handle, SimpleNamespace(config=config), arguments)


def test_it_says_which_kernel_and_which_were_passed_over_why(monkeypatch):
    found = lines(monkeypatch, "cuda")
    assert found["kernel"] == "torch_flash (auto) on cuda in bfloat16"
    first, second, third = found["passed over"].splitlines()
    assert first == "flash_attn_4: it is not installed: pip install --pre flash-attn-4"
    assert (second.split(":")[0], third.split(":")[0]) == ("flash_attn_3", "flash_attn_2")


def test_on_a_cpu_none_is_passed_over(monkeypatch):
    assert lines(monkeypatch, "cpu") == {"kernel": "sdpa (auto) on cpu in bfloat16"}
