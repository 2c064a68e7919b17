"""Kernels of packages that somebody compiled, perhaps without some of what their sources can."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch
from torch.utils._python_dispatch import _disable_current_modes

from hsap_hf.attention.kernels.base import Kernel, Problem, Scores
from hsap_hf.attention.segments import make_part

_TOKENS = 8


class BuiltKernel(Kernel):
    """Where there is a GPU, a small call of both directions tells what this build lacks, before training starts."""

    def missing(self, scores: Scores, head_dim: int, value_dim: int, dtype: str, device_type: str) -> str | None:
        reason = super().missing(scores, head_dim, value_dim, dtype, device_type)
        if reason is not None or not torch.cuda.is_available():
            return reason
        window = None if scores.window is None else 1  # one that hides nothing is none to the package
        return _refusal(type(self), replace(scores, scale=1.0, window=window), head_dim, value_dim, dtype, device_type)


@lru_cache
def _refusal(
    kind: type[Kernel], scores: Scores, head_dim: int, value_dim: int, dtype: str, device_type: str
) -> str | None:
    """What it raises when asked for such attention, in words; None where it computes it."""
    device = torch.device(device_type)
    q, k, v, grad = (
        torch.zeros(_TOKENS, heads, width, dtype=getattr(torch, dtype), device=device)
        for heads, width in ((2, head_dim), (1, head_dim), (1, value_dim), (2, value_dim))
    )
    problem = Problem(q, k, v, make_part(0, [_TOKENS], [_TOKENS], True, device).segments, True, scores)
    try:
        with _disable_current_modes():  # a layer may ask first: selective checkpointing counts the calls in it
            out, lse = kind().forward(problem)
            kind().backward(problem, grad, out, lse)
    except torch.OutOfMemoryError:
        raise  # says nothing about the build
    except Exception as error:  # a missing operator, a word that an older version does not know
        return f"what is installed refuses a call ({(str(error) or repr(error)).splitlines()[0][:200]})"
    return None
