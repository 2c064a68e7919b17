"""Kernels agree on every segment shape, partial results merge exactly, and a kernel that cannot do it is refused."""

import sys
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hsap_hf.attention import Scores, all_kernels, choose_kernel
from hsap_hf.attention.kernels import Problem, _say
from hsap_hf.attention.kernels.base import _not_loaded
from hsap_hf.attention.kernels.dense import DenseKernel
from hsap_hf.attention.kernels.flash_attn_4 import FlashAttn4Kernel
from hsap_hf.attention.kernels.sdpa import SdpaKernel
from hsap_hf.attention.merge import add_sinks, merge_rows
from hsap_hf.attention.segments import Segments
from hsap_hf.errors import ConfigError


def segments(q_lengths, k_lengths):
    edges = [torch.tensor([0, *lengths]).cumsum(0).int() for lengths in (q_lengths, k_lengths)]
    return Segments(tuple(q_lengths), tuple(k_lengths), *edges)


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), min_size=1, max_size=4),
    st.booleans(),
    st.one_of(st.none(), st.integers(1, 25)),
)
def test_sdpa_is_dense_on_triangles_rectangles_and_trapezes(shapes, causal, window):
    """Causal segments may have more keys than queries: the last query is aligned with the last key."""
    q_lengths, _ = zip(*shapes, strict=True)
    table = segments(q_lengths, [n + more for n, more in shapes])
    q, k, v = (random(sum(n), h, 8) for n, h in ((q_lengths, 4), (table.k_lengths, 2), (table.k_lengths, 2)))
    scores, grad = Scores(0.3, window if causal else None), random(sum(q_lengths), 4, 8)
    results = []
    for kernel in (SdpaKernel(), DenseKernel()):
        problem = Problem(q, k, v, table, causal, scores)
        out, lse = kernel.forward(problem)
        results.append([out, lse, *kernel.backward(problem, grad, out, lse)])
    for ours, dense in zip(*results, strict=True):
        torch.testing.assert_close(ours, dense, rtol=0, atol=1e-11)


class Eights(SdpaKernel):
    """It takes widths that 8 divides, as kernels on GPUs do."""

    width_multiple = 8

    def _forward(self, problem, into):
        assert problem.q.shape[-1] % 8 == problem.v.shape[-1] % 8 == 0
        return super()._forward(problem, into)


@pytest.mark.parametrize(
    ("kernel", "dim", "value_dim"), [(SdpaKernel(), 6, 4), (SdpaKernel(), 4, 6), (Eights(), 12, 12)]
)
@pytest.mark.parametrize("given_room", [True, False])
def test_heads_of_other_widths_are_filled_up_with_zeros(kernel, dim, value_dim, given_room):
    """And what was filled up is cut off again, in results that are new and in those that go into given tensors."""
    table = segments([5, 3], [9, 3])
    q, k, v, grad = random(8, 4, dim), random(12, 2, dim), random(12, 2, value_dim), random(8, 4, value_dim)
    problem = Problem(q, k, v, table, True, Scores(0.3))
    want, want_lse = DenseKernel().forward(problem)
    room = torch.empty_like(want) if given_room else None
    out, lse = kernel.forward(problem, room)
    rooms = tuple(torch.empty_like(x) if given_room else None for x in (q, k, v))
    grads = kernel.backward(problem, grad, out, lse, rooms)
    wants = (want, want_lse, *DenseKernel().backward(problem, grad, want, want_lse))
    for ours, dense in zip((out, lse, *grads), wants, strict=True):
        torch.testing.assert_close(ours, dense, rtol=0, atol=1e-11)
        assert ours.is_contiguous()
    if given_room:
        assert all(a is b for a, b in zip((out, *grads), (room, *rooms), strict=True))


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6))
def test_two_partial_results_merge_into_the_whole(queries, near, far):
    kernel, scores = DenseKernel(), Scores(0.5)
    q, k, v = random(queries, 2, 4), random(near + far, 1, 4), random(near + far, 1, 4)
    whole, whole_lse = kernel.forward(Problem(q, k, v, segments([queries], [near + far]), False, scores))
    out, lse = torch.zeros_like(q), torch.full((2, queries), -torch.inf, dtype=torch.float64)
    for keys in (slice(0, near), slice(near, near + far)):
        table = segments([queries], [len(k[keys])])
        merge_rows(out, lse, *kernel.forward(Problem(q, k[keys], v[keys], table, False, scores)))
    torch.testing.assert_close(out, whole)
    torch.testing.assert_close(lse, whole_lse)


def test_a_row_that_saw_no_key_yet_merges_without_nan_and_other_rows_stay():
    out, lse = torch.zeros(3, 1, 2), torch.full((1, 3), -torch.inf)
    merge_rows(out[1:2], lse[:, 1:2], torch.ones(1, 1, 2), torch.zeros(1, 1))
    assert out[:, 0, 0].tolist() == [0.0, 1.0, 0.0]
    assert lse.tolist() == [[-torch.inf, 0.0, -torch.inf]]


