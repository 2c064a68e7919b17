"""ring-flash-attention's two varlen functions as ways, where that package is installed. Never a dependency.

They run on the kernel that everything else is timed on: the package asks flash-attn for two functions, and gets ours.

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

from hsap_hf.attention import Scores
from hsap_hf.attention.kernels import Kernel, Problem
from hsap_hf.attention.segments import Segments
from hsap_hf.cli.bench.ways import Way
from hsap_hf.cli.bench.whole_pack import WholePack
from hsap_hf.comm.spans import Ints, index_tensor

_PACKAGE = "ring_flash_attn"
_INTERFACE = "flash_attn.flash_attn_interface"


def missing_peer(device: torch.device, kernel: Kernel) -> str | None:
    """Why the peers cannot run here on this kernel, in words; None where they can."""
    if importlib.util.find_spec(_PACKAGE) is None:
        return "not installed: pip install ring-flash-attn==0.1.8"
    if device.type != "cuda":
        return "CUDA only"
    try:
        _peer(kernel)
    except ImportError as error:
        return f"does not load ({error})"
    return None


def zigzag_way(pack: WholePack, rank: int, size: int) -> Way:
    """Every document in 2 * size pieces, of which a rank has one from each end; keys travel round the ring."""
    padded = padded_lengths(pack.lengths, 2 * size)
    width = padded // (2 * size)
    chunks = [np.arange(start, start + n) for n in width for start in (rank * n, (2 * size - 1 - rank) * n)]
    documents = np.repeat(np.arange(len(width)), 2 * width)
    edges = index_tensor(np.concatenate([[0], np.cumsum(2 * width)]), pack.grad.device).to(torch.int32)
    longest = int(2 * width.max())
    function = _peer(pack.kernel).zigzag_ring_flash_attn_varlen_func
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
    peer = _peer(pack.kernel)
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


def _peer(kernel: Kernel) -> ModuleType:
    """The package, without its transformers adapter: that one imports a name transformers 5 does not have."""
    if _PACKAGE not in sys.modules:
        adapter = ModuleType(f"{_PACKAGE}.adapters")
        adapter.substitute_hf_flash_attn = adapter.update_ring_flash_attn_params = None  # type: ignore[attr-defined]
        stand_ins = {adapter.__name__: adapter, _INTERFACE: _interface(kernel)}
        if importlib.util.find_spec("flash_attn") is None:
            stand_ins["flash_attn"] = ModuleType("flash_attn")
        before = {name: sys.modules.get(name) for name in stand_ins}
        sys.modules.update(stand_ins)
        try:
            importlib.import_module(_PACKAGE)
        finally:
            for name, module in before.items():
                sys.modules.pop(name)
                if module is not None:
                    sys.modules[name] = module
    return sys.modules[_PACKAGE]


def _interface(kernel: Kernel) -> ModuleType:
    """flash-attn's functions of these names, as far as the package uses them, on `kernel`."""

    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float,
        softmax_scale: float,
        causal: bool,
        window_size_left: int = -1,
        window_size_right: int = -1,
        alibi_slopes: Tensor | None = None,
        return_softmax: bool = False,
    ) -> tuple[Tensor, Tensor, None, None]:
        segments = Segments((max_seqlen_q,), (max_seqlen_k,), cu_seqlens_q, cu_seqlens_k)
        return *kernel.forward(Problem(q, k, v, segments, causal, Scores(softmax_scale))), None, None

    def backward(
        dout: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        softmax_lse: Tensor,
        dq: Tensor,
        dk: Tensor,
        dv: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float,
        softmax_scale: float,
        causal: bool,
        window_size_left: int = -1,
        window_size_right: int = -1,
        alibi_slopes: Tensor | None = None,
        deterministic: bool = False,
    ) -> None:
        segments = Segments((max_seqlen_q,), (max_seqlen_k,), cu_seqlens_q, cu_seqlens_k)
        problem = Problem(q, k, v, segments, causal, Scores(softmax_scale))
        kernel.backward(problem, dout.contiguous(), out.contiguous(), softmax_lse.contiguous(), (dq, dk, dv))

    module = ModuleType(_INTERFACE)
    module._flash_attn_varlen_forward, module._flash_attn_varlen_backward = forward, backward  # type: ignore[attr-defined]
    module._flash_attn_forward = module._flash_attn_backward = None  # type: ignore[attr-defined]
    return module
