"""Keys and values that travel side by side."""

from __future__ import annotations

from torch import Tensor

Pair = tuple[Tensor, Tensor]
"""Keys [S, G, H] and values [S, G, Hv], or their gradients."""


def split(joined: Tensor, key_dim: int) -> Pair:
    """Keys and values that stand side by side: [R, G, H + Hv] -> [R, G, H] and [R, G, Hv], views."""
    return joined[..., :key_dim], joined[..., key_dim:]
