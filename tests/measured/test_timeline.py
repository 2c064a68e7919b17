"""The program that draws one traced layer takes one layer, and tells apart what ran on which keys."""

import gzip
import json

import pytest
from timeline import Ran, layer, main

OWN, LANE, NCCL = 7, 18, 20
LAYER = [  # name, stream, start and length in microseconds
    ("_take_rows", OWN, 0, 30),
    ("ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)", NCCL, 35, 900),
    ("kernel_cutlass_kernel_flash_attncuteflash_fwd_sm90FlashAttentionForwardSm90", OWN, 40, 5000),
    ("_take_rows", LANE, 950, 20),
    ("kernel_cutlass_kernel_flash_attncuteflash_fwd_sm90FlashAttentionForwardSm90", LANE, 980, 2000),
    ("_merge_rows", LANE, 5050, 90),
    ("void flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<Flash_bwd_kernel_traits>", OWN, 5200, 9000),
]
PERIOD = 20_000


@pytest.fixture
def traces(tmp_path):
    """Of two ranks, three calls each, a file of which is compressed."""
    events = [
        {"cat": "kernel", "name": name, "ts": call * PERIOD + start, "dur": length, "args": {"stream": stream}}
        for call in range(3)
        for name, stream, start, length in LAYER
    ]
    text = json.dumps({"traceEvents": [{"cat": "cpu_op", "name": "aten::empty", "ts": 1, "dur": 2}, *events[::-1]]})
    plain, packed = tmp_path / "rank0.json", tmp_path / "rank1.json.gz"
    plain.write_text(text)
    packed.write_bytes(gzip.compress(text.encode()))
    return [plain, packed]


def test_a_layer_is_one_call_in_ms_since_it_began(traces):
    first, second = map(layer, traces)
    assert first == second
    assert [kernel.row for kernel in first] == [
        "own keys",
        "exchange",
        "own keys",
        "borrowed keys",
        "borrowed keys",
        "borrowed keys",
        "own keys",
    ]
    assert first[1] == Ran("exchange", "exchange", 0.035, 0.935)
    assert [kernel.kind for kernel in first[2:]] == [
        "attention, forward",
        "pick, merge, sum",
        "attention, forward",
        "pick, merge, sum",
        "attention, backward",
    ]


def test_layers_are_drawn_and_counted(traces, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    main(traces, tmp_path / "layer.svg")
    assert "GPU 1: borrowed keys" in (tmp_path / "layer.svg").read_text()
    told = capsys.readouterr().out
    assert told.count("7 launches, 14.20 ms") == 2
    assert "own keys, attention, forward: 1, 5.00 ms" in told
    assert "borrowed keys, pick, merge, sum: 2, 0.11 ms" in told
