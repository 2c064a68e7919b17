"""What a package's build lacks is found by a small call, before training starts."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

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


class Older(Complete):
    """Has not all words, like flash-attn 2.6."""

    name = "older"

    def _forward(self, problem, into):
        raise TypeError("got an unexpected keyword argument 'window_size_left'")


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
        (Older, Scores(1.0), "refuses a call (got an unexpected keyword argument 'window_size_left')"),
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
    with pytest.raises(ConfigError, match=r"without_softcap: what is installed refuses a call \("):
        choose_kernel("without_softcap", Scores(1.0, softcap=20.0), 16, 16, "float32", "cpu")


def test_it_is_asked_once_and_only_where_there_is_a_gpu(gpu, monkeypatch):
    calls = []
    monkeypatch.setattr(Complete, "_forward", lambda *asked: calls.append(1) or DenseKernel._forward(*asked))
    for _ in range(3):
        assert Complete().missing(Scores(1.0), 16, 16, "float32", "cpu") is None
    assert len(calls) == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert WithoutBackward().missing(Scores(1.0), 16, 16, "float32", "cpu") is None


def test_memory_that_ended_says_nothing_about_the_build(gpu, monkeypatch):
    def full(*asked):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as short:
        short.setattr(Complete, "_forward", full)
        with pytest.raises(torch.OutOfMemoryError):
            Complete().missing(Scores(1.0), 16, 16, "float32", "cpu")
    assert Complete().missing(Scores(1.0), 16, 16, "float32", "cpu") is None


def test_no_mode_of_the_layer_that_asks_sees_the_call(gpu):
    """Selective checkpointing counts calls in a layer, and the recomputation does not ask again."""
    seen = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Watching():
        assert Complete().missing(Scores(1.0), 16, 16, "float32", "cpu") is None
    assert not [name for name in seen if "softmax" in name or "mm" in name or "exp" in name]
