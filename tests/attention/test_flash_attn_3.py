"""flash-attn 3 is called as its operators want it: here they are stand-ins of the same schema, on the dense kernel."""

import sys
from types import ModuleType

import pytest
import torch
from test_kernels import random, segments

from hsap_hf.attention import Scores
from hsap_hf.attention.kernels import Problem
from hsap_hf.attention.kernels.dense import DenseKernel
from hsap_hf.attention.kernels.flash_attn_3 import FlashAttn3Kernel
from hsap_hf.attention.segments import Segments

FORWARD = """fwd(Tensor q, Tensor k, Tensor v, Tensor(k_new!)? k_new=None, Tensor(v_new!)? v_new=None, Tensor? q_v=None,
    Tensor(out!)? out=None, Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_k=None, Tensor? cu_seqlens_k_new=None,
    Tensor? seqused_q=None, Tensor? seqused_k=None, int? max_seqlen_q=None, int? max_seqlen_k=None,
    Tensor? page_table=None, Tensor? kv_batch_idx=None, Tensor? leftpad_k=None, Tensor? rotary_cos=None,
    Tensor? rotary_sin=None, Tensor? seqlens_rotary=None, Tensor? q_descale=None, Tensor? k_descale=None,
    Tensor? v_descale=None, float? softmax_scale=None, bool is_causal=False, int window_size_left=-1,
    int window_size_right=-1, int attention_chunk=0, float softcap=0.0, bool is_rotary_interleaved=False,
    Tensor? scheduler_metadata=None, int num_splits=0, bool? pack_gqa=None, int sm_margin=0
    ) -> (Tensor(out!), Tensor, Tensor, Tensor)"""
BACKWARD = """bwd(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor softmax_lse, Tensor(dq!)? dq=None,
    Tensor(dk!)? dk=None, Tensor(dv!)? dv=None, Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_k=None,
    Tensor? seqused_q=None, Tensor? seqused_k=None, int? max_seqlen_q=None, int? max_seqlen_k=None,
    float? softmax_scale=None, bool is_causal=False, int window_size_left=-1, int window_size_right=-1,
    float softcap=0.0, bool deterministic=False, int sm_margin=0
    ) -> (Tensor(dq!), Tensor(dk!), Tensor(dv!), Tensor, Tensor, Tensor, Tensor, Tensor)"""


def problem_of(asked):
    """What an operator is asked, in our words; a window of `left` keys before the query's own is one of left + 1."""
    q_lengths, k_lengths = (asked[name].diff().tolist() for name in ("cu_seqlens_q", "cu_seqlens_k"))
    assert (asked["max_seqlen_q"], asked["max_seqlen_k"]) == (max(q_lengths), max(k_lengths))
    causal, left = asked["is_causal"], asked["window_size_left"]
    assert asked["window_size_right"] == (0 if causal else -1)
    scores = Scores(asked["softmax_scale"], None if left < 0 else left + 1, asked["softcap"] or None)
    table = Segments(tuple(q_lengths), tuple(k_lengths), asked["cu_seqlens_q"], asked["cu_seqlens_k"])
    return Problem(asked["q"], asked["k"], asked["v"], table, causal, scores)


def forward(asked):
    assert asked["num_splits"] == 1
    nothing = asked["q"].new_empty(0)
    return *DenseKernel().forward(problem_of(asked), asked["out"]), nothing, nothing


def backward(asked):
    assert asked["deterministic"] is torch.are_deterministic_algorithms_enabled()
    grads = asked["dq"], asked["dk"], asked["dv"]
    DenseKernel().backward(problem_of(asked), asked["dout"], asked["out"], asked["softmax_lse"], grads)
    return *grads, *(asked["q"].new_empty(0) for _ in range(5))


def by_name(schema, run):
    """`run` of one dictionary as an operator's implementation, which gets what is not the default, in order."""
    wanted = torch._C.parse_schema(f"flash_attn_3::{schema}").arguments
    names = [argument.name for argument in wanted]
    defaults = {argument.name: argument.default_value for argument in wanted}
    return lambda *values, **more: run(defaults | dict(zip(names, values, strict=False)) | more)


@pytest.fixture(scope="module")
def operators():
    """torch.ops.flash_attn_3 for CPU tensors."""
    with torch.library._scoped_library("flash_attn_3", "FRAGMENT") as library:
        for schema, run in ((FORWARD, forward), (BACKWARD, backward)):
            library.define(schema)
            library.impl(schema.partition("(")[0], by_name(schema, run), "CPU")
        names = ("flash_attn_3", "flash_attn_3._C")
        sys.modules |= {name: ModuleType(name) for name in names}
        yield
        for name in names:
            del sys.modules[name]


@pytest.mark.usefixtures("operators")
@pytest.mark.parametrize(
    ("causal", "window", "softcap"), [(True, None, None), (False, None, None), (True, 3, None), (True, 3, 2.0)]
)
@pytest.mark.parametrize("given_room", [True, False])
def test_flash_attn_3_is_asked_for_the_same_attention(causal, window, softcap, given_room, monkeypatch):
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: given_room)
    table = segments((5, 9, 1), (5, 12, 7))
    q, k, v, grad = random(15, 4, 8), random(24, 2, 8), random(24, 2, 8), random(15, 4, 8)
    problem = Problem(q, k, v, table, causal, Scores(0.3, window, softcap))
    want, want_lse = DenseKernel().forward(problem)
    room = torch.empty_like(q) if given_room else None
    out, lse = FlashAttn3Kernel().forward(problem, room)
    rooms = (torch.empty_like(q), None, torch.empty_like(v)) if given_room else (None, None, None)
    grads = FlashAttn3Kernel().backward(problem, grad, out, lse, rooms)
    torch.testing.assert_close(
        (out, lse, *grads), (want, want_lse, *DenseKernel().backward(problem, grad, want, want_lse))
    )
    if given_room:
        assert out is room
        assert grads[0] is rooms[0]


@pytest.mark.parametrize(("major", "why"), [(9, None), (8, "not 8"), (10, "not 10")])
def test_flash_attn_3_runs_on_hopper_only(monkeypatch, major, why):
    monkeypatch.setattr("hsap_hf.attention.kernels.base._not_loaded", lambda package: None)
    monkeypatch.setattr("hsap_hf.attention.kernels.built._refusal", lambda *asked: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (major, 0))
    found = FlashAttn3Kernel().missing(Scores(1.0), 64, 64, "bfloat16", "cuda")
    assert (found is None) if why is None else (why in found)
