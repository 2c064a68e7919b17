"""ring-flash-attention's two varlen functions as ways, where that package is installed. Never a dependency.

Source: github.com/zhuzilin/ring-flash-attention, `zigzag_ring_flash_attn_varlen_func` and
`llama3_flash_attn_varlen_func`. Both want padding: zigzag every document to a multiple of twice the ranks, llama3 the
pack to a multiple of the ranks. Padding stands after the real rows and has no gradient, so it changes no result.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hsap_hf.cli.bench.ways import Way
from hsap_hf.cli.bench.whole_pack import WholePack
from hsap_hf.comm.spans import Ints, index_tensor

_PACKAGE = "ring_flash_attn"


def missing_peer(device: torch.device) -> str | None:
    """Why the peers cannot run here, in words; None where they can."""
    if importlib.util.find_spec(_PACKAGE) is None:
        return "not installed"
    if device.type != "cuda":
        return "CUDA only"
    try:
        _peer()
    except ImportError as error:
        return f"not installed ({error})"
    return None


def zigzag_way(pack: WholePack, rank: int, size: int) -> Way:
    """Every document in 2 * size pieces, of which a rank has one from each end; keys travel round the ring."""
    padded = padded_lengths(pack.lengths, 2 * size)
    width = padded // (2 * size)
    chunks = [np.arange(start, start + n) for n in width for start in (rank * n, (2 * size - 1 - rank) * n)]
    documents = np.repeat(np.arange(len(width)), 2 * width)
    edges = index_tensor(np.concatenate([[0], np.cumsum(2 * width)]), pack.grad.device).to(torch.int32)
    longest = int(2 * width.max())
    function = _peer().zigzag_ring_flash_attn_varlen_func
    rows = pack_rows(pack.lengths, documents, np.concatenate(chunks))
    return _way(pack, rows, lambda q, k, v: function(q, k, v, edges, longest, causal=True))


def llama3_way(pack: WholePack, rank: int, size: int, heads_stride: int) -> Way:
    """The row in `size` equal parts; keys and values of `heads_stride` heads at a time are gathered on every rank."""
    lengths = np.array(pack.lengths, dtype=np.int64)
    lengths[-1] += -lengths.sum() % size
    edges = index_tensor(np.concatenate([[0], np.cumsum(lengths)]), pack.grad.device).to(torch.int32)
    part = int(lengths.sum()) // size
    documents = np.repeat(np.arange(len(lengths)), lengths)
    at = np.concatenate([np.arange(n) for n in lengths])
    mine = slice(rank * part, (rank + 1) * part)
    peer = _peer()
    tables = peer.llama3_flash_attn_prepare_cu_seqlens(edges, causal=True, rank=rank, world_size=size)
    function = peer.llama3_flash_attn_varlen_func
    words = {"heads_k_stride": heads_stride, "local_k_slice": tables[4], "causal": True}
    rows = pack_rows(pack.lengths, documents[mine], at[mine])
    return _way(pack, rows, lambda q, k, v: function(q, k, v, *tables[:4], **words))


def padded_lengths(lengths: tuple[int, ...], multiple: int) -> Ints:
    """Every length rounded up to a multiple."""
    return -(-np.array(lengths, dtype=np.int64) // multiple) * multiple


def pack_rows(lengths: tuple[int, ...], documents: Ints, at: Ints) -> Ints:
    """The pack's row for row `at` of every document; -1 where that is padding."""
    sizes = np.array(lengths, dtype=np.int64)
    starts = np.cumsum(sizes) - sizes
    return np.where(at < sizes[documents], starts[documents] + at, -1)


def _way(pack: WholePack, rows: Ints, run: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Way:
    """`rows`: the pack's row of every local row, -1 for padding. Forward and backward go through autograd."""
    real = np.flatnonzero(rows >= 0)
    own, mine = (index_tensor(x, pack.grad.device) for x in (real, rows[real]))

    def take(x: Tensor) -> Tensor:
        return x.new_zeros((len(rows), *x.shape[1:])).index_copy_(0, own, x[mine])

    inputs = tuple(take(x).requires_grad_() for x in (pack.problem.q, pack.problem.k, pack.problem.v))
    grad = take(pack.grad)

    def forward() -> tuple[Tensor, Any]:
        out = run(*inputs)
        return out.detach(), out

    def backward(out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        grad_q, grad_k, grad_v = torch.autograd.grad(out, inputs, grad, retain_graph=True)
        return grad_q, grad_k, grad_v

    return Way(rows=mine, own=own, forward=forward, backward=backward)


def _peer() -> ModuleType:
    """The package, without its transformers adapter: that one imports a name transformers 5 does not have."""
    adapter = ModuleType(f"{_PACKAGE}.adapters")
    adapter.substitute_hf_flash_attn = adapter.update_ring_flash_attn_params = None  # type: ignore[attr-defined]
    sys.modules.setdefault(adapter.__name__, adapter)
    return importlib.import_module(_PACKAGE)
