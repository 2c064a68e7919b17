"""What a dealt forward returns: the exact loss, and logits only where they were asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from hsap_hf.errors import UnsupportedModelError
from hsap_hf.hf.dealt import DealtBatch
from hsap_hf.hf.documents import IGNORED_LABEL

_ROWS = 4096
"""Rows of logits turned into losses at a time, to bound the float32 copy."""


def brought_loss(batch: DealtBatch, logits: Tensor, num_items: Tensor | float | None) -> Tensor:
    """The loss of the samples this rank brought, as data-parallel evaluation reports it: a scalar, no gradient.

    logits: [1, T, V] of the dealt tokens. The sum over brought tokens is divided by `num_items`, or by their own
    number where it is None.
    """
    labels = batch.model_row()[2][0]
    losses = torch.cat(
        [
            F.cross_entropy(rows.float(), wanted, ignore_index=IGNORED_LABEL, reduction="none")
            for rows, wanted in zip(logits[0].split(_ROWS), labels.split(_ROWS), strict=True)
        ]
    )
    own = batch.to_owners(losses)
    return own.sum() / (max(1, batch.brought.num_supervised) if num_items is None else num_items)


def brought_loss_of(function: Callable[..., Any], batch: DealtBatch, logits: Tensor, num_items: Any, size: int) -> Any:
    """What a model's own `loss_function` makes of the logits of the samples this rank brought.

    logits: [1, T, V] of the dealt tokens; size: of the vocabulary.
    """
    kept, labels = batch.brought.kept, batch.brought.tokens[:, 2]
    rows, columns = batch.brought.shape
    if kept is not None:
        labels = labels.new_full((rows * columns,), IGNORED_LABEL).index_copy(0, kept, labels)
    labels = labels.view(rows, columns)
    given = {} if num_items is None else {"num_items_in_batch": num_items}
    brought = brought_logits(batch, logits)
    return function(logits=brought, labels=labels, vocab_size=size, shift_labels=labels, **given)


def brought_logits(batch: DealtBatch, logits: Tensor) -> Tensor:
    """Logits [1, T, V] of dealt tokens -> [B, C, V] in the order of the caller's batch; zeros at padding.

    Gradients return to the ranks that computed them."""
    own = _Returned.apply(logits[0], batch)
    rows, columns = batch.brought.shape
    if batch.brought.kept is not None:
        own = own.new_zeros((rows * columns, own.shape[-1])).index_copy(0, batch.brought.kept, own)
    return own.view(rows, columns, own.shape[-1])


def brought_fields(batch: DealtBatch, outputs: Any) -> Any:
    """A trainer's own outputs with every value per dealt token [1, T] replaced by those of this rank's tokens.

    They stand where the caller's labels are shifted to: [B, C - 1], or [B, C] where it shifted them itself; zeros at
    padding. A trainer that was handed dealt tokens gets them in one row. Gradients return to the ranks that computed
    the values. Raises UnsupportedModelError for other values per token, which would belong to other ranks' tokens.
    """
    if isinstance(outputs, tuple):
        raise UnsupportedModelError("config.return_dict=False: a tuple does not say which values are per token.")
    dealt_shape = (1, max(1, len(batch.tokens)))
    shapes = {name: value.shape for name, value in vars(outputs).items() if isinstance(value, Tensor)}
    foreign = [name for name, shape in shapes.items() if len(shape) > 2 and shape[:2] == dealt_shape]
    if foreign:
        raise UnsupportedModelError(f"{type(outputs).__name__}.{foreign[0]} has more than one value per dealt token.")
    found = {name: vars(outputs)[name] for name, shape in shapes.items() if shape == dealt_shape}
    if not found:
        return outputs
    width = torch.promote_types(torch.float32, next(iter(found.values())).dtype)
    own = _Returned.apply(torch.stack([value[0].to(width) for value in found.values()], -1), batch)
    rows, columns = batch.brought.shape
    if batch.handed_out:
        own = own[None]
    else:
        if batch.brought.kept is not None:
            own = own.new_zeros((rows * columns, own.shape[-1])).index_copy(0, batch.brought.kept, own)
        own = own.view(rows, columns, -1)[:, : columns if batch.brought.shifted else columns - 1]
    returned = {name: one.to(value.dtype) for (name, value), one in zip(found.items(), own.unbind(-1), strict=True)}
    return type(outputs)(**{**vars(outputs), **returned})


class _Returned(torch.autograd.Function):
    """[T, F] of dealt tokens -> [brought tokens, F]; its gradients are dealt like the tokens were."""

    @staticmethod
    def forward(ctx: Any, dealt: Tensor, batch: DealtBatch) -> Tensor:
        ctx.batch, ctx.rows = batch, len(dealt)
        return batch.to_owners(dealt)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, own: Tensor) -> tuple[Tensor, None]:
        dealt = ctx.batch.deal.to_slots(ctx.batch.mesh.group, own.contiguous())
        return F.pad(dealt, (0, 0, 0, ctx.rows - len(dealt))), None


def rebuild(outputs: Any, loss: Tensor | None, logits: Tensor | None) -> Any:
    """A model output of the same class that holds only these; every other field belongs to dealt tokens."""
    return type(outputs)(loss=loss, logits=logits)
