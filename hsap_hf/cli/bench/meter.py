"""What a GPU does while something is timed on it: its clock, its power, and whether its NVLinks are awake."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from importlib import import_module
from threading import Event, Thread
from types import TracebackType
from typing import Any, NamedTuple

import torch

_SECONDS = 0.025
"""Between two readings."""


class Reading(NamedTuple):
    """Means, warm-up and waiting for other ranks included; NaN where there is no GPU, or nobody to ask (the package
    nvidia-ml-py)."""

    clock_mhz: float = math.nan
    """Of the multiprocessors."""
    watts: float = math.nan
    """Each the driver's mean of the last second, so the first ones hold some of what ran before."""
    awake: float = math.nan
    """Share of the readings that found the first NVLink at full power; it sleeps where nothing travels."""


class Meter:
    """`with Meter(device) as meter: ...` reads beside it, in a thread; then `meter.reading()`."""

    def __init__(self, device: torch.device) -> None:
        self._ask = _reader(device)
        self._readings: list[Reading] = []
        self._stop = Event()
        self._thread = Thread(target=self._read, daemon=True)

    def __enter__(self) -> Meter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def reading(self) -> Reading:
        """Of all the time inside."""
        if not self._readings:
            return Reading()
        return Reading(*(sum(each) / len(each) for each in zip(*self._readings, strict=True)))

    def _read(self) -> None:
        while self._ask is not None and not self._stop.wait(_SECONDS):
            try:
                self._readings.append(self._ask())
            except Exception:  # whatever it raises, half a reading is none
                self._readings.clear()
                return


def _reader(device: torch.device) -> Callable[[], Reading] | None:
    if device.type != "cuda":
        return None
    try:
        nvml = import_module("pynvml")
        nvml.nvmlInit()
        gpu = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        ask = partial(_ask, nvml, gpu)
        ask()
    except Exception:  # not there, or not allowed: whatever it raises
        return None
    return ask


def _ask(nvml: Any, gpu: Any) -> Reading:
    clock = nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM)
    watts = nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3
    (link,) = nvml.nvmlDeviceGetFieldValues(gpu, [nvml.NVML_FI_DEV_NVLINK_GET_POWER_STATE])
    awake = math.nan if link.nvmlReturn else float(link.value.uiVal == nvml.NVML_NVLINK_POWER_STATE_HIGH_SPEED)
    return Reading(clock, watts, awake)
