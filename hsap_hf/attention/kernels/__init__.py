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

__all__ = ["Kernel", "Problem", "Scores", "all_kernels", "choose_kernel"]


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
    """The kernel named `wanted`, or with "auto" the fastest that can do it. Raises ConfigError with every reason."""
    reasons: list[str] = []
    if wanted not in ("auto", *(kernel.name for kernel in all_kernels())):
        raise ConfigError(f"kernel {wanted!r}: not one of auto, {', '.join(kernel.name for kernel in all_kernels())}.")
    for kernel in all_kernels():
        if wanted in ("auto", kernel.name):
            reason = kernel.missing(scores, head_dim, value_dim, dtype, device_type)
            if reason is None:
                if kernel.name == DenseKernel.name and wanted == "auto" and device_type == "cuda":
                    _say_dense("; ".join(reasons))
                return kernel
            reasons.append(f"{kernel.name}: {reason}")
    raise ConfigError(f"kernel {wanted!r} cannot compute this model's attention. " + "; ".join(reasons) + ".")


@lru_cache
def _say_dense(reasons: str) -> None:
    """Once for the same reasons: whoever trains long documents wants to know before memory ends."""
    logging.getLogger("hsap_hf").warning(
        "attention takes the dense kernel, whose memory grows with the square of a document's length (%s).", reasons
    )
