"""The forward hooks: deal the batch before the model sees it, hand out what the caller may keep afterwards."""

from __future__ import annotations

import inspect
import logging
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from hsap_hf.attention import SlotTables
from hsap_hf.comm import HsapMesh, compile_deal, confirm, gather_batches
from hsap_hf.config import HsapPlugin
from hsap_hf.errors import NonFiniteError, PackTooLargeError, RankMismatchError, UnsupportedModelError
from hsap_hf.hf.dealt import DealtBatch
from hsap_hf.hf.documents import Brought, read_batch
from hsap_hf.hf.interface import BATCH_KEY
from hsap_hf.hf.outputs import brought_fields, brought_logits, brought_loss, brought_loss_of, rebuild
from hsap_hf.hf.patch import AttentionPatch
from hsap_hf.hf.strategies import refuse_strategies
from hsap_hf.hf.support import ROUTER_LOSS
from hsap_hf.hf.weights import sampled_size
from hsap_hf.planner import Plan, compile_plan

NUM_FACTS = 4
_KEPT_PLANS = 4
"""Plans kept with their tables: evaluation sets come back with the same lengths."""
_COMPARED = frozenset(2**n for n in range(40))
"""Training batches after which ranks compare their weights: soon, and seldom."""
_UNDEALT = (
    "a training forward without labels is not shared with the group: it takes the stock attention on this rank's own "
    "batch. A data collator must give them, as HsapDataCollator does. Where a trainer takes the labels away "
    "(label_smoothing_factor, compute_loss_func), leave that out; where it builds its own loss, see "
    "hsap_hf.prepare_trainer."
)
_NO_LOGITS = (
    "evaluation gives the loss alone: logits belong to dealt tokens. Where compute_metrics or predict need them, set "
    "HsapPlugin(return_logits='brought')."
)
_UNSUPERVISED = (
    "no label of this pack counts (all are -100): its loss and its gradients are 0. Where prompts are masked, look "
    "whether the mask takes answers too, or max_length cuts them off."
)
_LATE_LOSS = (
    "model.loss_function was set after enable_hsap: nothing has checked whether it takes labels that are shifted "
    "already. Set it before."
)
_NOISE = (
    "neftune_noise_alpha: the noise depends on the length of a row, and a rank computes another one than it brings. "
    "Leave it out."
)
_REPLACED = ("input_ids", "attention_mask", "position_ids", "labels", "shift_labels", "cu_seqlens", "seq_idx")
_REPLACED += ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "use_cache", "return_dict")


