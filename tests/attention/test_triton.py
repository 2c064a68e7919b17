"""The Triton kernels, interpreted on the CPU, against the torch code that stands beside them."""

import importlib.util
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")

MERGE = """
import torch
from hsap_hf.attention.merge import merge_rows
from hsap_hf.attention.merge_triton import merge_rows_triton

torch.manual_seed(0)
for dtype, allowed in ((torch.float64, 1e-14), (torch.float32, 2e-6), (torch.float16, 2e-3)):
    wide = torch.promote_types(dtype, torch.float32)
    out, lse = torch.randn(50, 6, 24, dtype=wide).to(dtype), torch.randn(6, 50, dtype=wide)
    lse[:, 3] = -torch.inf  # a row that saw no key yet counts for nothing
    part, part_lse = torch.randn(37, 6, 24, dtype=wide).to(dtype), torch.randn(6, 37, dtype=wide)
    ours, theirs = (out.clone(), lse.clone()), (out.clone(), lse.clone())
    for merge, (x, y) in ((merge_rows, ours), (merge_rows_triton, theirs)):
        merge(x[3:40], y[:, 3:40], part, part_lse)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, atol=allowed, rtol=0)
    assert torch.equal(theirs[0][3], part[0])
    assert not torch.equal(theirs[0][4:40], out[4:40])
    assert [x._version for x in theirs] == [x._version for x in ours] == [1, 1]  # autograd is told of the writes
    for rows in (slice(3), slice(40, 50)):
        assert torch.equal(theirs[0][rows], out[rows])
        assert torch.equal(theirs[1][:, rows], lse[:, rows])
"""

ROWS = """
import torch
from hsap_hf.comm.pairs import split
from hsap_hf.comm.rows import RowSums, sum_rows, take_rows
from hsap_hf.comm.rows_triton import sum_rows_triton, take_rows_triton

torch.manual_seed(0)
for dtype, value_dim in ((torch.float64, 10), (torch.float32, 10), (torch.float16, 7)):
    own = torch.randn(20, 3, 10).to(dtype), torch.randn(20, 3, value_dim).to(dtype)
    more = split(torch.randn(30, 3, 10 + value_dim).to(dtype), 10)
    rows = torch.randint(0, 50, (64,))
    assert torch.equal(take_rows_triton(own, more, rows), take_rows(own, more, rows))
    assert torch.equal(take_rows_triton(own, None, rows % 20), take_rows(own, None, rows % 20))

    exact = {"rtol": 1e-14, "atol": 1e-14} if dtype == torch.float64 else {}
    source = torch.randn(100, 3, 10).to(dtype), torch.randn(100, 3, value_dim).to(dtype)
    sums = RowSums(torch.randint(2, 20, (100,)), 20)  # rows 0 and 1 get nothing
    for first, count, add in ((0, 20, True), (0, 9, False), (9, 11, False)):
        totals = split(torch.randn(count, 3, 10 + value_dim).to(dtype), 10)
        want, got = ([x.clone() for x in totals] for _ in range(2))
        sum_rows(want, source, sums, first=first, add=add)
        sum_rows_triton(got, source, *sums.grouped, first, add)
        for a, b, before in zip(want, got, totals):
            torch.testing.assert_close(b, a, **exact)
            assert not torch.equal(b[2:], before[2:])
            assert first or torch.equal(b[:2], before[:2])
"""


@pytest.mark.parametrize("program", [MERGE, ROWS], ids=["merge_rows", "rows"])
def test_kernel_equals_its_torch_reference(program):
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
