"""flash-attn 2, where installed: softcap and windows on CUDA."""

from __future__ import annotations

from torch import Tensor

from hsap_hf.attention.kernels.base import HALF, Into, Problem, grads_of, must_repeat, placed, window_sizes
from hsap_hf.attention.kernels.built import BuiltKernel


class FlashAttn2Kernel(BuiltKernel):
    """`flash_attn.flash_attn_interface._flash_attn_varlen_forward/_backward`."""

    name = "flash_attn_2"
    device_type = "cuda"
    dtypes = HALF
    min_capability = 8
    max_head_dim = 256
    width_multiple = 8
    has_softcap = True
    package = "flash_attn_2_cuda"
    distribution = "flash-attn"
    install = "pip install 'hsap-hf[gpu]'"

    def _forward(self, problem: Problem, into: Tensor | None) -> tuple[Tensor, Tensor]:
        from flash_attn.flash_attn_interface import _flash_attn_varlen_forward

        out, lse, *_ = _flash_attn_varlen_forward(
            problem.q,
            problem.k,
            problem.v,
            problem.segments.cu_q,
            problem.segments.cu_k,
            problem.segments.max_q,
            problem.segments.max_k,
            0.0,
            problem.scores.scale,
            problem.causal,
            **_limits(problem),
        )
        return placed(out, into), lse

    def _backward(
        self, problem: Problem, grad_out: Tensor, out: Tensor, lse: Tensor, into: Into
    ) -> tuple[Tensor, Tensor, Tensor]:
        from flash_attn.flash_attn_interface import _flash_attn_varlen_backward

        grad_q, grad_k, grad_v = grads_of(problem, into)
        _flash_attn_varlen_backward(
            grad_out.contiguous(),
            problem.q,
            problem.k,
            problem.v,
            out,
            lse.contiguous(),
            grad_q,
            grad_k,
            grad_v,
            problem.segments.cu_q,
            problem.segments.cu_k,
            problem.segments.max_q,
            problem.segments.max_k,
            0.0,
            problem.scores.scale,
            problem.causal,
            alibi_slopes=None,
            deterministic=must_repeat(),
            **_limits(problem),
        )
        return grad_q, grad_k, grad_v


def _limits(problem: Problem) -> dict[str, int | float]:
    left, right = window_sizes(problem)
    return {"window_size_left": left, "window_size_right": right, "softcap": problem.scores.softcap or 0.0}
