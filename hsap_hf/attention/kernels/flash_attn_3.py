"""flash-attn 3, where installed: Hopper without a compiler at run time."""

from __future__ import annotations

import torch
from torch import Tensor

from hsap_hf.attention.kernels.base import (
    HALF,
    Into,
    Problem,
    Scores,
    grads_of,
    must_repeat,
    placed,
    varlen_words,
    window_sizes,
)
from hsap_hf.attention.kernels.built import BuiltKernel

_HOPPER = 9
"""Compute capability."""


class FlashAttn3Kernel(BuiltKernel):
    """`torch.ops.flash_attn_3.fwd/bwd`.

    Source: github.com/Dao-AILab/flash-attention, hopper/. Run on GPUs by us in the build that xformers 0.0.34 brings.
    """

    name = "flash_attn_3"
    device_type = "cuda"
    dtypes = HALF
    max_head_dim = 256
    width_multiple = 8
    has_softcap = True
    package = "flash_attn_3._C"
    distribution = "flash-attn-3"
    install = "build the folder hopper of github.com/Dao-AILab/flash-attention"

    def missing(self, scores: Scores, head_dim: int, value_dim: int, dtype: str, device_type: str) -> str | None:
        if device_type == "cuda" and torch.cuda.is_available():
            major, _ = torch.cuda.get_device_capability()
            if major != _HOPPER:
                return f"it needs a GPU of compute capability {_HOPPER}, not {major}"
        return super().missing(scores, head_dim, value_dim, dtype, device_type)

    def _forward(self, problem: Problem, into: Tensor | None) -> tuple[Tensor, Tensor]:
        import flash_attn_3._C  # noqa: F401

        out, lse, *_ = torch.ops.flash_attn_3.fwd(
            problem.q, problem.k, problem.v, out=into, num_splits=1, **_arguments(problem)
        )
        return placed(out, into), lse

    def _backward(
        self, problem: Problem, grad_out: Tensor, out: Tensor, lse: Tensor, into: Into
    ) -> tuple[Tensor, Tensor, Tensor]:
        import flash_attn_3._C  # noqa: F401

        grad_q, grad_k, grad_v = grads_of(problem, into)
        torch.ops.flash_attn_3.bwd(
            grad_out.contiguous(),
            problem.q,
            problem.k,
            problem.v,
            out,
            lse.contiguous(),
            dq=grad_q,
            dk=grad_k,
            dv=grad_v,
            deterministic=must_repeat(),
            **_arguments(problem),
        )
        return grad_q, grad_k, grad_v


def _arguments(problem: Problem) -> dict[str, object]:
    left, right = window_sizes(problem)
    return varlen_words(problem) | {
        "is_causal": problem.causal,
        "window_size_left": left,
        "window_size_right": right,
        "softcap": problem.scores.softcap or 0.0,
    }
