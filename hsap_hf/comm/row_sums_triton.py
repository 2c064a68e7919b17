"""`add_rows` as one kernel: every target row is read and written once."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


def add_rows_triton(total: Tensor, source: Tensor, sources: Tensor, edges: Tensor) -> Tensor:
    """In place on `total` [S, G, H]; `source` [R, G, H] may be a slice along H."""
    rows, groups, width = total.shape
    assert total.is_contiguous()
    assert source.stride(2) == 1
    _add_rows[(rows,)](
        total,
        source,
        sources,
        edges,
        groups * width,
        width,
        source.stride(0),
        source.stride(1),
        BLOCK=triton.next_power_of_2(groups * width),
        num_warps=4,
    )
    return total


@triton.jit  # type: ignore[untyped-decorator]
def _add_rows(  # type: ignore[no-untyped-def]
    total, source, sources, edges, size, width, row_stride, group_stride, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    start = tl.load(edges + row)
    stop = tl.load(edges + row + 1)
    if start == stop:
        return
    element = tl.arange(0, BLOCK)
    inside = element < size
    place = (element // width) * group_stride + element % width
    value = tl.load(total + row * size + element, mask=inside, other=0.0).to(tl.float32)
    for at in range(start, stop):
        from_row = tl.load(sources + at)
        value += tl.load(source + from_row * row_stride + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(total + row * size + element, value.to(total.dtype.element_ty), mask=inside)
