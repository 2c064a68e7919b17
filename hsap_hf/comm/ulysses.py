"""Ulysses: the ranks of one slot trade heads for tokens, and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hsap_hf.comm.axis import Axis
from hsap_hf.comm.spans import index_tensor
from hsap_hf.errors import ConfigError


@dataclass(frozen=True)
class HeadShare:
    """Which heads each ulysses rank computes: `num_heads / size` query heads and the key-value heads these need."""

    num_kv_heads: int
    kv_index: Tensor | None
    """Key-value heads in the order they are sent, [size * heads per rank]: as many copies of each, one head after the
    other. None where each is sent once."""


def share_heads(num_heads: int, num_kv_heads: int, size: int, device: torch.device) -> HeadShare:
    """Split heads over `size` ranks; key-value heads are replicated where they are fewer than ranks or do not line up.

    Raises ConfigError where `size` does not divide `num_heads`.
    """
    if num_heads % size:
        fits = [u for u in range(1, num_heads + 1) if num_heads % u == 0]
        raise ConfigError(
            f"ulysses_size ({size}) does not divide the model's {num_heads} query heads. "
            f"Use one of {fits}, or leave the ranks to context_size, which has no rule about heads."
        )
    if num_kv_heads % size == 0:
        return HeadShare(num_kv_heads, None)
    needed = np.arange(num_heads) // (num_heads // num_kv_heads)
    if size % num_kv_heads == 0:  # every rank needs exactly one
        needed = needed[:: num_heads // size]
    return HeadShare(num_kv_heads, index_tensor(needed, device))


def scatter_heads(x_TNH: Tensor, rows: list[int], axis: Axis, heads: Tensor | None = None) -> Tensor:
    """Trade heads for tokens: [T, N, H] on each rank -> [T_slot, N_rank, H], tokens in rank order.

    `rows[r]`: the tokens rank r holds. `heads`: the heads to send, [size * N_rank]; all, in order, where None.
    """
    if axis.size == 1:
        return x_TNH
    tokens = len(x_TNH)
    if heads is not None:
        x_TNH = x_TNH.index_select(1, heads)
    send = x_TNH.unflatten(1, (axis.size, -1)).transpose(0, 1).flatten(0, 1)
    return axis.all_to_all(send, [tokens] * axis.size, rows, "trade heads for tokens").wait()


def gather_heads(x_TNH: Tensor, rows: list[int], axis: Axis) -> Tensor:
    """Trade back: [T_slot, N_rank, H] -> [T, size * N_rank, H], heads in rank order. The adjoint of `scatter_heads`."""
    if axis.size == 1:
        return x_TNH
    tokens = rows[axis.rank]
    received = axis.all_to_all(x_TNH, rows, [tokens] * axis.size, "trade tokens for heads").wait()
    return received.unflatten(0, (axis.size, tokens)).transpose(0, 1).flatten(1, 2).contiguous()  # one head is a view


def sum_replicas(grad_TNH: Tensor, share: HeadShare) -> Tensor:
    """Adjoint of replicating key-value heads: the gradients of one head's copies, summed in at least float32."""
    if share.kv_index is None:
        return grad_TNH
    wide = torch.promote_types(grad_TNH.dtype, torch.float32)
    return grad_TNH.to(wide).unflatten(1, (share.num_kv_heads, -1)).sum(2)
