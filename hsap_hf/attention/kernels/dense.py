"""Every feature on every device, with all scores of one document in memory: the kernel of last resort."""

from __future__ import annotations

import torch
from torch import Tensor

from hsap_hf.attention.kernels.base import Into, Kernel, Problem, Scores, grads_of
from hsap_hf.attention.kernels.sdpa import slices, visible_keys


class DenseKernel(Kernel):
    """Plain matrix products in at least float32; quadratic memory, so for small models and checks."""

    name = "dense"
    has_softcap = True
    has_value_dim = True

    def _forward(self, problem: Problem, into: Tensor | None) -> tuple[Tensor, Tensor]:
        q, k, v = problem.q, problem.k, problem.v
        wide = torch.promote_types(q.dtype, torch.float32)
        out = q.new_empty((*q.shape[:2], v.shape[-1])) if into is None else into
        lse = q.new_empty((q.shape[1], len(q)), dtype=wide)
        for queries, keys in slices(problem.segments):
            score_GRQK, _ = _scores(q[queries].to(wide), k[keys].to(wide), problem.causal, problem.scores)
            part_lse = score_GRQK.logsumexp(-1)
            weight = (score_GRQK - part_lse[..., None]).exp()
            out[queries] = torch.einsum("grqk,kgh->qgrh", weight, v[keys].to(wide)).flatten(1, 2).to(out.dtype)
            lse[:, queries] = part_lse.flatten(0, 1)
        return out, lse

    def _backward(
        self, problem: Problem, grad_out: Tensor, out: Tensor, lse: Tensor, into: Into
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = problem.q, problem.k, problem.v
        wide = torch.promote_types(q.dtype, torch.float32)
        grad_q, grad_k, grad_v = grads_of(problem, into)
        grouped = (k.shape[1], -1)
        for queries, keys in slices(problem.segments):
            part_q, part_k = q[queries].to(wide), k[keys].to(wide)
            score_GRQK, slope = _scores(part_q, part_k, problem.causal, problem.scores)
            weight = (score_GRQK - lse[:, queries].unflatten(0, grouped)[..., None]).exp()
            grad, final = (x[queries].to(wide).unflatten(1, grouped) for x in (grad_out, out))
            delta = (grad * final).sum(-1).permute(1, 2, 0)[..., None]
            grad_weight = torch.einsum("qgrh,kgh->grqk", grad, v[keys].to(wide))
            grad_score = weight * (grad_weight - delta) * slope
            grad_q[queries] = torch.einsum("grqk,kgh->qgrh", grad_score, part_k).flatten(1, 2).to(q.dtype)
            grad_k[keys] = torch.einsum("grqk,qgrh->kgh", grad_score, part_q.unflatten(1, grouped)).to(k.dtype)
            grad_v[keys] = torch.einsum("grqk,qgrh->kgh", weight, grad).to(v.dtype)
        return grad_q, grad_k, grad_v


def _scores(q: Tensor, k: Tensor, causal: bool, scores: Scores) -> tuple[Tensor, Tensor | float]:
    """Masked scores [G, N / G, Q, K] and d score / d (q . k)."""
    score = torch.einsum("qgrh,kgh->grqk", q.unflatten(1, (k.shape[1], -1)), k) * scores.scale
    slope: Tensor | float = scores.scale
    if scores.softcap is not None:
        bent = torch.tanh(score / scores.softcap)
        score, slope = scores.softcap * bent, scores.scale * (1 - bent * bent)
    if causal:
        score = score.masked_fill(~visible_keys(len(q), len(k), scores.window, q.device), -torch.inf)
    return score, slope
