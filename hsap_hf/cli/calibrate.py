"""`hsap doctor --calibrate FILE`: measures this device for the planner's predictions."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hsap_hf.attention import Scores, choose_kernel
from hsap_hf.attention.kernels import Problem
from hsap_hf.attention.segments import Segments
from hsap_hf.cli.bench.job import ask
from hsap_hf.cli.bench.timing import median_ms
from hsap_hf.errors import HsapError
from hsap_hf.planner.documents import pairs
from hsap_hf.planner.machine import H100, Machine

_REPEATS = 10


def calibrate(num_ranks: int = 1) -> Machine:
    """This device as a machine: kernels by document length, matrix products, memory.

    num_ranks: of this machine, started to measure the links between them; 1 leaves those of H100. Those between nodes
    stay H100's. Raises HsapError where the ranks fail.
    """
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    dtype = torch.bfloat16 if cuda else torch.float32
    forward, backward = _attention(device, dtype, 65_536 if cuda else 1_024, (32, 8, 128) if cuda else (4, 2, 32))
    # seconds = pair_cost * pairs + token_cost * tokens; a token costs as much as half_length / 2 pairs
    half_length = 2 * (forward[1] + backward[1]) / (forward[0] + backward[0])
    memory = torch.cuda.mem_get_info()[1] if cuda else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    links = measure_links(num_ranks) if num_ranks > 1 else {}
    return replace(
        H100,
        **links,
        name=torch.cuda.get_device_name() if cuda else "this CPU",
        linear_flops=_linear_flops(device, dtype, 4_096 if cuda else 256),
        forward_flops=4 / forward[0],
        backward_flops=10 / backward[0],
        half_length=half_length,
        node_ranks=torch.cuda.device_count() if cuda else num_ranks,
        memory_bytes=float(memory),
    )


def measure_links(num_ranks: int) -> dict[str, float]:
    """`message_seconds` and `node_bytes` between so many ranks of this machine. HsapError where they fail."""
    code, links = ask("hsap_hf.cli.links", {}, num_ranks, {})
    if code:
        raise HsapError(f"the {num_ranks} ranks that measure links ended with code {code}; see what they printed.")
    return links


def _attention(
    device: torch.device, dtype: torch.dtype, tokens: int, heads: tuple[int, int, int]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Forward and backward: seconds a pair and seconds a token, of one query head element."""
    num_heads, num_kv_heads, head_dim = heads
    scores = Scores(head_dim**-0.5)
    kernel = choose_kernel("auto", scores, head_dim, head_dim, str(dtype).removeprefix("torch."), device.type)

    def draw(count: int) -> Tensor:
        return torch.randn(tokens, count, head_dim, device=device).to(dtype)

    q, k, v, grad = draw(num_heads), draw(num_kv_heads), draw(num_kv_heads), draw(num_heads)
    times: tuple[list[float], list[float]] = ([], [])
    costs = []
    for length in (tokens // 64, tokens // 16, tokens // 4, tokens):
        count = tokens // length
        edges = torch.arange(0, tokens + 1, length, dtype=torch.int32, device=device)
        whole = Segments((length,) * count, (length,) * count, edges, edges)
        problem = Problem(q, k, v, whole, True, scores)
        out, lse = kernel.forward(problem)
        runs = (
            lambda: kernel.forward(problem),  # noqa: B023
            lambda: kernel.backward(problem, grad, out, lse),  # noqa: B023
        )
        for found, run in zip(times, runs, strict=True):
            found.append(1e-3 * median_ms(run, _REPEATS, device))
        costs.append((count * pairs(0, length) * num_heads * head_dim, tokens * num_heads * head_dim))
    forward, backward = (_fit(np.array(costs, dtype=float), np.array(found)) for found in times)
    return forward, backward


def _fit(costs: np.ndarray, seconds: np.ndarray) -> tuple[float, float]:
    """The cost of a pair and of a token that come nearest to the measured times, by relative error; none negative."""
    share = costs / seconds[:, None]
    pair, token = np.linalg.lstsq(share, np.ones(len(seconds)), rcond=None)[0]
    if min(pair, token) <= 0:
        pair, token = 1 / share[-1, 0], 0.0
    return float(pair), float(token)


def _linear_flops(device: torch.device, dtype: torch.dtype, width: int) -> float:
    """FLOP/s of a linear map's forward and backward, four times as wide as its input."""
    tokens = 4 * width
    x = torch.randn(tokens, width, device=device).to(dtype).requires_grad_()
    weight = torch.randn(4 * width, width, device=device).to(dtype).requires_grad_()
    grad = torch.randn(tokens, 4 * width, device=device).to(dtype)

    def run() -> None:
        torch.autograd.grad(functional.linear(x, weight), (x, weight), grad)

    return 6 * tokens * width * 4 * width / (1e-3 * median_ms(run, _REPEATS, device))
