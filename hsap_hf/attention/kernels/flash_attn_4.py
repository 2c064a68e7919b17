"""flash-attn 4 (CuTe), where installed: the fastest kernel on Hopper and Blackwell."""

from __future__ import annotations

from functools import lru_cache
from threading import Lock

import torch
from torch import Tensor

from hsap_hf.attention.kernels.base import HALF, Into, Kernel, Problem, Scores, must_repeat, varlen_words, window_sizes

_MLA = 192, 128
_HOPPER, _BLACKWELL = 9, (10, 11)
"""Compute capabilities. What 4.0.0b36 can do on them, and the widths it compiles for, was found by compiling its
kernels, which needs no GPU: full segments of 97 to 127 wide heads do not compile on Hopper."""
_ONE_AT_A_TIME = Lock()
"""Its compiler aborts the process where two threads compile at once (seen with 4.0.0b36)."""
_PACKING_COSTS = 1.03
"""Times as long as a forward of whole tiles takes where each holds a whole group of query heads: 1.00 to 1.06 on an
H100, most for full segments."""


class FlashAttn4Kernel(Kernel):
    """`flash_attn.cute.interface._flash_attn_fwd/_flash_attn_bwd`. The first call of a shape compiles for seconds."""

    name = "flash_attn_4"
    device_type = "cuda"
    dtypes = HALF
    max_head_dim = 256
    width_multiple = 32
    has_softcap = True
    package = "flash_attn.cute"
    distribution = "flash-attn-4"
    install = "pip install --pre flash-attn-4"

    def widths(self, head_dim: int, value_dim: int, group: int = 1) -> tuple[int, int]:
        """MLA's heads as they are, but on Hopper not where query heads share keys; others are filled up to one width,
        on Blackwell to 256 where that is more than 128."""
        on_blackwell = _capability() in _BLACKWELL
        if (head_dim, value_dim) == _MLA and (group == 1 or on_blackwell):
            return _MLA
        width, _ = super().widths(head_dim, value_dim)
        return (256, 256) if on_blackwell and width > 128 else (width, width)

    def missing(self, scores: Scores, head_dim: int, value_dim: int, dtype: str, device_type: str) -> str | None:
        reason = super().missing(scores, head_dim, value_dim, dtype, device_type)
        major = _capability()
        if reason is not None or major is None:
            return reason
        if major not in (_HOPPER, *_BLACKWELL):
            return f"its backward needs a GPU of compute capability {_HOPPER}, 10 or 11, not {major}"
        widths = self.widths(head_dim, value_dim)
        if widths == (256, 256) and major in _BLACKWELL and (scores.window, scores.softcap) != (None, None):
            return f"on Blackwell it has neither window nor softcap for heads {max(head_dim, value_dim)} wide"
        return None

    def _forward(self, problem: Problem, into: Tensor | None) -> tuple[Tensor, Tensor]:
        from flash_attn.cute.interface import _flash_attn_fwd

        with _ONE_AT_A_TIME:
            out, lse, *_ = _flash_attn_fwd(
                problem.q,
                problem.k,
                problem.v,
                return_lse=True,
                out=into,
                pack_gqa=_packs_heads(problem),
                **_arguments(problem),
            )
        return out, lse

    def _backward(
        self, problem: Problem, grad_out: Tensor, out: Tensor, lse: Tensor, into: Into
    ) -> tuple[Tensor, Tensor, Tensor]:
        from flash_attn.cute.interface import _flash_attn_bwd

        arguments = _arguments(problem)
        arguments["softcap"] = problem.scores.softcap or 0.0
        arguments |= dict(zip(("dq", "dk", "dv"), into, strict=True))
        if must_repeat():
            arguments["deterministic"] = True
        with _ONE_AT_A_TIME:
            grad_q, grad_k, grad_v, *_ = _flash_attn_bwd(
                problem.q, problem.k, problem.v, out, grad_out, lse.contiguous(), **arguments
            )
        return grad_q, grad_k, grad_v


@lru_cache
def _capability() -> int | None:
    """The major compute capability of this process's GPU, asked once: every attention call needs it."""
    return torch.cuda.get_device_capability()[0] if torch.cuda.is_available() else None


def _packs_heads(problem: Problem) -> bool | None:
    """Whether a tile of its forward holds few queries of all heads that share keys, or many of one head.

    None, the package's own choice, is the former, which only pays where segments would leave their last tiles empty.
    """
    group = problem.q.shape[1] // problem.k.shape[1]
    if group == 1 or _capability() != _HOPPER:
        return None
    rows = 192 if problem.q.shape[-1] <= 96 else 128
    packed = problem.segments.pairs_in_tiles(max(1, rows // group))
    return problem.segments.pairs_in_tiles(rows) > _PACKING_COSTS * packed


def _arguments(problem: Problem) -> dict[str, object]:
    left, right = window_sizes(problem)
    windowed = left >= 0
    return varlen_words(problem) | {
        "causal": problem.causal,
        "softcap": problem.scores.softcap,
        "window_size_left": left if windowed else None,
        "window_size_right": right if windowed else None,
    }
