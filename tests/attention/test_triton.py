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
for dtype, allowed in ((torch.float32, 2e-6), (torch.float16, 2e-3)):
    out, lse = torch.randn(50, 6, 24).to(dtype), torch.randn(6, 50)
    lse[:, 3] = -torch.inf  # a row that saw no key yet counts for nothing
    rows = torch.cat([torch.tensor([3]), 4 + torch.randperm(46)[:36].sort().values])
    part, part_lse = torch.randn(37, 6, 24).to(dtype), torch.randn(6, 37)
    ours, theirs = (out.clone(), lse.clone()), (out.clone(), lse.clone())
    merge_rows(*ours, rows, part, part_lse)
    merge_rows_triton(*theirs, rows, part, part_lse)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, atol=allowed, rtol=0)
    assert torch.equal(theirs[0][3], part[0])
    assert not torch.equal(theirs[0], out)
"""

SUMS = """
import torch
from hsap_hf.comm.row_sums import RowSums, add_rows
from hsap_hf.comm.row_sums_triton import add_rows_triton

torch.manual_seed(0)
targets = torch.randint(2, 20, (100,))  # rows 0 and 1 get nothing
for dtype in (torch.float32, torch.float16):
    total, source = torch.randn(20, 3, 10).to(dtype), torch.randn(100, 3, 25).to(dtype)[..., 10:20]
    sums = RowSums(targets, 20)
    want = add_rows(total.clone(), source, sums)
    got = add_rows_triton(total.clone(), source, *sums.grouped)
    torch.testing.assert_close(got, want)
    assert torch.equal(got[:2], total[:2])
    assert not torch.equal(got[2:], total[2:])
"""


@pytest.mark.parametrize("program", [MERGE, SUMS], ids=["merge_rows", "add_rows"])
def test_kernel_equals_its_torch_reference(program):
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
