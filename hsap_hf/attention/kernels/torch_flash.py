"""CUDA without extra packages: the flash-attention 2 kernels that torch itself carries."""

from __future__ import annotations

import torch
from torch import Tensor

from hsap_hf.attention.kernels.base import HALF, Into, Kernel, Problem, placed, window_sizes


class TorchFlashKernel(Kernel):
    """`aten._flash_attention_forward/_backward` in their varlen form."""

    name = "torch_flash"
    device_type = "cuda"
    dtypes = HALF
    min_capability = 8
    max_head_dim = 256
    width_multiple = 8

    def _forward(self, problem: Problem, into: Tensor | None) -> tuple[Tensor, Tensor]:
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            problem.q,
            problem.k,
            problem.v,
            problem.segments.cu_q,
            problem.segments.cu_k,
            problem.segments.max_q,
            problem.segments.max_k,
            0.0,
            problem.causal,
            False,
            scale=problem.scores.scale,
            window_size_left=window_sizes(problem)[0],
            window_size_right=window_sizes(problem)[1],
        )
        return placed(out, into), lse

    def _backward(
        self, problem: Problem, grad_out: Tensor, out: Tensor, lse: Tensor, into: Into
    ) -> tuple[Tensor, Tensor, Tensor]:
        no_dropout = torch.empty(0, dtype=torch.uint64, device=problem.q.device)
        grads = torch.ops.aten._flash_attention_backward(
            grad_out.contiguous(),
            problem.q,
            problem.k,
            problem.v,
            out,
            lse.contiguous(),
            problem.segments.cu_q,
            problem.segments.cu_k,
            problem.segments.max_q,
            problem.segments.max_k,
            0.0,
            problem.causal,
            no_dropout,
            no_dropout,
            scale=problem.scores.scale,
            window_size_left=window_sizes(problem)[0],
            window_size_right=window_sizes(problem)[1],
        )
        grad_q, grad_k, grad_v = (placed(grad, place) for grad, place in zip(grads, into, strict=True))
        return grad_q, grad_k, grad_v
