"""`merge_rows` as one kernel: every row of both partial results is read once, the merged one written in place."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS = 32


def merge_rows_triton(out: Tensor, lse: Tensor, part_out: Tensor, part_lse: Tensor) -> None:
    """In place on `out` [R, N, H] and `lse` [N, R]."""
    count, heads, width = part_out.shape
    assert out.is_contiguous()
    assert part_out.is_contiguous()
    assert lse.stride(1) == 1
    assert part_lse.stride(1) == 1
    _merge_rows[(triton.cdiv(count, _ROWS), heads)](
        out,
        lse,
        part_out,
        part_lse,
        count,
        heads,
        width,
        lse.stride(0),
        part_lse.stride(0),
        ROWS=_ROWS,
        WIDTH=triton.next_power_of_2(width),
        num_warps=4,
    )
    # A launch does not tell autograd that it wrote; who kept these (selective checkpointing) must be able to notice.
    torch.autograd.graph.increment_version((out, lse))


@triton.jit(do_not_specialize=["count", "lse_stride", "part_lse_stride"])  # type: ignore[untyped-decorator]
def _merge_rows(  # type: ignore[no-untyped-def]
    out,
    lse,
    part_out,
    part_lse,
    count,
    heads,
    width,
    lse_stride,
    part_lse_stride,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    head = tl.program_id(1)
    number = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = number < count
    before = tl.load(lse + head * lse_stride + number, mask=there, other=0.0)
    part = tl.load(part_lse + head * part_lse_stride + number, mask=there, other=0.0)
    # A part has seen a key, so the larger of the two is finite.
    high = tl.maximum(before, part)
    after = high + tl.log(tl.exp(before - high) + tl.exp(part - high))
    column = tl.arange(0, WIDTH)
    inside = there[:, None] & (column < width)[None, :]
    at = (number.to(tl.int64)[:, None] * heads + head) * width + column[None, :]
    wide: tl.constexpr = tl.float64 if out.dtype.element_ty == tl.float64 else tl.float32
    old = tl.load(out + at, mask=inside, other=0.0).to(wide)
    new = tl.load(part_out + at, mask=inside, other=0.0).to(wide)
    merged = old * tl.exp(before - after)[:, None] + new * tl.exp(part - after)[:, None]
    tl.store(out + at, merged.to(out.dtype.element_ty), mask=inside)
    tl.store(lse + head * lse_stride + number, after, mask=there)
