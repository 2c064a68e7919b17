"""What a package's build lacks is found by a small call, before training starts."""

import pytest
import torch

from hsap_hf.attention import Scores, choose_kernel
from hsap_hf.attention.kernels.built import BuiltKernel, _refusal
from hsap_hf.attention.kernels.dense import DenseKernel
from hsap_hf.errors import ConfigError


class Complete(BuiltKernel, DenseKernel):
    """Runs on CPUs, so that its small call does."""

    name = "complete"


class WithoutSoftcap(Complete):
    name = "without_softcap"

    def _forward(self, problem, into):
        if problem.scores.softcap is not None:
            raise RuntimeError("flash_api.cpp:1219, This build does not support tanh softcapping.\nmore")
        return super()._forward(problem, into)


class WithoutWindows(Complete):
    """Like flash-attn 3, which takes a window that hides nothing for none."""

    name = "without_windows"

    def _forward(self, problem, into):
        if problem.scores.window is not None and problem.scores.window < problem.segments.max_k:
            raise RuntimeError("no local attention")
        return super()._forward(problem, into)


class WithoutBackward(Complete):
    name = "without_backward"

    def _backward(self, *asked):
        raise RuntimeError("no backward pass")


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    _refusal.cache_clear()
    yield
    _refusal.cache_clear()


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("kind", "scores", "why"),
    [
        (Complete, Scores(1.0, 4096, 20.0), None),
        (WithoutSoftcap, Scores(1.0, 4096), None),
        (WithoutSoftcap, Scores(1.0, None, 20.0), "(flash_api.cpp:1219, This build does not support"),
        (WithoutWindows, Scores(1.0, None, 20.0), None),
        (WithoutWindows, Scores(1.0, 4096), "refuses a call (no local attention)"),
        (WithoutBackward, Scores(1.0), "refuses a call (no backward pass)"),
    ],
)
def test_a_build_that_lacks_something_says_what(kind, scores, why):
    found = kind().missing(scores, 16, 8, "float32", "cpu")
    assert (found is None) if why is None else (why in found and "\n" not in found)


@pytest.mark.usefixtures("gpu")
def test_it_is_passed_over_where_auto_chooses_and_refused_where_it_is_named(monkeypatch):
    monkeypatch.setattr("hsap_hf.attention.kernels.all_kernels", lambda: (WithoutSoftcap(), DenseKernel()))
    assert choose_kernel("auto", Scores(1.0), 16, 16, "float32", "cpu").name == "without_softcap"
    assert choose_kernel("auto", Scores(1.0, softcap=20.0), 16, 16, "float32", "cpu").name == "dense"
    with pytest.raises(ConfigError, match=r"without_softcap: the build that is installed refuses a call \("):
        choose_kernel("without_softcap", Scores(1.0, softcap=20.0), 16, 16, "float32", "cpu")


def test_it_is_asked_once_and_only_where_there_is_a_gpu(gpu, monkeypatch):
    calls = []
    monkeypatch.setattr(Complete, "_forward", lambda *asked: calls.append(1) or DenseKernel._forward(*asked))
    for _ in range(3):
        assert Complete().missing(Scores(1.0), 16, 16, "float32", "cpu") is None
    assert len(calls) == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert WithoutBackward().missing(Scores(1.0), 16, 16, "float32", "cpu") is None
