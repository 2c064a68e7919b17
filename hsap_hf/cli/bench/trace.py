"""A profiler's trace of forwards and backwards: how much is launched, and what ran beside the exchange."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from hsap_hf.cli.bench.timing import host_ahead

_CALLS = 6
Span = tuple[float, float]
"""Start and end of a kernel."""
_MESSAGES = "nccl"
"""In the name of every kernel that moves something between ranks."""
EXCHANGE = "SendRecv"
"""In the name of NCCL's kernel that moves keys; gradients of weights are reduced by others."""


def trace(run: Callable[[], object], path: Path) -> dict[str, Any]:
    """Write what the profiler sees of `run`, called again and again, into `path` (for ui.perfetto.dev).

    Of one call: launches, kernels and copies on the device, those of the exchange left out; exchange_ms, time in which
    keys travelled. hidden: the share of it in which something else ran. All None where there is no CUDA device.
    """
    cuda = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as found:
        if cuda:
            host_ahead()
        for _ in range(_CALLS):
            run()
        if cuda:
            torch.cuda.synchronize()
    path.parent.mkdir(parents=True, exist_ok=True)
    found.export_chrome_trace(str(path))
    if not cuda:
        return {"launches": None, "exchange_ms": None, "hidden": None}
    totals = summary(*device_spans(found, _MESSAGES))
    return totals | {"launches": totals["launches"] // _CALLS, "exchange_ms": totals["exchange_ms"] / _CALLS}


def device_spans(found: profile, words: str) -> tuple[list[Span], list[Span]]:
    """Kernels on the device with `words` in their name, and all that compute, in microseconds."""
    kernels = [
        (event.name, (event.time_range.start, event.time_range.end))
        for event in found.events()
        if event.device_type == DeviceType.CUDA
    ]
    return (
        [span for name, span in kernels if words in name],
        [span for name, span in kernels if "nccl" not in name],  # gradients that travel hide nothing either
    )


def summary(exchange: Sequence[Span], others: Sequence[Span]) -> dict[str, Any]:
    """What `trace` returns, from kernels in microseconds."""
    travelling, busy = joined(exchange), joined(others)
    microseconds = sum(stop - start for start, stop in travelling)
    hidden = sum(max(0.0, min(stop, end) - max(start, begin)) for start, stop in travelling for begin, end in busy)
    return {
        "launches": len(others),
        "exchange_ms": microseconds / 1e3,
        "hidden": hidden / microseconds if microseconds else None,
    }


def joined(spans: Iterable[Span]) -> list[Span]:
    """The same time as spans that do not overlap, ascending."""
    found: list[Span] = []
    for start, stop in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], stop))
        else:
            found.append((start, stop))
    return found
