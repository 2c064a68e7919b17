"""The proof: one step with HSAP against plain data parallelism on the same batches, computed on the spot."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hsap_hf.errors import ConfigError
from hsap_hf.hf import HsapHandle, causal_model
from hsap_hf.hf.documents import IGNORED_LABEL
from hsap_hf.planner import Plan

TOLERANCE = {"float64": 1e-10, "float32": 1e-5, "bfloat16": 2.5e-2, "float16": 5e-3}
"""Largest relative difference of loss and gradients that passes, by the type the step computes in."""


@dataclass(frozen=True)
class Proof:
    """What was measured, over all ranks."""

    loss_hsap: float
    loss_stock: float
    grad_difference: float
    """Norm of the difference over the norm of the gradient, of the parameter where it is largest."""
    worst_parameter: str
    leak: float
    """Largest gradient that any other document's tokens get from one document's loss: must be 0.0."""
    own_signal: float
    """The same for the documents' own tokens: must not be 0.0, or the leak test would prove nothing."""
    num_probed: int
    """Documents whose leak was measured."""
    received_tokens: float
    """Tokens whose keys and values a rank received per layer, mean over ranks, counted at the collectives."""
    ring_tokens: float
    """What a ring would have moved to a rank: every token of the pack that it does not hold."""
    tolerance: float

    @property
    def passed(self) -> bool:
        """All of it holds."""
        close = abs(self.loss_hsap - self.loss_stock) <= self.tolerance * max(1.0, abs(self.loss_stock))
        return close and self.grad_difference <= self.tolerance and self.leak == 0.0 and self.own_signal > 0.0


def prove(handle: HsapHandle, model: nn.Module, batch: dict[str, Tensor], dtype: str) -> Proof:
    """Compare on this rank's `batch`; every rank of the job calls it. HSAP is off afterwards.

    The stock step is the model's own attention on what each rank brought, losses and gradients summed over ranks.
    `dtype` is the type the step computes in, under autocast where the weights have another. Dropout is off; activation
    checkpointing stays as it is. Raises ConfigError for sharded parameters, and for a pack without supervised tokens.
    """
    assert handle.mesh is not None
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        raise ConfigError("the proof needs whole parameters, these are sharded. Run `hsap verify` without FSDP.")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    device = batch["labels"].device
    mixed = torch.autocast(device.type, getattr(torch, dtype), enabled=dtype != _weights(model))
    count = _sum_over_ranks((batch["labels"][:, 1:] != IGNORED_LABEL).sum())
    if not count:
        raise ConfigError(
            "the proof's pack has no token whose label counts (all are -100, or every document has one token): nothing "
            "can be compared. Look at the data and its tokenizer."
        )
    traffic = handle.mesh.context.traffic
    before = traffic.rows
    with mixed:
        loss = model(**batch, num_items_in_batch=count).loss
    received = (traffic.rows - before) / causal_model(model).config.num_hidden_layers
    loss_hsap, grads_hsap = _sum_over_ranks(loss.detach()), _gradients(model, loss)

    plan = handle.plan
    assert plan is not None
    # always two, so that every replica posts the same collectives
    probed = [plan.lengths.index(max(plan.lengths)), plan.lengths.index(min(plan.lengths))]
    with mixed:
        leaks = [_leak(handle, model, batch, document) for document in probed]
    pack_tokens, slot_tokens = sum(plan.lengths), plan.tokens(handle.mesh.context.rank)

    handle.disable()
    with mixed:
        loss = model(**_not_empty(batch), num_items_in_batch=count, use_cache=False).loss
    loss_stock, grads_stock = _sum_over_ranks(loss.detach()), _gradients(model, loss)
    differences = {name: _relative(grads_hsap[name], grads_stock[name]) for name in grads_stock}
    worst = max(differences, key=lambda name: differences[name])
    ranks = dist.get_world_size()
    return Proof(
        loss_hsap=float(loss_hsap),
        loss_stock=float(loss_stock),
        grad_difference=differences[worst],
        worst_parameter=worst,
        leak=max(leak for leak, _ in leaks),
        own_signal=max(signal for _, signal in leaks),
        num_probed=len(set(probed)),
        received_tokens=float(_sum_over_ranks(torch.tensor(received, device=device))) / ranks,
        ring_tokens=float(_sum_over_ranks(torch.tensor(float(pack_tokens - slot_tokens), device=device))) / ranks,
        tolerance=TOLERANCE[dtype],
    )


