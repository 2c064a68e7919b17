"""`take_rows` and `sum_rows` as one kernel each: every row of keys and of values is read and written once."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from hsap_hf.comm.pairs import Pair


def take_rows_triton(own: Pair, more: Pair | None, rows: Tensor) -> Tensor:
    """[R, G, H + Hv]; the four tensors may be slices along their last dim."""
    (keys, values), (more_keys, more_values) = own, own if more is None else more
    assert keys.stride(2) == values.stride(2) == more_keys.stride(2) == more_values.stride(2) == 1
    groups, key_dim, value_dim = keys.shape[1], keys.shape[2], values.shape[2]
    joined = keys.new_empty((len(rows), groups, key_dim + value_dim))
    if len(rows):
        _take_rows[(len(rows),)](
            joined,
            keys,
            values,
            more_keys,
            more_values,
            rows,
            len(keys),
            *(stride for x in (keys, values, more_keys, more_values) for stride in x.stride()[:2]),
            groups,
            KEY_DIM=key_dim,
            VALUE_DIM=value_dim,
            GROUPS=triton.next_power_of_2(groups),
            WIDTH=triton.next_power_of_2(max(key_dim, value_dim)),
            num_warps=4,
        )
    return joined


def sum_rows_triton(totals: Pair, sources: Pair, order: Tensor, edges: Tensor, first: int, add: bool) -> None:
    """In place on `totals`; all four may be slices along their last dim. order, edges: see RowSums.grouped."""
    (keys, values), (source_keys, source_values) = totals, sources
    assert keys.stride(2) == values.stride(2) == source_keys.stride(2) == source_values.stride(2) == 1
    groups, key_dim, value_dim = keys.shape[1], keys.shape[2], values.shape[2]
    _sum_rows[(len(keys),)](
        keys,
        values,
        source_keys,
        source_values,
        order,
        edges,
        first,
        *(stride for x in (keys, values, source_keys, source_values) for stride in x.stride()[:2]),
        groups,
        KEY_DIM=key_dim,
        VALUE_DIM=value_dim,
        GROUPS=triton.next_power_of_2(groups),
        WIDTH=triton.next_power_of_2(max(key_dim, value_dim)),
        ADD=add,
        num_warps=4,
    )


@triton.jit(do_not_specialize=["num_own"])  # type: ignore[untyped-decorator]
def _take_rows(  # type: ignore[no-untyped-def]
    joined,
    keys,
    values,
    more_keys,
    more_values,
    rows,
    num_own,
    key_row,
    key_group,
    value_row,
    value_group,
    more_key_row,
    more_key_group,
    more_value_row,
    more_value_group,
    groups,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + place)
    group = tl.arange(0, GROUPS)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    key_inside = (group < groups) & (column < KEY_DIM)
    value_inside = (group < groups) & (column < VALUE_DIM)
    if row < num_own:
        key = tl.load(keys + row * key_row + group * key_group + column, mask=key_inside)
        value = tl.load(values + row * value_row + group * value_group + column, mask=value_inside)
    else:
        row -= num_own
        key = tl.load(more_keys + row * more_key_row + group * more_key_group + column, mask=key_inside)
        value = tl.load(more_values + row * more_value_row + group * more_value_group + column, mask=value_inside)
    to = joined + (place * groups + group) * (KEY_DIM + VALUE_DIM) + column
    tl.store(to, key, mask=key_inside)
    tl.store(to + KEY_DIM, value, mask=value_inside)


@triton.jit(do_not_specialize=["first"])  # type: ignore[untyped-decorator]
def _sum_rows(  # type: ignore[no-untyped-def]
    keys,
    values,
    source_keys,
    source_values,
    order,
    edges,
    first,
    key_row,
    key_group,
    value_row,
    value_group,
    source_key_row,
    source_key_group,
    source_value_row,
    source_value_group,
    groups,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    ADD: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    start = tl.load(edges + first + row)
    stop = tl.load(edges + first + row + 1)
    if start == stop:
        return
    group = tl.arange(0, GROUPS)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    key_inside = (group < groups) & (column < KEY_DIM)
    value_inside = (group < groups) & (column < VALUE_DIM)
    key_at = keys + row * key_row + group * key_group + column
    value_at = values + row * value_row + group * value_group + column
    wide: tl.constexpr = tl.float64 if keys.dtype.element_ty == tl.float64 else tl.float32
    key = tl.zeros((GROUPS, WIDTH), wide)
    value = tl.zeros((GROUPS, WIDTH), wide)
    if ADD:
        key += tl.load(key_at, mask=key_inside, other=0.0).to(wide)
        value += tl.load(value_at, mask=value_inside, other=0.0).to(wide)
    for at in range(start, stop):
        source = tl.load(order + at)
        key_from = source_keys + source * source_key_row + group * source_key_group + column
        value_from = source_values + source * source_value_row + group * source_value_group + column
        key += tl.load(key_from, mask=key_inside, other=0.0).to(wide)
        value += tl.load(value_from, mask=value_inside, other=0.0).to(wide)
    tl.store(key_at, key.to(keys.dtype.element_ty), mask=key_inside)
    tl.store(value_at, value.to(values.dtype.element_ty), mask=value_inside)
