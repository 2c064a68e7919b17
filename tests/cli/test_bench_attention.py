"""`hsap bench attention --nproc N` measures what is right, counts what travels, and says what is wrong."""

import json
from contextlib import contextmanager
from datetime import date, datetime, timedelta, timezone
from importlib.metadata import version
from types import SimpleNamespace

import pytest
import torch
from launched import HSAP, launch
from torch.nn import functional

from hsap_hf.cli.bench import peers, ranks, trace
from hsap_hf.cli.bench.beside_copies import _copies
from hsap_hf.cli.bench.entry import METERS, Entry
from hsap_hf.cli.bench.slot_times import slot_runs
from hsap_hf.cli.bench.table import problems, regressions, said
from hsap_hf.cli.bench.timing import Times
from hsap_hf.cli.bench.ways import Way
from hsap_hf.cli.bench.whole_pack import Shape, draw_pack
from hsap_hf.comm.loopback import lone_mesh
from hsap_hf.planner import compile_plan

PACKS = {"mixed": [301, 64, 9, 33, 1, 120], "all_short": [32] * 8}
SIZES = ("--heads", 4, "--kv-heads", 2, "--head-dim", 16, "--repeats", 3)
WAYS = [("hsap", "2x1"), ("hsap", "1x2"), ("ulysses", "1x2")]
WAYS += [("ring zigzag", None), ("ring llama3", None)]
TINY = Shape(4, 2, 8, "auto")


@pytest.fixture(scope="module")
def packs_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("packs") / "packs.json"
    path.write_text(json.dumps({"packs": PACKS}))
    return path


@pytest.fixture(scope="module")
def rows(packs_file):
    """What two gloo ranks measured."""
    asked = (HSAP, "bench", "attention", "--lengths", packs_file, "--nproc", 2, "--split", "2x1", "--split", "1x2")
    asked += ("--trace", packs_file.parent / "traces")
    ended = launch(*asked, *SIZES, "--json", CUDA_VISIBLE_DEVICES="")
    assert ended.code == 0, ended.err
    rows = json.loads(ended.out)
    assert [line for line in ended.err.splitlines() if line.startswith(tuple(PACKS))] == [said(row) for row in rows]
    return rows


@pytest.fixture
def measured(rows):
    return [row for row in rows if row["note"] is None]


def test_every_pack_has_one_row_a_way(rows):
    assert [(row["pack"], row["way"], row["split"]) for row in rows] == [(name, *way) for name in PACKS for way in WAYS]
    assert {row["way"] for row in rows if row["note"]} == {"ring zigzag", "ring llama3"}


def test_flop_are_those_of_the_pairs_that_are_seen(rows):
    """Two products forward, of queries and keys and of scores and values, and five backward."""
    for row in rows:
        pairs = sum(i + 1 for length in PACKS[row["pack"]] for i in range(length))
        assert row["tflop"] == pytest.approx([4 * 4 * 16 * pairs / 1e12, 10 * 4 * 16 * pairs / 1e12])


def test_numbers_of_messages_are_rows_of_their_own():
    request = SimpleNamespace(splits=[(2, 1)], messages=[1, 2], beside_copies=False, shape=Shape(3, 1, 8, "auto"))
    bench = SimpleNamespace(
        request=request, size=2, mesh=lone_mesh(), meshes={(2, 1): lone_mesh()}, device=torch.device("cpu")
    )
    pack = draw_pack([5], request.shape, bench.device)
    names = [name for name, _, _ in ranks._ways(bench, pack)]
    assert names == ["hsap, messages: 1", "hsap, messages: 2"]
    request.beside_copies = True
    beside = ["whole pack beside copies", "whole pack beside own copies"]
    assert [name for name, _, _ in ranks._ways(bench, pack)] == names + beside


def test_every_result_is_that_of_one_rank(measured):
    assert max(max(row["differences"].values()) for row in measured) < 1e-4
    assert all(set(row["differences"]) == {"out", "dq", "dk", "dv"} for row in measured)


def test_what_ranks_receive_is_what_the_plan_says(measured):
    assert [row["received_rows"] for row in measured] == [row["planned_rows"] for row in measured]
    assert [row["received_bytes"] for row in measured] == [row["planned_bytes"] for row in measured]
    assert all(sum(row["received_bytes"]) > 0 for row in measured if row["pack"] == "mixed")


def test_a_pack_without_cut_documents_moves_nothing_between_slots(measured):
    moved = {row["split"]: row["received_bytes"] for row in measured if row["pack"] == "all_short"}
    assert moved["2x1"] == [0, 0]
    # both ranks: half of 256 tokens from the other, of 2 query heads (q, grad) and 1 key-value head; and back
    assert moved["1x2"] == [2 * 128 * (2 * 2 + 2 * 1) * 16 * 4] * 2