@dataclass
class Dealer:
    """Deals every batch that has labels; every other call (generate, a cache) takes the stock attention."""

    plugin: HsapPlugin
    mesh: HsapMesh
    patch: AttentionPatch
    base: Any
    """The causal language model."""
    said: set[str] = field(default_factory=set)
    """Warnings that this rank has given."""
    batches: int = 0
    trained_batches: int = 0
    dealt_tokens: int = 0
    plan: Plan | None = None
    """The plan of the last batch."""

    def __post_init__(self) -> None:
        self._own_loss = vars(self.base).get("_loss_function")
        self._compiled = lru_cache(_KEPT_PLANS)(self._compile)

    def forget_plans(self) -> None:
        """Every batch is planned anew, as one that was not met before."""
        self._compiled.cache_clear()

    @torch.compiler.disable
    def before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Forward pre-hook."""
        names = list(inspect.signature(module.forward).parameters)
        batch = {**dict(zip(names, args, strict=False)), **kwargs}
        shared = BATCH_KEY in batch or self.is_dealt(batch)
        if shared:
            self.patch.share()
        else:
            self.patch.keep()
            if module.training and torch.is_grad_enabled():
                self._warn_once(_UNDEALT)
            return None
        if BATCH_KEY not in batch:
            batch = self.dealt_arguments(batch)
        # the loss of what this rank brought is computed from logits, afterwards; TRL's own head gives no logits
        if not torch.is_grad_enabled() and not batch.get("fused_lm_head"):
            for name in ("labels", "shift_labels", "skip_logits"):  # Trainer sets the last where Liger's loss is on
                batch.pop(name, None)
        if "labels" in batch and torch.is_grad_enabled():
            batch["num_items_in_batch"] = self._num_items(batch)
        return (), batch

    @torch.compiler.disable
    def after_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> Any:
        """Forward hook; also runs when the forward raised (`outputs` is then None)."""
        dealt: DealtBatch | None = kwargs.get(BATCH_KEY)
        self.patch.rest()
        if dealt is None or outputs is None:
            return None
        num_layers = self.base.config.num_hidden_layers
        if dealt.attention_calls < num_layers:
            raise UnsupportedModelError(
                f"{type(module).__name__} has {num_layers} layers but asked for attention "
                f"{dealt.attention_calls} times: some of its layers do not go through AttentionInterface."
            )
        if not hasattr(outputs, "loss") or not hasattr(outputs, "logits"):
            # a trainer's own forward: one that holds dealt tokens needs gradients of dealt values; every other one gets
            # values in the order of its batch, and their gradients go back
            return None if dealt.handed_out and torch.is_grad_enabled() else brought_fields(dealt, outputs)
        loss, logits = outputs.loss, None
        if self.plugin.debug and torch.is_grad_enabled() and loss is not None:
            self._check_finite(dealt, loss)
        if not torch.is_grad_enabled() and dealt.brought.has_labels:
            loss = self._evaluated(module, dealt, outputs.logits, _nonzero(kwargs.get("num_items_in_batch")))
        if dealt.handed_out or self.plugin.return_logits == "dealt":
            logits = outputs.logits
        elif self.plugin.return_logits == "brought":
            logits = brought_logits(dealt, outputs.logits)
        return rebuild(outputs, loss, logits)

    def _evaluated(self, module: Any, dealt: DealtBatch, logits: Tensor, num_items: Any) -> Any:
        """The loss of what this rank brought."""
        if self.plugin.return_logits == "none" and self.mesh.group.rank == 0 and not dealt.handed_out:
            self._warn_once(_NO_LOGITS)
        if "_loss_function" in vars(module):  # the user's own
            return brought_loss_of(module.loss_function, dealt, logits, num_items, module.config.vocab_size)
        return brought_loss(dealt, logits, num_items)

    def is_dealt(self, batch: dict[str, Any]) -> bool:
        """Whether a call with these arguments is shared with the group; all others take the stock attention."""
        if self.patch.generating or batch.get("past_key_values") is not None:
            return False
        if batch.get("labels") is not None or batch.get("shift_labels") is not None:
            return True
        return self.plugin.return_logits != "none" and not batch.get("use_cache") and not torch.is_grad_enabled()

    def dealt_arguments(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A forward's arguments with the caller's tokens replaced by those this rank computes."""
        dealt = self.deal(batch)
        ids, positions, labels = dealt.model_row()
        rest = {name: value for name, value in batch.items() if name not in _REPLACED}
        tokens = {"input_ids": ids, "position_ids": positions, "labels": labels, "shift_labels": labels}
        return {**rest, **tokens, "use_cache": False, BATCH_KEY: dealt}

    def deal(self, batch: dict[str, Any]) -> DealtBatch:
        """Bring, agree, plan, deal. Raises the same error on every rank of the job."""
        error: Exception | None = None
        brought: Brought | None = None
        plan: Plan | None = None
        facts, weights = [0] * NUM_FACTS, 0.0
        trains = torch.is_grad_enabled() and self.patch.model.training  # Trainer prepares evaluation with gradients on
        try:
            if not self.batches:
                refuse_strategies(self.patch.model)  # accelerate may have been configured after enable_hsap
            self._check_changes()
            brought = read_batch(batch)
            facts = [brought.num_supervised, int(trains), *_bits(batch.get("num_items_in_batch"))]
            if self.trained_batches in _COMPARED and trains:
                weights = sampled_size(self.patch.model)
        except Exception as problem:  # whatever it is, every rank of the job must hear of it
            error = problem
        gathered = gather_batches(self.mesh, brought.lengths if brought else [], facts, error is not None)
        if not gathered.failed:
            try:
                if len({tuple(fact[1:]) for fact in gathered.facts}) > 1:
                    raise RankMismatchError(
                        "ranks of a group make different calls: training beside evaluation, or num_items_in_batch of "
                        "different values. It must count the tokens of all ranks (average_tokens_across_devices=True)."
                    )
                assert brought is not None
                plan, tables = self._compiled(tuple(chain.from_iterable(gathered.lengths)), brought.tokens.device)
                self._check_size(plan)
            except Exception as problem:
                error = problem
        confirm(self.mesh, error, plan.fingerprint if plan else 0, weights)
        assert brought is not None
        assert plan is not None
        deal = compile_deal(
            plan,
            [len(of_rank) for of_rank in gathered.lengths],
            self.mesh.ulysses.size,
            self.mesh.group.rank,
            brought.tokens.device,
        )
        tokens = deal.to_slots(self.mesh.group, brought.tokens)
        self.plan, self.batches, self.dealt_tokens = plan, self.batches + 1, self.dealt_tokens + len(tokens)
        self.trained_batches += trains
        supervised = sum(fact[0] for fact in gathered.facts)
        if not supervised and trains:
            self._warn_once(_UNSUPERVISED)
        return DealtBatch(
            mesh=self.mesh,
            plan=plan,
            deal=deal,
            brought=brought,
            tokens=tokens,
            num_supervised=supervised,
            plugin=self.plugin,
            recomputes=partial(_recomputes, self.patch.model),
            tables=tables,
        )

    def _check_changes(self) -> None:
        """Raise UnsupportedModelError for what was set since `enable_hsap` and would not be exact."""
        if any(getattr(config, "output_router_logits", False) for config in self.patch.configs()):
            raise UnsupportedModelError(ROUTER_LOSS)
        if vars(self.base).get("_loss_function") is not self._own_loss:
            raise UnsupportedModelError(_LATE_LOSS)
        with suppress(NotImplementedError):  # of models that do not tell, which then cannot have it
            if getattr(self.base.get_input_embeddings(), "neftune_noise_alpha", None):
                raise UnsupportedModelError(_NOISE)

    def _compile(self, lengths: tuple[int, ...], device: torch.device) -> tuple[Plan, dict[int | None, SlotTables]]:
        """The plan for these documents, and room for what layers compile from it on `device`."""
        return compile_plan(lengths, self.mesh.context.size, ranks_per_node=self.mesh.slots_per_node), {}

    def _num_items(self, batch: dict[str, Any]) -> Tensor | float:
        """What the sum of losses is divided by. Without a caller's number, the mean over ranks of the loss is the
        token mean of the group."""
        given = _nonzero(batch.get("num_items_in_batch"))
        return max(1, batch[BATCH_KEY].num_supervised) / self.mesh.group.size if given is None else given

    def _warn_once(self, text: str) -> None:
        if text not in self.said:
            self.said.add(text)
            logging.getLogger("hsap_hf").warning(text)

    def _check_finite(self, dealt: DealtBatch, loss: Tensor) -> None:
        """Raise NonFiniteError on all ranks where one rank's share of the loss is not finite."""
        error = None
        if not torch.isfinite(loss):
            pieces = dealt.plan.slots[self.mesh.context.rank]
            lengths = [dealt.plan.lengths[document] for document in dict.fromkeys(piece.doc for piece in pieces)]
            some = ", ".join(map(str, lengths[:20])) + (", ..." if len(lengths) > 20 else "")
            error = NonFiniteError(
                f"the loss is {float(loss.detach())}. This rank computes tokens of {len(lengths)} documents, of {some} "
                f"tokens. This batch has changed no weight."
            )
        confirm(self.mesh, error, dealt.plan.fingerprint)

    def _check_size(self, plan: Plan) -> None:
        limit = self.plugin.max_tokens_per_rank
        if limit is None:
            return
        largest = max(-(-plan.tokens(slot) // self.mesh.ulysses.size) for slot in range(plan.context_size))
        if largest > limit:
            raise PackTooLargeError(
                f"a pack of {sum(plan.lengths):,} tokens deals {largest:,} to one rank; max_tokens_per_rank is "
                f"{limit:,}. A group of {self.mesh.group.size} ranks fits {limit * self.mesh.group.size:,} tokens: "
                f"bring smaller batches or raise context_size."
            )


def _recomputes(model: nn.Module) -> bool:
    """Whether every layer runs again in the backward: activation checkpointing, the model's own or FSDP's. Not where
    only some layers do (every_n_layers): the others would keep what they borrowed."""
    modules = list(model.modules())
    layers = [module for module in modules if isinstance(module, GradientCheckpointingLayer)]
    if wrapped := sum(type(module).__name__ == "CheckpointWrapper" for module in modules):
        return wrapped >= len(layers)
    if layers:
        return all(layer.gradient_checkpointing for layer in layers)
    return any(getattr(module, "gradient_checkpointing", False) for module in modules)


def _bits(num_items: Any) -> tuple[int, int]:
    """(whether there is one, its value) as integers that ranks can compare."""
    if num_items is None:
        return 0, 0
    return 1, struct.unpack("<q", struct.pack("<d", float(num_items)))[0]


def _nonzero(num_items: Any) -> Any:
    """A pack without supervised tokens has loss 0, not 0 / 0. What a caller divides by else is its own choice."""
    if num_items is None:
        return None
    return num_items + (num_items == 0) if isinstance(num_items, Tensor) else num_items or 1
