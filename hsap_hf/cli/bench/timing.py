"""How the benchmarks time one call: the median of repetitions, after two that warm up."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def median_ms(
    run: Callable[[], object],
    repeats: int,
    device: torch.device,
    start_together: Callable[[], object] | None = None,
) -> float:
    """Milliseconds of `run`: by events on CUDA, by the clock elsewhere.

    start_together: called before every repetition, outside its time; a collective that makes ranks start at once.
    """
    times = []
    for repeat in range(repeats + 2):  # the first two warm up
        if start_together is not None:
            start_together()
        if device.type == "cuda":
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            stop.record()
            torch.cuda.synchronize()
            elapsed = start.elapsed_time(stop)
        else:
            begun = time.perf_counter()
            run()
            elapsed = (time.perf_counter() - begun) * 1e3
        if repeat >= 2:
            times.append(elapsed)
    return statistics.median(times)