def test_the_ratio_says_how_near_to_ideal(measured):
    for row in measured:
        ideal = row["ideal_forward_ms"] + row["ideal_backward_ms"]
        assert row["ratio"] == pytest.approx(ideal / (row["forward_ms"] + row["backward_ms"]))
        assert row["ratio"] > 0


def test_rows_say_what_they_were_measured_on(rows):
    for row in rows:
        assert (row["ranks"], row["device"], row["dtype"], row["link"]) == (2, "cpu", "float32", "gloo")
        assert (row["torch"], row["tokens"]) == (torch.__version__, sum(PACKS[row["pack"]]))
        assert (row["kernel"], row["kernel_version"]) == ("sdpa", f"torch {version('torch')}")
        assert timedelta(0) <= datetime.now(timezone.utc).date() - date.fromisoformat(row["date"]) <= timedelta(days=1)


def test_a_ratio_that_fell_is_named(measured):
    slower = [row | {"ratio": 0.9 * row["ratio"]} for row in measured]
    ours = [row for row in measured if row["way"] == "hsap"]
    assert len(regressions(slower, measured)) == len(ours) > 0
    assert regressions([row | {"ratio": 0.98 * row["ratio"]} for row in measured], measured) == []
    (said,) = regressions(slower, [row | {"device": "another"} for row in measured])
    assert "no comparison" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nproc", 2, "--split", "3x1"], "--split 3x1 = 3: context x ulysses must be the 2 ranks"),
        (["--nproc", 2, "--split", "two"], "--split two: context x ulysses"),
        (["--nproc", 3, "--split", "1x3"], "does not divide the model's 4 query heads"),
        (["--nproc", 2, "-c", 2], "--split"),
        (["--nproc", 2, "--kernel", "flash_attn_4"], "flash_attn_4"),
        (["--nproc", 2, "--plot", "picture.txt"], "pip install|ends in .svg"),
        (["--split", "2x1", "--slow-link"], "--split, --slow-link: only with --nproc"),
        (["--beside-copies", "--zeros"], "--beside-copies, --zeros: only with --nproc"),
        (["--nproc", 2, "--beside-copies"], "--beside-copies needs two GPUs"),
        (["-c", 2, "--heads", 3], "query heads a multiple of key-value heads"),
        (["-c", 2, "--head-dim", 0], "all at least 1"),
    ],
)
def test_what_cannot_run_is_refused_before_a_rank_starts(hsap, monkeypatch, packs_file, words, said):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("hsap_hf.train.launch.launch_ranks", lambda *_: pytest.fail("ranks were started"))
    code, out, err = hsap("bench", "attention", "--lengths", packs_file, *SIZES, *words)
    assert (code, out) == (2, "")
    assert any(part in err for part in said.split("|")), err