def _weights(model: nn.Module) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def _not_empty(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A rank that brought nothing gives the stock model one token that does not count."""
    if batch["input_ids"].numel():
        return batch
    zero = torch.zeros((1, 1), dtype=torch.int64, device=batch["input_ids"].device)
    return {"input_ids": zero, "position_ids": zero, "labels": zero + IGNORED_LABEL}


def _gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Gradients of all trained parameters, summed over ranks in at least float32; zeros where a loss has none."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    grads = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    return {
        name: _sum_over_ranks(torch.zeros_like(parameter) if grad is None else grad)
        for (name, parameter), grad in zip(trained.items(), grads, strict=True)
    }


def _relative(ours: Tensor, theirs: Tensor) -> float:
    """||ours - theirs|| / ||theirs||; 0 where both are zero, infinite where only theirs is."""
    size, difference = float(theirs.norm()), float((ours - theirs).norm())
    return difference / size if size else math.inf if difference else 0.0


def _leak(handle: HsapHandle, model: nn.Module, batch: dict[str, Tensor], document: int) -> tuple[float, float]:
    """Largest gradient at (other documents' tokens, the document's own tokens) of the loss of one document."""
    assert handle.mesh is not None
    captured: list[Tensor] = []

    def capture(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        captured.append(out if out.requires_grad else out.requires_grad_())  # LoRA freezes the embedding
        return out

    hook = causal_model(model).get_input_embeddings().register_forward_hook(capture)
    try:
        loss = model(**{**batch, "labels": _labels_of(handle, batch, document)}).loss
    finally:
        hook.remove()
    (grad,) = torch.autograd.grad(loss, captured[0])
    plan = handle.plan
    assert plan is not None
    owners = _documents_of_rows(plan, handle.mesh.context.rank, handle.mesh.ulysses.rank, handle.mesh.ulysses.size)
    size = grad[0, : len(owners)].abs().amax(-1)
    own = owners.to(size.device) == document
    return _max_over_ranks(size[~own]), _max_over_ranks(size[own])


def _labels_of(handle: HsapHandle, batch: dict[str, Tensor], document: int) -> Tensor:
    """The batch's labels with all but one document's masked; `document` is numbered over the group."""
    assert handle.mesh is not None
    edges = batch["cu_seqlens"].tolist()
    counts = handle.mesh.group_host.all_gather(torch.tensor([len(edges) - 1]), "count documents").flatten().tolist()
    own = document - sum(counts[: handle.mesh.group.rank])
    labels = torch.full_like(batch["labels"], IGNORED_LABEL)
    if 0 <= own < len(edges) - 1:
        labels[:, edges[own] : edges[own + 1]] = batch["labels"][:, edges[own] : edges[own + 1]]
    return labels


def _documents_of_rows(plan: Plan, slot: int, part: int, parts: int) -> Tensor:
    """The document of every row that one ulysses rank of a slot computes."""
    rows = torch.tensor([doc for doc, start, stop in plan.slots[slot] for _ in range(start, stop)], dtype=torch.int64)
    return rows[len(rows) * part // parts : len(rows) * (part + 1) // parts]


def _sum_over_ranks(value: Tensor) -> Tensor:
    total = value.to(torch.promote_types(value.dtype, torch.float32)) if value.is_floating_point() else value.clone()
    dist.all_reduce(total)
    return total


def _max_over_ranks(values: Tensor) -> float:
    largest = values.max() if len(values) else values.new_zeros(())
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return float(largest)
