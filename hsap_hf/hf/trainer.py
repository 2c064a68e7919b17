"""For trainers that build their own loss or look at logits: they get dealt tokens before they look."""

from __future__ import annotations

from functools import partial
from typing import Any

from hsap_hf.errors import ConfigError
from hsap_hf.hf.enable import HsapHandle, handle_of
from hsap_hf.hf.interface import BATCH_KEY


def prepare_trainer(trainer: Any) -> None:
    """Deal each batch in `trainer._prepare_inputs` instead of in the model's forward; `disable_hsap` undoes it.

    Everything the trainer computes from its inputs and the model's outputs (a fused loss, entropy, accuracy) then
    belongs to the same, dealt tokens; sums over ranks stay what they are in data parallelism. With
    return_logits="brought" evaluation deals in the forward and gives back each rank's own; without, `predict` is
    refused. Not needed for transformers.Trainer. TRL's trainers are exact without it too: what their heads compute
    per token then returns to the rank that brought the token, one small exchange a step that this call spares.
    Raises ConfigError where HSAP is not enabled, for `compute_metrics`, which would see another rank's tokens, and
    without `average_tokens_across_devices`, which makes loss and number of tokens belong together.
    """
    handle = handle_of(trainer.model)
    if handle is None:
        raise ConfigError("prepare_trainer: HSAP is not enabled on trainer.model. Call enable_hsap(model) first.")
    if getattr(trainer, "compute_metrics", None) is not None:
        raise ConfigError(
            "prepare_trainer: compute_metrics would get logits of dealt tokens. Leave prepare_trainer out and set "
            "return_logits='brought', or drop compute_metrics."
        )
    if not getattr(getattr(trainer, "args", None), "average_tokens_across_devices", True):
        raise ConfigError(
            "prepare_trainer: average_tokens_across_devices=False divides the loss of dealt tokens by the number that "
            "this rank brought. Set it to True."
        )
    for name in ("label_smoother", "compute_loss_func"):
        if getattr(trainer, name, None) is not None:
            raise ConfigError(f"prepare_trainer: {name} would shift labels once more, across documents. Leave it out.")
    dealer = handle.dealer
    if dealer is None:  # a group of one rank deals nothing
        return
    stock, brought = trainer._prepare_inputs, dealer.plugin.return_logits == "brought"

    def prepare(inputs: dict[str, Any]) -> dict[str, Any]:
        prepared = stock(inputs)
        gives_back = brought and not trainer.model.training
        if BATCH_KEY in prepared or gives_back or not dealer.is_dealt(prepared):
            return prepared
        arguments = dealer.dealt_arguments(prepared)
        arguments[BATCH_KEY].handed_out = True
        return arguments

    _replace(handle, trainer, "_prepare_inputs", prepare)
    if not brought:
        _replace(handle, trainer, "predict", _no_predictions)


def _no_predictions(*args: Any, **kwargs: Any) -> None:
    raise ConfigError("predict: after prepare_trainer these are logits of dealt tokens. Set return_logits='brought'.")


def _replace(handle: HsapHandle, trainer: Any, name: str, new: Any) -> None:
    """Until HSAP is disabled."""
    earlier = vars(trainer).get(name)
    setattr(trainer, name, new)
    handle.on_disable(
        partial(vars(trainer).pop, name, None) if earlier is None else partial(setattr, trainer, name, earlier)
    )