@pytest.mark.parametrize(("reachable", "disabled"), [(False, "0"), (True, "1")])
def test_copies_between_gpus_that_do_not_read_each_other_are_refused(
    hsap, monkeypatch, packs_file, reachable, disabled
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.can_device_access_peer", lambda *_: reachable)
    monkeypatch.setenv("NCCL_P2P_DISABLE", disabled)
    words = ["--lengths", packs_file, *SIZES, "--nproc", 2, "--beside-copies"]
    code, _, err = hsap("bench", "attention", *words)
    assert code == 2
    assert "--beside-copies needs two GPUs" in err


def test_slots_alone_stand_beside_their_kernels(hsap, monkeypatch, packs_file):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, out, _ = hsap("bench", "attention", "--lengths", packs_file, "-c", 2, *SIZES, "--json")
    found = json.loads(out)
    assert (code, [(row["pack"], row["slots"]) for row in found]) == (0, [(name, 2) for name in PACKS])
    for row in found:
        ideal = row["ideal_forward_ms"] + row["ideal_backward_ms"]
        assert row["ratio"] >= 0.999 * ideal / (row["forward_ms"] + row["backward_ms"])  # one slot need not be both
        assert min(row["kernel_forward_ms"], row["kernel_backward_ms"]) > 0


def test_the_kernels_of_a_slot_are_those_it_called():
    pack = draw_pack(PACKS["mixed"], TINY, torch.device("cpu"))
    plan = compile_plan(PACKS["mixed"], 2)
    forward, _, kernel_forward, kernel_backward = slot_runs(pack, plan, 0, TINY)
    (local, _), (remote, _) = kernel_forward()
    assert len(local) == len(forward()[0]) == plan.tokens(0)
    assert 0 < len(remote) < plan.tokens(0)
    assert [len(grad_q) for grad_q, *_ in kernel_backward()] == [len(remote), len(local)]


def test_only_the_slow_link_switches_peer_to_peer_off(hsap, monkeypatch, packs_file):
    seen = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("hsap_hf.train.launch.launch_ranks", lambda *words: seen.append(words[-1]) or 7)
    for words in ([], ["--slow-link"]):
        assert hsap("bench", "attention", "--lengths", packs_file, *SIZES, "--nproc", 2, *words)[0] == 7
    assert seen == [{}, {"NCCL_P2P_DISABLE": "1"}]


def test_a_wrong_result_and_an_unplanned_byte_are_said(measured):
    good = measured[0]
    assert problems([good]) == []
    assert "dk by nan" in problems([good | {"differences": {"out": 0.0, "dk": float("nan")}}])[0]
    assert "out by 0.001" in problems([good | {"differences": {"out": 1e-3}}])[0]
    assert problems([good | {"dtype": "bfloat16", "differences": {"out": 1e-3}}]) == []
    said = problems([good | {"received_bytes": [8, 0], "planned_bytes": [0, 0]}])
    assert said == ["mixed, hsap 2x1: ranks received [8, 0] bytes from others, the plan says [0, 0]."]


def test_the_table_has_a_line_a_way(rows, capsys, monkeypatch):
    from hsap_hf.cli.bench.table import show_ranks

    monkeypatch.setenv("COLUMNS", "200")
    show_ranks(rows)
    shown = capsys.readouterr().out
    assert shown.count("not installed") + shown.count("CUDA only") == 2 * len(PACKS)
    assert shown.count("hsap 2x1") == len(PACKS)
    assert "no result is proven" not in shown
    assert "nvidia-ml-py" not in shown


def test_the_table_of_a_gpu_fits_a_narrow_terminal(rows, capsys, monkeypatch):
    from hsap_hf.cli.bench.table import show_ranks

    monkeypatch.setenv("COLUMNS", "80")
    met = {"ideal_clock_mhz": [1604.0] * 2, "ideal_watts": [690.0] * 2, "clock_mhz": [1568.0] * 2, "watts": [691.0] * 2}
    times = {"forward_ms": 112.34, "backward_ms": 301.21, "ratio": 0.951, "launch_ms": 2.34, "tflop": (161.1, 402.8)}
    times |= {"ideal_forward_ms": 107.35, "ideal_backward_ms": 291.7, "received_bytes": [2**29, 2**29]}
    show_ranks([next(row for row in rows if row["way"] == "hsap") | met | times])
    shown = capsys.readouterr().out
    assert " ideal     107.35  291.70  1.000  750 690          1604  690 " in shown
    assert " hsap 2x1  112.34  301.21  0.951  717 669    2.34  1568  691 " in shown
    assert " 512 \n" in shown
    assert "\u2026" not in shown, "nothing is cut off"
    show_ranks([row | {"zeros": True, "device": "a GPU"} for row in rows])
    shown = capsys.readouterr().out
    assert "no result is proven" in shown
    assert "pip install nvidia-ml-py" in shown


def test_efficiency_is_drawn(rows, tmp_path):
    pytest.importorskip("matplotlib")
    from hsap_hf.cli.bench.picture import draw_efficiency

    draw_efficiency(rows, tmp_path / "efficiency.svg")
    assert (tmp_path / "efficiency.svg").read_text().startswith("<?xml")


def packed_attention(q, k, v, edges, longest, causal):
    """What the peers' functions compute on one rank."""
    assert causal
    assert longest == max(edges.diff())
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    parts = [x.split(edges.diff().tolist()) for x in (q, k, v)]
    outs = [
        functional.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in part), is_causal=True)[0]
        for part in zip(*parts, strict=True)
    ]
    return torch.cat(outs, 1).transpose(0, 1)


@pytest.fixture
def peer(monkeypatch):
    """Stands in for the package that is not installed here."""

    def prepare(edges, causal, rank, world_size):
        assert edges[-1] % world_size == 0
        return edges, edges, int(edges.diff().max()), int(edges.diff().max()), slice(None)

    def llama3(q, k, v, cu_q, cu_k, max_q, max_k, heads_k_stride, local_k_slice, causal):
        return packed_attention(q, k, v, cu_q, max_q, causal)

    module = SimpleNamespace(
        zigzag_ring_flash_attn_varlen_func=packed_attention,
        llama3_flash_attn_prepare_cu_seqlens=prepare,
        llama3_flash_attn_varlen_func=llama3,
    )
    monkeypatch.setattr(peers, "_peer", lambda kernel: module)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_peers_compute_every_row_once(peer, size):
    pack = draw_pack([301, 64, 9, 33, 1], TINY, torch.device("cpu"))
    for make in (peers.zigzag_way, lambda *words: peers.llama3_way(*words, 1)):
        ways = [make(pack, rank, size) for rank in range(size)]
        assert torch.cat([way.rows for way in ways]).sort().values.tolist() == list(range(408))


