"""The definition of right: packed causal attention written down once, dense, in the dtype it is given (float64)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def reference_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Sequence[int],
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """q [T, N, H], k [T, G, H], v [T, G, Hv] of whole documents of these lengths -> [T, N, Hv]. Differentiable.

    Row p of a document sees its rows max(0, p - window + 1) ... p; scores are softcap * tanh(scale * q . k / softcap);
    a sink is one more score per head whose value is 0.
    """
    outputs = []
    for q_doc, k_doc, v_doc in zip(*(x.split(list(lengths)) for x in (q, k, v)), strict=True):
        rows = torch.arange(len(q_doc), device=q.device)
        distance = rows[:, None] - rows
        seen = (distance >= 0) & (distance < (window or len(q_doc)))
        repeats = q.shape[1] // k.shape[1]
        scores = torch.einsum("qnh,knh->nqk", q_doc, k_doc.repeat_interleave(repeats, 1)) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(~seen, -torch.inf)
        if sinks is not None:
            scores = torch.cat([scores, sinks[:, None, None].expand(-1, len(q_doc), 1)], -1)
        weights = scores.softmax(-1)[..., : len(q_doc)]
        outputs.append(torch.einsum("nqk,knh->qnh", weights, v_doc.repeat_interleave(repeats, 1)))
    return torch.cat(outputs) if outputs else q.new_zeros((0, q.shape[1], v.shape[-1]))
