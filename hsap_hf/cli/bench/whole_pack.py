"""A whole pack on one device: random tensors and the kernel call that is the measure of everything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hsap_hf.attention import Scores, choose_kernel
from hsap_hf.attention.kernels import Kernel, Problem
from hsap_hf.attention.segments import Segments


@dataclass(frozen=True)
class Shape:
    """Heads of the attention to time, and the kernel's name."""

    heads: int
    kv_heads: int
    head_dim: int
    kernel: str


@dataclass(frozen=True)
class WholePack:
    """Queries, keys, values and the gradient of the output of all tokens, document after document."""

    lengths: tuple[int, ...]
    kernel: Kernel
    problem: Problem
    grad: Tensor

    def forward(self) -> tuple[Tensor, Tensor]:
        """(out, lse)"""
        return self.kernel.forward(self.problem)

    def backward(self, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(grad_q, grad_k, grad_v)"""
        return self.kernel.backward(self.problem, self.grad, out, lse)


def bench_dtype(device: torch.device) -> torch.dtype:
    """What the benchmarks compute in."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def bench_kernel(shape: Shape, device: torch.device) -> Kernel:
    """The kernel the benchmarks run; ConfigError where none can."""
    dtype = str(bench_dtype(device)).removeprefix("torch.")
    return choose_kernel(shape.kernel, _scores(shape), shape.head_dim, shape.head_dim, dtype, device.type)


def draw_pack(lengths: Sequence[int], shape: Shape, device: torch.device, *, zeros: bool = False) -> WholePack:
    """The same numbers wherever the same kind of device draws them, or nothing but zeros."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(heads: int) -> Tensor:
        size = sum(lengths), heads, shape.head_dim
        if zeros:
            return torch.zeros(size, device=device, dtype=bench_dtype(device))
        return torch.randn(size, device=device, generator=generator).to(bench_dtype(device))

    q, k, v, grad = draw(shape.heads), draw(shape.kv_heads), draw(shape.kv_heads), draw(shape.heads)
    edges = torch.from_numpy(np.cumsum([0, *lengths])).to(device, torch.int32)
    whole = Segments(tuple(lengths), tuple(lengths), edges, edges)
    problem = Problem(q, k, v, whole, True, _scores(shape))
    return WholePack(tuple(lengths), bench_kernel(shape, device), problem, grad)


def _scores(shape: Shape) -> Scores:
    return Scores(shape.head_dim**-0.5)
