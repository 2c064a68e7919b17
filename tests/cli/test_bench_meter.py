"""What a GPU did while something was timed, asked of stand-ins for NVIDIA's library."""

import math
import sys
import time
from itertools import cycle
from types import SimpleNamespace

import pytest
import torch

from hsap_hf.cli.bench.meter import Meter, Reading


def test_the_meter_asks_for_clock_power_and_link(monkeypatch):
    clocks, states = cycle([1500, 1700]), cycle([0, 1])

    def field(gpu, names):
        assert (gpu, names) == ("GPU-7", ["state"])
        return [SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(uiVal=next(states)))]

    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        NVML_CLOCK_SM=1,
        nvmlDeviceGetClockInfo=lambda gpu, clock: next(clocks),
        nvmlDeviceGetPowerUsage=lambda gpu: 690_000,
        NVML_FI_DEV_NVLINK_GET_POWER_STATE="state",
        NVML_NVLINK_POWER_STATE_HIGH_SPEED=0,
        nvmlDeviceGetFieldValues=field,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: SimpleNamespace(uuid="7"))
    with Meter(torch.device("cuda")) as meter:
        wait_for(lambda: meter.reading().clock_mhz == 1600)
        wait_for(lambda: meter.reading().awake == 0.5)
    assert meter.reading().watts == pytest.approx(690)
    monkeypatch.setattr(nvml, "nvmlDeviceGetPowerUsage", lambda gpu: 1 / 0)
    with Meter(torch.device("cuda")) as meter:
        pass
    assert all(map(math.isnan, meter.reading()))


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_gpu_that_cannot_be_asked_has_no_readings(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with Meter(torch.device("cuda")) as meter:
        pass
    assert all(map(math.isnan, meter.reading()))


def test_readings_that_ended_early_are_none():
    meter = Meter(torch.device("cpu"))
    answers = iter([Reading(1500, 690, 0)])
    meter._ask = lambda: next(answers)
    with meter:
        wait_for(lambda: not meter._thread.is_alive())
    assert all(map(math.isnan, meter.reading()))
