"""Compiles flash-attn 4's kernels, through our kernel, for a GPU that need not be there.

A program of its own, because the package reads once what it compiles for. Prints a line for every case that fails.
"""

import sys

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hsap_hf.attention.kernels import Problem, Scores, flash_attn_4
from hsap_hf.attention.segments import Segments

MAJOR = int(sys.argv[1])
"""Of the compute capability, which FLASH_ATTENTION_ARCH and CUTE_DSL_ARCH tell the package."""
flash_attn_4._capability = lambda: MAJOR
KERNEL = flash_attn_4.FlashAttn4Kernel()
HEADS = 8
LENGTHS = (700, 300), (1024, 512)
"""With empty last tiles, and without."""
WIDTHS = ((64, 64), (100, 100), (128, 128), (64, 96), (192, 128), (160, 160), (256, 256))
CASES = [
    (*widths, kv_heads, causal, scores)
    for widths, kv_heads in (*((widths, 2) for widths in WIDTHS), ((192, 128), HEADS), ((128, 128), HEADS))
    for causal, scores in ((True, {}), (False, {}), (True, {"window": 100, "softcap": 20.0}))
]


def compile_case(
    lengths: tuple[int, ...], head_dim: int, value_dim: int, kv_heads: int, causal: bool, scores: dict
) -> None:
    tokens = sum(lengths)

    def new(heads: int, width: int) -> torch.Tensor:
        return torch.empty(tokens, heads, width, dtype=torch.bfloat16, device="cuda")

    edges = torch.empty(len(lengths) + 1, dtype=torch.int32, device="cuda")
    q, k, v = new(HEADS, head_dim), new(kv_heads, head_dim), new(kv_heads, value_dim)
    problem = Problem(q, k, v, Segments(lengths, lengths, edges, edges), causal, Scores(0.1, **scores))
    out, lse = KERNEL.forward(problem)
    grads = KERNEL.backward(problem, torch.empty_like(out), out, lse)
    assert [grad.shape for grad in grads] == [q.shape, k.shape, v.shape]


failures = 0
for case in CASES:
    if KERNEL.missing(Scores(0.1, **case[-1]), *case[:2], "bfloat16", "cuda") is not None:
        continue
    with FakeTensorMode(allow_non_fake_inputs=True):
        try:
            for lengths in LENGTHS:
                compile_case(lengths, *case)
        except Exception as error:  # whatever a compiler can raise
            failures += 1
            print(case, f"{type(error).__name__}: {str(error)[:200]}", flush=True)
sys.exit(failures > 0)
