"""CPU: torch's own flash kernel, one document at a time. Memory linear in length (a window needs a mask)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hsap_hf.attention.kernels.base import Into, Kernel, Problem, Scores, grads_of
from hsap_hf.attention.segments import Segments

_flash_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class SdpaKernel(Kernel):
    """`aten._scaled_dot_product_flash_attention_for_cpu`, which also returns the log-sum-exp."""

    name = "sdpa"
    device_type = "cpu"

    def _forward(self, problem: Problem, into: Tensor | None) -> tuple[Tensor, Tensor]:
        q, k, v = problem.q, problem.k, problem.v
        out = torch.empty_like(q) if into is None else into
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        lse = q.new_empty((q.shape[1], len(q)), dtype=wide)
        for queries, keys in slices(problem.segments):
            part, part_lse = _flash_forward(
                *_heads_first(q[queries], k[keys], v[keys]),
                0.0,
                problem.causal and not _needs_mask(queries, keys, problem.scores),
                attn_mask=_mask(queries, keys, problem),
                scale=problem.scores.scale,
            )
            out[queries] = part[0].transpose(0, 1)
            lse[:, queries] = part_lse[0]
        return out, lse

    def _backward(
        self, problem: Problem, grad_out: Tensor, out: Tensor, lse: Tensor, into: Into
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = problem.q, problem.k, problem.v
        grad_q, grad_k, grad_v = grads_of(problem, into)
        for queries, keys in slices(problem.segments):
            part_q, part_k, part_v = _flash_backward(
                grad_out[queries].transpose(0, 1)[None],
                *_heads_first(q[queries], k[keys], v[keys]),
                out[queries].transpose(0, 1)[None],
                lse[:, queries].transpose(0, 1).contiguous().transpose(0, 1)[None],
                0.0,
                problem.causal and not _needs_mask(queries, keys, problem.scores),
                attn_mask=_mask(queries, keys, problem),
                scale=problem.scores.scale,
            )
            grad_q[queries] = part_q[0].transpose(0, 1)
            for grad, part in ((grad_k, part_k), (grad_v, part_v)):
                grad[keys] = part[0].unflatten(0, (k.shape[1], -1)).sum(1).transpose(0, 1)
        return grad_q, grad_k, grad_v


def slices(segments: Segments) -> Iterator[tuple[slice, slice]]:
    q_at = k_at = 0
    for q_length, k_length in zip(segments.q_lengths, segments.k_lengths, strict=True):
        yield slice(q_at, q_at + q_length), slice(k_at, k_at + k_length)
        q_at, k_at = q_at + q_length, k_at + k_length


def _heads_first(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[T, N, H] -> [1, N, T, H]; key-value heads repeated to the number of query heads."""
    repeats = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(repeats, dim=1) if repeats > 1 else x for x in (k, v))
    return q.transpose(0, 1)[None], k.transpose(0, 1)[None], v.transpose(0, 1)[None]


def _needs_mask(queries: slice, keys: slice, scores: Scores) -> bool:
    """This kernel's own causal mask aligns the first query with the first key and knows no window."""
    return scores.window is not None or queries.stop - queries.start != keys.stop - keys.start


def _mask(queries: slice, keys: slice, problem: Problem) -> Tensor | None:
    if not problem.causal or not _needs_mask(queries, keys, problem.scores):
        return None
    num_q, num_k = queries.stop - queries.start, keys.stop - keys.start
    seen = visible_keys(num_q, num_k, problem.scores.window, problem.q.device)
    return torch.zeros((), dtype=problem.q.dtype).masked_fill(~seen, -torch.inf)


def visible_keys(num_q: int, num_k: int, window: int | None, device: torch.device) -> Tensor:
    """[num_q, num_k] bool: causal, last query aligned with last key, at most the last `window` keys."""
    query_row = torch.arange(num_k - num_q, num_k, device=device)[:, None]
    distance = query_row - torch.arange(num_k, device=device)
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)
