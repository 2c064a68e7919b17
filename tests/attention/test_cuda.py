"""On a GPU: half precision stays within twice the error of the same kernel on the whole pack."""

from unittest.mock import patch

import pytest
import torch
from loopback_attention import by_loopback, by_reference, random_pack, relative_errors

from hsap_hf.comm.loopback import run_ranks

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore:.*no current CUDA context"),  # autograd's thread, on its first product
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # flash-attn 4 compiles with much that is deprecated
    pytest.mark.filterwarnings("ignore:Argument aux_data"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]

PACKS = {
    "one document": [3001],
    "long and short": [2500, 3, 700, 1, 1, 64, 129, 900, 17],
    "one-token documents": [1] * 700 + [1500],
    "short": [100, 257, 31, 64] * 12,
    "ten thousand documents": [1, 2, 3, 5] * 2_500 + [900],
    "few queries, many keys": [12_000],
}
both_forms = pytest.mark.parametrize("window", [None, 100_000], ids=["merged", "apart"])
"""Of a slot's tables; the window hides nothing."""
SMALL = ("one document", "long and short", "one-token documents", "short")


def check(name, context_size, ulysses_size=1, num_messages=None, **options):
    """Output and every gradient, as a whole: the norm of the error over the norm of the exact one."""
    pack = random_pack(PACKS[name], device="cuda", **options)
    want = by_reference(pack)
    alone = relative_errors(by_loopback(pack, 1)[0], want)
    shared = relative_errors(by_loopback(pack, context_size, ulysses_size, num_messages=num_messages)[0], want)
    rounding = torch.finfo(pack.q.dtype).eps
    for tensor, (ours, single) in enumerate(zip(shared, alone, strict=True)):
        spare = rounding if tensor == 4 else 1e-6  # gradients of sinks are a handful of rounded sums, not a cloud
        assert ours <= 2 * single + spare, ("out", "grad q", "grad k", "grad v", "grad sinks")[tensor]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("context_size", "ulysses_size"), [(2, 1), (4, 1), (2, 2), (1, 4), (8, 1)])
@both_forms
def test_error_is_at_most_twice_that_of_one_device(name, dtype, context_size, ulysses_size, window):
    check(name, context_size, ulysses_size, heads=16, kv_heads=4, dim=64, dtype=dtype, window=window)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("context_size", "ulysses_size"), [(2, 1), (3, 1), (8, 1), (2, 2)])
def test_heads_of_128_are_as_exact(name, context_size, ulysses_size):
    check(name, context_size, ulysses_size, heads=16, kv_heads=4, dim=128, dtype=torch.bfloat16)


@pytest.mark.parametrize("name", ["one document", "few queries, many keys"])
@pytest.mark.parametrize("num_messages", [2, 4])
def test_keys_in_several_messages_add_no_more_error(name, num_messages):
    check(name, 4, 1, num_messages, heads=8, kv_heads=2, dim=128, dtype=torch.bfloat16)


@pytest.mark.parametrize("window", [1, 100, 2000])
@pytest.mark.parametrize("context_size", [2, 5])
def test_windows_are_exact(window, context_size):
    check("long and short", context_size, heads=8, kv_heads=2, dim=128, dtype=torch.bfloat16, window=window)


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(16, 1, 64), (4, 4, 128), (8, 2, 256)])
def test_head_shapes(heads, kv_heads, dim):
    check("long and short", 3, heads=heads, kv_heads=kv_heads, dim=dim, dtype=torch.bfloat16, sinks=True)


@pytest.mark.parametrize(
    ("head_dim", "value_dim", "kv_heads"), [(192, 128, 8), (192, 128, 2), (64, 96, 2), (100, 100, 2), (100, 128, 2)]
)
def test_heads_of_any_width(head_dim, value_dim, kv_heads):
    widths = {"dim": head_dim, "value_dim": value_dim}
    check("long and short", 3, heads=8, kv_heads=kv_heads, **widths, dtype=torch.bfloat16)


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("ulysses_size", [1, 2])
def test_neither_tables_nor_layers_wait_for_the_device(window, ulysses_size):
    """Kernels compiled, whatever torch knows to wait raises; collectives are the loopback's."""
    options = {"heads": 8, "kv_heads": 2, "dim": 128, "dtype": torch.bfloat16, "window": window}
    pack = random_pack(PACKS["long and short"], device="cuda", **options)
    compiling, _ = by_loopback(pack, 2, ulysses_size)

    def run_strictly(*ranks):
        try:
            torch.cuda.set_sync_debug_mode("error")
            return run_ranks(*ranks)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    with patch("loopback_attention.run_ranks", run_strictly):
        strict, _ = by_loopback(pack, 2, ulysses_size)
    assert all(float((a - b).abs().max()) <= 0.05 for a, b in zip(strict, compiling, strict=True))


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("dim", [64, 128])
def test_softcap(window, dim):
    """On flash-attn where it is installed; else on the dense kernel."""
    options = {"dim": dim, "dtype": torch.bfloat16, "window": window, "softcap": 20.0, "sinks": window is not None}
    check("long and short", 3, heads=8, kv_heads=2, **options)


@pytest.mark.parametrize("name", ["ten thousand documents", "few queries, many keys"])
@both_forms
def test_extreme_packs(name, window):
    check(name, 8, heads=4, kv_heads=2, dim=64, dtype=torch.bfloat16, window=window)
