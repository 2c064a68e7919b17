"""What a gloo rank does for one family: the stock trajectory, and HSAP's on the same batches in several groups."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.distributed as dist
from families import FAMILIES, UNTUNED, VOCABULARY, build

from hsap_hf import HsapPlugin, enable_hsap
from hsap_hf.errors import ConfigError

GROUPS = ((2, 1), (1, 2), (2, 2))
STEPS = 3
# What each of the four ranks brings at each step: in groups of two and of four, documents are cut.
LENGTHS = (
    ([29, 3], [5, 1, 2], [31], [4, 7]),
    ([2, 2], [33], [1, 19], [6, 6]),
    ([11], [3, 8], [27, 1, 1], [30]),
)


def compare_family(name: str) -> list[dict[str, Any]]:
    """Per group of GROUPS the largest differences, measured on this rank."""
    family = next(family for family in FAMILIES + UNTUNED if family.name == name)
    torch.manual_seed(0)
    stock = _train(build(family), _stock_step) if dist.get_rank() == 0 else None
    found = []
    for context_size, ulysses_size in GROUPS:
        model, cuts, kernels = build(family), 0, set[str]()
        plugin = HsapPlugin(context_size=context_size, ulysses_size=ulysses_size)
        with enable_hsap(model, plugin) as handle:
            seen: list[int] = []

            def step(model: Any, batch: int, handle: Any = handle, seen: list[int] = seen) -> tuple[Any, Any]:
                result = _hsap_step(model, batch)
                seen.append(len(handle.plan.cut_documents))
                return result

            hook = model.register_forward_hook(
                lambda module, args, kwargs, out, kernels=kernels: kernels.update(
                    call.kernel.name for call in kwargs["hsap_batch"]._calls.values()
                ),
                with_kwargs=True,
            )
            ours = _train(model, step)
            hook.remove()
        cuts = min(seen) if context_size > 1 else 0
        found.append({"group": f"{context_size}x{ulysses_size}", "cuts": cuts, "kernels": sorted(kernels)})
        if stock is not None:
            found[-1] |= _differences(stock, ours)
    return found


def refusal_of(name: str, kernel: str) -> str:
    """What enable_hsap says to this kernel."""
    model = build(next(family for family in FAMILIES if family.name == name))
    before = dict(vars(model))
    try:
        enable_hsap(model, HsapPlugin(context_size=2, kernel=kernel))
    except ConfigError as error:
        assert vars(model) == before
        return str(error)
    raise AssertionError("it was enabled")


def _batch(step: int, rank: int) -> tuple[torch.Tensor, list[int]]:
    lengths = LENGTHS[step][rank]
    draw = torch.Generator().manual_seed(10 * step + rank)
    return torch.randint(3, VOCABULARY, (sum(lengths),), generator=draw), lengths


def _stock_step(model: Any, step: int) -> tuple[torch.Tensor, int]:
    """Plain data parallelism: every document alone, so that nothing depends on stock packing."""
    loss = torch.zeros(())
    for rank in range(4):
        ids, lengths = _batch(step, rank)
        for document in ids.split(lengths):
            if len(document) > 1:
                one = document[None]
                loss = loss + model(input_ids=one, labels=one, use_cache=False, num_items_in_batch=_items(step)).loss
    return loss, 0


def _items(step: int) -> int:
    return sum(length - 1 for of_rank in LENGTHS[step] for length in of_rank)


def _hsap_step(model: Any, step: int) -> tuple[torch.Tensor, int]:
    ids, lengths = _batch(step, dist.get_rank())
    labels = ids.clone()
    labels[[0, *itertools.accumulate(lengths)][:-1]] = -100
    positions = torch.cat([torch.arange(length) for length in lengths])
    batch = {"input_ids": ids, "labels": labels, "position_ids": positions}
    batch = {key: value[None] for key, value in batch.items()}
    return model(**batch, num_items_in_batch=_items(step)).loss, 1


def _train(model: Any, step: Any) -> list[tuple[float, list[torch.Tensor]]]:
    """Loss and gradients of every step of Trainer's loop: AdamW, clipped gradients, summed over ranks."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-6)
    result = []
    for number in range(STEPS):
        loss, is_shared = step(model, number)
        optimizer.zero_grad()
        loss.backward()
        grads = [weight.grad if weight.grad is not None else torch.zeros_like(weight) for weight in model.parameters()]
        loss = loss.detach()
        if is_shared:
            flat = torch.cat([loss.reshape(1), *(grad.flatten() for grad in grads)])
            dist.all_reduce(flat)
            loss, *parts = flat.split([1, *(grad.numel() for grad in grads)])
            grads = [part.view_as(grad) for part, grad in zip(parts, grads, strict=True)]
        for weight, grad in zip(model.parameters(), grads, strict=True):
            weight.grad = grad.clone()
        result.append((float(loss), grads))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return result


def _differences(stock: Any, ours: Any) -> dict[str, float]:
    """Losses of all steps; gradients of all steps relative to the largest entry."""
    losses = [abs(a - b) for (a, _), (b, _) in zip(stock, ours, strict=True)]
    grads = [
        max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True)) / max(float(x.abs().max()) for x in a)
        for (_, a), (_, b) in zip(stock, ours, strict=True)
    ]
    return {"loss": max(losses), "grad": grads[0], "later_grad": max(grads), "first_loss": stock[0][0]}
