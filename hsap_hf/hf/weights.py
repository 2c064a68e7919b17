"""Whether ranks that should hold the same weights still do."""

from __future__ import annotations

from torch import nn

_ENTRIES = 16
"""Of every parameter; enough to notice gradients that were not summed over all ranks."""


def sampled_size(model: nn.Module) -> float:
    """The sum of the absolute values of a few entries of every trained parameter, at least 0.

    0 where weights are sharded: ranks then hold different ones. Waits for the device.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if any(hasattr(parameter, "device_mesh") for parameter in trained):
        return 0.0
    return float(sum(parameter.detach().flatten()[:_ENTRIES].double().abs().sum() for parameter in trained))