def test_padding_changes_no_peers_result(peer):
    pack = draw_pack([301, 64, 9, 33, 1], TINY, torch.device("cpu"))
    out, lse = pack.forward()
    expected = (out, *pack.backward(out, lse))
    for way in (peers.zigzag_way(pack, 0, 1), peers.llama3_way(pack, 0, 1, 2)):
        out, saved = way.forward()
        for found, wanted in zip((out, *way.backward(saved)), expected, strict=True):
            torch.testing.assert_close(found[way.own], wanted[way.rows], rtol=1e-4, atol=1e-5)


def test_who_computes_the_whole_pack_on_every_rank_counts_once():
    class Bench:
        device = torch.device("cpu")

        def time(self, run):
            return Times(10.0, 1.0)

        def gather(self, numbers):
            return torch.tensor([numbers, numbers])

    way = Way(torch.arange(3), slice(None), lambda: None, lambda saved: None, copies=2)
    entry = Entry("whole", None, way, None, {})
    entry.time(Bench())
    row = entry.row()
    assert (row["forward_ms"], row["backward_ms"], row["launch_ms"]) == (5.0, 5.0, 2.0)
    assert [row[name] for name in METERS] == [None] * 3, "a CPU has no meter"


def test_what_goes_on_beside_a_way_lasts_as_long_as_its_timing():
    told = []

    class Bench:
        device = torch.device("cpu")

        def time(self, run):
            told.append("timed")
            return Times(10.0, 1.0)

        def gather(self, numbers):
            told.append("gathered")

    @contextmanager
    def beside():
        told.append("begins")
        yield
        told.append("ends")

    way = Way(torch.arange(3), slice(None), lambda: None, lambda saved: None, during=beside)
    Entry("whole", None, way, None, {}).time(Bench())
    assert told == ["begins", "timed", "timed", "ends", "gathered"]


def test_copies_that_fail_are_not_taken_for_copies():
    with pytest.raises((AssertionError, RuntimeError, ValueError)), _copies(torch.zeros(3)):  # no GPU is called cpu
        pass


def test_zeros_are_zeros_and_no_row_of_random_numbers_is_compared_with_one_of_them(measured):
    pack = draw_pack([5], TINY, torch.device("cpu"), zeros=True)
    assert not any(x.any() for x in (pack.problem.q, pack.problem.k, pack.problem.v, pack.grad))
    (said,) = regressions([row | {"zeros": True} for row in measured], measured)
    assert "no comparison" in said


def test_every_way_and_rank_leaves_a_trace(rows, packs_file):
    names = {path.stem for path in (packs_file.parent / "traces").iterdir()}
    ways = ("hsap-2x1", "hsap-1x2", "ulysses-1x2")
    assert names == {f"{pack}-{way}-rank{rank}" for pack in PACKS for way in ways for rank in range(2)}
    seen = {}
    for pack in PACKS:
        events = json.loads((packs_file.parent / "traces" / f"{pack}-hsap-2x1-rank0.json").read_text())["traceEvents"]
        seen[pack] = sum("all_to_all" in event["name"] or "alltoall" in event["name"] for event in events)
    assert seen["mixed"] > 0
    assert seen["all_short"] == 0, "nothing is cut, so no exchange is posted"
    assert all(row["trace"]["launches"] is None for row in rows if row["note"] is None), "CPUs launch nothing"


def test_what_runs_beside_the_exchange_hides_it():
    found = trace.summary([(10, 20), (15, 30), (100, 110)], [(0, 12), (11, 14), (25, 105), (200, 210)])
    assert found == {"launches": 4, "exchange_ms": 0.03, "hidden": (4 + 5 + 5) / 30}
    assert trace.summary([], [(0, 1)]) == {"launches": 1, "exchange_ms": 0.0, "hidden": None}


def test_gradients_that_travel_do_not_hide_the_exchange():
    names = {"ncclDevKernel_SendRecv": (0, 10), "ncclDevKernel_AllReduce": (0, 10), "flash_fwd": (4, 10)}
    device = torch.autograd.DeviceType.CUDA
    events = [
        SimpleNamespace(name=name, device_type=device, time_range=SimpleNamespace(start=start, end=end))
        for name, (start, end) in names.items()
    ]
    exchange, others = trace.device_spans(SimpleNamespace(events=lambda: events), trace.EXCHANGE)
    assert (exchange, others) == ([(0, 10)], [(4, 10)])
