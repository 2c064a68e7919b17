"""Attention kernels behind one protocol, and the choice among them."""

from __future__ import annotations

import logging
from functools import lru_cache

from hsap_hf.attention.kernels.base import Kernel, Problem, Scores
from hsap_hf.attention.kernels.dense import DenseKernel
from hsap_hf.attention.kernels.flash_attn_2 import FlashAttn2Kernel
from hsap_hf.attention.kernels.flash_attn_3 import FlashAttn3Kernel
from hsap_hf.attention.kernels.flash_attn_4 import FlashAttn4Kernel
from hsap_hf.attention.kernels.sdpa import SdpaKernel
from hsap_hf.attention.kernels.torch_flash import TorchFlashKernel
from hsap_hf.errors import ConfigError

__all__ = ["Kernel", "Problem", "Scores", "all_kernels", "choose_kernel", "find_kernel"]


def all_kernels() -> tuple[Kernel, ...]:
    """Every kernel, fastest first."""
    return (
        FlashAttn4Kernel(),
        FlashAttn3Kernel(),
        FlashAttn2Kernel(),
        TorchFlashKernel(),
        SdpaKernel(),
        DenseKernel(),
    )


def choose_kernel(wanted: str, scores: Scores, head_dim: int, value_dim: int, dtype: str, device_type: str) -> Kernel:
    """The kernel named `wanted`, or with "auto" the fastest that can do it, and the log says why none before it. Raises
    ConfigError with every reason."""
    if wanted not in ("auto", *(kernel.name for kernel in all_kernels())):
        raise ConfigError(f"kernel {wanted!r}: not one of auto, {', '.join(kernel.name for kernel in all_kernels())}.")
    kernel, reasons = find_kernel(wanted, scores, head_dim, value_dim, dtype, device_type)
    if kernel is None:
        raise ConfigError(f"kernel {wanted!r} cannot compute this model's attention. " + "; ".join(reasons) + ".")
    if wanted == "auto":
        _say(kernel.name, device_type, "; ".join(reasons))
    return kernel


def find_kernel(
    wanted: str, scores: Scores, head_dim: int, value_dim: int, dtype: str, device_type: str
) -> tuple[Kernel | None, list[str]]:
    """The kernel that `choose_kernel` takes, None where none can, and why those before it cannot, those of other
    devices left out where one can."""
    reasons: list[tuple[Kernel, str]] = []
    for kernel in all_kernels():
        if wanted in ("auto", kernel.name):
            reason = kernel.missing(scores, head_dim, value_dim, dtype, device_type)
            if reason is None:
                here = [(passed, why) for passed, why in reasons if passed.device_type in (None, device_type)]
                return kernel, [f"{passed.name}: {why}" for passed, why in here]
            reasons.append((kernel, reason))
    return None, [f"{passed.name}: {why}" for passed, why in reasons]


@lru_cache
def _say(name: str, device_type: str, reasons: str) -> None:
    """Once for the same reasons. The dense kernel is a warning on a GPU: whoever trains long documents wants to know
    before memory ends."""
    log = logging.getLogger("hsap_hf")
    if name == DenseKernel.name and device_type != "cpu":
        log.warning(
            "attention takes the dense kernel, whose memory grows with the square of a document's length (%s).", reasons
        )
    else:
        log.info("attention takes the kernel %s%s", name, f"; passed over: {reasons}." if reasons else ".")
