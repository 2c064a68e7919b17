"""For trainers that build their own loss or look at logits: they get dealt tokens before they look."""

from __future__ import annotations

from typing import Any

from hsap_hf.errors import ConfigError
from hsap_hf.hf.enable import handle_of
from hsap_hf.hf.interface import BATCH_KEY


def prepare_trainer(trainer: Any) -> None:
    """Deal each batch in `trainer._prepare_inputs` instead of in the model's forward; `disable_hsap` undoes it.

    Everything the trainer computes from its inputs and the model's outputs (a fused loss, entropy, accuracy) then
    belongs to the same, dealt tokens; sums over ranks stay what they are in data parallelism. Not needed for
    transformers.Trainer. TRL's trainers are exact without it too: what their heads compute per token then returns to
    the rank that brought the token, one small exchange a step that this call spares. Raises ConfigError where HSAP is
    not enabled, for `compute_metrics`, which would see another rank's tokens, and without
    `average_tokens_across_devices`, which makes loss and number of tokens belong together.
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
    stock = trainer._prepare_inputs

    def prepare(inputs: dict[str, Any]) -> dict[str, Any]:
        prepared = stock(inputs)
        if BATCH_KEY in prepared or not dealer.is_dealt(prepared):
            return prepared
        arguments = dealer.dealt_arguments(prepared)
        arguments[BATCH_KEY].handed_out = True
        return arguments

    earlier = vars(trainer).get("_prepare_inputs")
    trainer._prepare_inputs = prepare
    if earlier is None:
        handle.on_disable(lambda: vars(trainer).pop("_prepare_inputs", None))
    else:
        handle.on_disable(lambda: setattr(trainer, "_prepare_inputs", earlier))
