"""How the benchmarks time one call: the median of repetitions, after two that warm up."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

_AHEAD_SECONDS = 0.002
"""How far the host runs ahead of the device, as it does inside a model: launches then cost no device time."""


class Times(NamedTuple):
    """Medians, in milliseconds."""

    device: float
    """From the first kernel's start to the last one's end; the host's clock where there is no CUDA."""
    host: float
    """What the host takes to launch it; the same as `device` where there is no CUDA."""


def median_ms(
    run: Callable[[], object],
    repeats: int,
    device: torch.device,
    start_together: Callable[[], object] | None = None,
) -> float:
    """Milliseconds of `run` on the device."""
    return time_call(run, repeats, device, start_together).device


def time_call(
    run: Callable[[], object],
    repeats: int,
    device: torch.device,
    start_together: Callable[[], object] | None = None,
) -> Times:
    """Times of `run`: by events on CUDA, where the device first waits a moment so that launches are not timed.

    start_together: called before every repetition, outside its time; a collective that makes ranks start at once.
    """
    times = []
    for repeat in range(repeats + 2):  # the first two warm up
        if start_together is not None:
            start_together()
        if device.type == "cuda":
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(int(_AHEAD_SECONDS * 1.5e9))  # in clock cycles
            start.record()
            begun = time.perf_counter()
            run()
            host = (time.perf_counter() - begun) * 1e3
            stop.record()
            torch.cuda.synchronize()
            elapsed = start.elapsed_time(stop)
        else:
            begun = time.perf_counter()
            run()
            elapsed = host = (time.perf_counter() - begun) * 1e3
        if repeat >= 2:
            times.append((elapsed, host))
    return Times(*(statistics.median(found) for found in zip(*times, strict=True)))
