"""flash-attn 2 is called as its functions want it: here they are stand-ins of the same parameters, on the dense kernel.

Of versions 2.7 and 2.8: github.com/Dao-AILab/flash-attention, flash_attn/flash_attn_interface.py.
"""

import sys
from types import ModuleType

import pytest
import torch
from test_flash_attn_3 import problem_of
from test_kernels import random, segments

from hsap_hf.attention import Scores
from hsap_hf.attention.kernels import Problem
from hsap_hf.attention.kernels.dense import DenseKernel
from hsap_hf.attention.kernels.flash_attn_2 import FlashAttn2Kernel


def forward(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p,
    softmax_scale,
    causal,
    window_size_left=-1,
    window_size_right=-1,
    softcap=0.0,
    alibi_slopes=None,
    return_softmax=False,
    block_table=None,
    leftpad_k=None,
    seqused_k=None,
):
    assert (dropout_p, alibi_slopes, return_softmax, block_table, leftpad_k, seqused_k) == (0, None, False, *[None] * 3)
    nothing = q.new_empty(0)
    return *DenseKernel().forward(problem_of(locals() | {"is_causal": causal})), nothing, nothing


def backward(
    dout,
    q,
    k,
    v,
    out,
    softmax_lse,
    dq,
    dk,
    dv,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p,
    softmax_scale,
    causal,
    window_size_left,
    window_size_right,
    softcap,
    alibi_slopes,
    deterministic,
    rng_state=None,
):
    """Writes gradients where it is told, and returns sums nobody needs."""
    assert (dropout_p, alibi_slopes, rng_state) == (0, None, None)
    assert deterministic is torch.are_deterministic_algorithms_enabled()
    assert all(x.stride(-1) == 1 for x in (dq, dk, dv))
    problem = problem_of(locals() | {"is_causal": causal})
    DenseKernel().backward(problem, dout, out, softmax_lse, (dq, dk, dv))
    return q.new_empty(0)


@pytest.fixture(scope="module")
def package():
    """flash_attn, for CPU tensors."""
    interface = ModuleType("flash_attn.flash_attn_interface")
    interface._flash_attn_varlen_forward, interface._flash_attn_varlen_backward = forward, backward
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
        patched.setitem(sys.modules, "flash_attn.flash_attn_interface", interface)
        yield


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("causal", "window", "softcap"), [(True, None, None), (False, None, None), (True, 3, None), (True, 3, 2.0)]
)
@pytest.mark.parametrize("given_room", [True, False])
def test_flash_attn_2_is_asked_for_the_same_attention(causal, window, softcap, given_room, monkeypatch):
    """Keys and values, and the room for their gradients, are slices of what travels, as borrowed ones are."""
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: given_room)
    table = segments((5, 9, 1), (5, 12, 7))
    q, joined, grad = random(15, 4, 8), random(24, 2, 16), random(15, 4, 8)
    problem = Problem(q, joined[..., :8], joined[..., 8:], table, causal, Scores(0.3, window, softcap))
    want, want_lse = DenseKernel().forward(problem)
    room, kv_room = torch.empty_like(q), torch.empty_like(joined)
    out, lse = FlashAttn2Kernel().forward(problem, room if given_room else None)
    rooms = (None, kv_room[..., :8], kv_room[..., 8:]) if given_room else (None, None, None)
    grads = FlashAttn2Kernel().backward(problem, grad, out, lse, rooms)
    torch.testing.assert_close(
        (out, lse, *grads), (want, want_lse, *DenseKernel().backward(problem, grad, want, want_lse))
    )
    if given_room:
        assert out is room
        assert torch.equal(kv_room, torch.cat(grads[1:], -1))