def test_a_sink_takes_its_share_of_the_weight():
    out, lse = add_sinks(torch.ones(1, 1, 2), torch.zeros(1, 1), torch.zeros(1))
    torch.testing.assert_close(out, torch.full((1, 1, 2), 0.5))
    torch.testing.assert_close(lse, torch.full((1, 1), 2.0).log())


@pytest.mark.parametrize(("major", "chosen"), [(7, "dense"), (8, "torch_flash")])
def test_flash_kernels_need_a_gpu_that_runs_them(monkeypatch, major, chosen):
    monkeypatch.setattr("hsap_hf.attention.kernels.base._not_loaded", lambda package: "it is not installed")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (major, 5))
    assert choose_kernel("auto", Scores(1.0), 64, 64, "float16", "cuda").name == chosen


def test_auto_takes_the_first_kernel_that_can():
    assert choose_kernel("auto", Scores(1.0), 64, 64, "float32", "cpu").name == "sdpa"
    assert choose_kernel("auto", Scores(1.0, softcap=50.0), 64, 64, "float32", "cpu").name == "dense"
    assert choose_kernel("auto", Scores(1.0), 192, 128, "float64", "cpu").name == "sdpa"
    assert choose_kernel("auto", Scores(1.0), 64, 64, "bfloat16", "cuda").name in (
        "flash_attn_4",
        "flash_attn_3",
        "flash_attn_2",
        "torch_flash",
    )
    assert choose_kernel("auto", Scores(1.0), 64, 64, "float32", "cuda").name == "dense"


@pytest.mark.parametrize(
    ("name", "dims", "softcap", "dtype", "device", "why"),
    [
        ("sdpa", (64, 64), None, "bfloat16", "cuda", "it runs on cpu, not on cuda"),
        ("sdpa", (64, 64), 30.0, "float32", "cpu", "it has no softcap"),
        ("torch_flash", (64, 64), None, "float32", "cpu", "it runs on cuda, not on cpu"),
        ("torch_flash", (64, 64), None, "float32", "cuda", "bfloat16 or float16, not in float32"),
        ("torch_flash", (64, 64), 30.0, "float16", "cuda", "it has no softcap"),
        ("torch_flash", (512, 512), None, "float16", "cuda", "at most 256 wide, not 512"),
        ("torch_flash", (64, 257), None, "float16", "cuda", "at most 256 wide, not 264"),
        ("flash_attn_2", (64, 64), None, "float32", "cpu", "it "),
        ("flash_attn_3", (64, 64), None, "float32", "cpu", "it "),
        ("flash_attn_4", (64, 64), None, "float32", "cpu", "it "),
    ],
)
def test_a_kernel_that_cannot_do_it_is_refused_with_the_reason(name, dims, softcap, dtype, device, why):
    with pytest.raises(ConfigError) as caught:
        choose_kernel(name, Scores(1.0, softcap=softcap), *dims, dtype, device)
    assert f"kernel {name!r} cannot compute this model's attention. {name}: " in str(caught.value)
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("major", "dims", "scores", "why"),
    [
        (9, (256, 256), {"softcap": 20.0}, None),
        (9, (192, 128), {}, None),
        (10, (128, 64), {"window": 100}, None),
        (10, (192, 128), {"window": 100}, None),
        (10, (192, 192), {}, None),
        (10, (192, 192), {"window": 100}, "neither window nor softcap for heads 192 wide"),
        (10, (256, 256), {"softcap": 20.0}, "neither window nor softcap for heads 256 wide"),
        (8, (64, 64), {}, "needs a GPU of compute capability 9, 10 or 11, not 8"),
        (12, (64, 64), {}, "needs a GPU of compute capability 9, 10 or 11, not 12"),
    ],
)
def test_flash_attn_4_says_what_it_cannot_do_on_this_gpu(monkeypatch, major, dims, scores, why):
    monkeypatch.setattr("hsap_hf.attention.kernels.base._not_loaded", lambda package: None)
    _on_gpu(monkeypatch, major)
    found = FlashAttn4Kernel().missing(Scores(1.0, **scores), *dims, "bfloat16", "cuda")
    assert (found is None) if why is None else (why in found)


@pytest.mark.parametrize(
    ("major", "dims", "group", "widths"),
    [
        (9, (192, 128), 1, (192, 128)),
        (9, (192, 128), 4, (192, 192)),
        (9, (100, 100), 4, (128, 128)),
        (9, (64, 96), 4, (96, 96)),
        (10, (192, 128), 4, (192, 128)),
        (10, (160, 160), 4, (256, 256)),
        (10, (64, 96), 4, (96, 96)),
    ],
)
def test_flash_attn_4_computes_widths_it_has_kernels_for(monkeypatch, major, dims, group, widths):
    _on_gpu(monkeypatch, major)
    assert FlashAttn4Kernel().widths(*dims, group) == widths


