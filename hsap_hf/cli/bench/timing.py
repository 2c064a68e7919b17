"""How the benchmarks time one call: the median of repetitions, one after the other as layers are."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch

_WARMUP = 2
_AHEAD_CYCLES = 15_000_000
"""About 10 ms."""
_SETTLE_MS = 800.0
"""For as long, calls are made before any counts: a GPU at its power limit is some percent faster for half a second
after a pause, slower for another, and steady from then on (H200; whatever followed a way that leaves it idle)."""
_LAUNCHED = 10
"""At most so many of these calls tell what the host takes: later ones find the queue of launches full, and wait."""
_LEAST_MS = 200.0
"""Short calls are repeated until they take so long."""


class Times(NamedTuple):
    """Medians, in milliseconds."""

    device: float
    """Of one call among others; the host's clock where there is no CUDA."""
    host: float
    """What the host takes to launch it; the same as `device` where there is no CUDA."""


def median_ms(run: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Milliseconds of `run` on the device."""
    return time_call(run, repeats, device).device


def time_call(
    run: Callable[[], object],
    repeats: int,
    device: torch.device,
    together: Callable[[float], float] = lambda ms: ms,
) -> Times:
    """Times of `run`: by events on CUDA, where it is called again and again without a pause.

    together: makes the ranks start at once, and returns the largest of what they give: all must call equally often.
    """
    for _ in range(_WARMUP):
        begun = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
    most = together((time.perf_counter() - begun) * 1e3)
    if device.type != "cuda":
        found = []
        for _ in range(repeats):
            together(0.0)
            found.append(_clocked(run))
        return Times(statistics.median(found), statistics.median(found))
    repeats = max(repeats, int(_LEAST_MS / most))
    host_ahead()
    host_ms = [_clocked(run) for _ in range(max(1, int(_SETTLE_MS / most)))]
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    torch.cuda.synchronize()
    device_ms = [before.elapsed_time(after) for before, after in pairwise(marks)]
    return Times(statistics.median(device_ms), statistics.median(host_ms[:_LAUNCHED]))


def host_ahead() -> None:
    """Let the device wait a moment, so that the host runs ahead of it, as it does in a model."""
    torch.cuda._sleep(_AHEAD_CYCLES)


def _clocked(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return (time.perf_counter() - begun) * 1e3