@pytest.mark.parametrize(
    ("major", "group", "width", "lengths", "packed"),
    [
        (9, 4, 128, [1024, 512], False),
        (9, 4, 128, [5000, 17, 1], False),  # the short ones have few keys
        (9, 4, 128, [130] * 20, True),
        (9, 4, 64, [1920], False),
        (9, 4, 64, [1024], True),  # tiles of 192 rows
        (9, 1, 128, [130] * 20, None),
        (10, 4, 128, [1024, 512], None),
    ],
)
def test_flash_attn_4_packs_heads_where_tiles_would_stay_empty(monkeypatch, major, group, width, lengths, packed):
    _on_gpu(monkeypatch, major)
    asked = {}
    package = ModuleType("flash_attn.cute.interface")
    package._flash_attn_fwd = lambda q, k, v, **words: asked.update(words) or (q, q)
    for name in ("flash_attn", "flash_attn.cute"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, package.__name__, package)
    q, k = torch.empty(sum(lengths), 2 * group, width), torch.empty(sum(lengths), 2, width)
    FlashAttn4Kernel().forward(Problem(q, k, k, segments(lengths, lengths), True, Scores(1.0)))
    assert asked["pack_gqa"] is packed


def test_a_kernel_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(ConfigError, match=r"kernel 'foo': not one of auto, flash_attn_4, .*, sdpa, dense"):
        choose_kernel("foo", Scores(1.0), 64, 64, "float32", "cpu")


@pytest.fixture
def broken_package(tmp_path, monkeypatch):
    """A flash-attn that was built for another torch."""
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "__init__.py").write_text("raise ImportError('undefined symbol: _ZN3c10')")
    for name in [name for name in sys.modules if name.split(".")[0] == "flash_attn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    _not_loaded.cache_clear()
    yield
    _not_loaded.cache_clear()


def test_a_package_that_does_not_load_is_passed_over_and_named(broken_package):
    assert choose_kernel("auto", Scores(1.0), 64, 64, "float32", "cpu").name == "sdpa"
    assert choose_kernel("auto", Scores(1.0), 64, 64, "bfloat16", "cuda").name == "torch_flash"
    with pytest.raises(ConfigError, match=r"installed, but does not load \(undefined symbol: _ZN3c10\): pip install"):
        choose_kernel("flash_attn_4", Scores(1.0), 64, 64, "bfloat16", "cuda")


class _EightWide(DenseKernel):
    """Takes heads of multiples of eight, and remembers them."""

    width_multiple = 8
    has_value_dim = True

    def _forward(self, problem, into):
        self.seen = problem
        return super()._forward(problem, into)


def test_heads_beside_ones_that_are_filled_up_are_no_slice():
    """Keys of 5 and values of 8 numbers that stand side by side: a row of values starts at no multiple of eight."""
    joined, table = random(6, 1, 13), segments([6], [6])
    k, v = joined[..., :5], joined[..., 5:]
    kernel, q = _EightWide(), random(6, 2, 5)
    out, _ = kernel.forward(Problem(q, k, v, table, True, Scores(1.0)))
    assert (kernel.seen.k.shape[-1], kernel.seen.v.shape[-1]) == (8, 8)
    assert kernel.seen.v.is_contiguous()
    torch.testing.assert_close(out, DenseKernel().forward(Problem(q, k, v, table, True, Scores(1.0)))[0])


def test_auto_says_once_what_it_takes_and_why_nothing_faster(monkeypatch, caplog):
    caplog.set_level("INFO", "hsap_hf")
    monkeypatch.setattr("hsap_hf.attention.kernels.base._not_loaded", lambda package: "it is not installed")
    _say.cache_clear()
    for _ in range(2):
        choose_kernel("auto", Scores(1.0), 64, 64, "bfloat16", "cuda")
        choose_kernel("auto", Scores(1.0), 64, 64, "float32", "cpu")
    on_gpu, on_cpu = (record.getMessage() for record in caplog.records if record.name == "hsap_hf")
    reasons = "flash_attn_4: it is not installed: pip install --pre flash-attn-4; flash_attn_3: it is not installed: "
    assert on_gpu.startswith(f"attention takes the kernel torch_flash; passed over: {reasons}")
    assert on_cpu == "attention takes the kernel sdpa.", "those of GPUs were no choice"


def _on_gpu(monkeypatch, major):
    monkeypatch.setattr("hsap_hf.attention.kernels.flash_attn_4._capability", lambda: major)


def test_every_kernel_has_a_name_the_configuration_accepts():
    from typing import get_args, get_type_hints

    from hsap_hf import HsapPlugin

    accepted = get_args(get_type_hints(HsapPlugin)["kernel"])
    assert sorted(accepted) == sorted(["auto", *(kernel.name for kernel in all_kernels())])


def test_the_dense_kernel_on_a_gpu_is_said_once_with_the_reason(caplog):
    for _ in range(2):
        assert choose_kernel("auto", Scores(1.0), 64, 64, "float64", "cuda").name == "dense"
    (said,) = [record.getMessage() for record in caplog.records if record.name == "hsap_hf"]
    assert "square of a document's length" in said
    assert "torch_flash: " in said
