"""Calls that would go wrong in silence, on one rank of the gloo pool."""

import logging
from contextlib import suppress
from functools import wraps
from types import SimpleNamespace
from unittest.mock import patch

import torch
import torch.distributed as dist
from forward_runs import packed
from small import small_llama

from hsap_hf import HsapPlugin, enable_hsap, prepare_trainer
from hsap_hf.errors import ConfigError, NonFiniteError, PackTooLargeError, RankMismatchError


def autocast_losses():
    """(HSAP, stock) loss of float32 weights under bfloat16 autocast, summed over the ranks."""
    model = small_llama()
    batch = packed([40, 3] if dist.get_rank() else [90, 7], seed=dist.get_rank())
    losses = []
    for shared in (True, False):
        handle = enable_hsap(model, HsapPlugin(context_size=2)) if shared else None
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch, num_items_in_batch=torch.tensor(136), use_cache=False).loss
        loss.backward()
        total = loss.detach().float().clone()
        dist.all_reduce(total)
        losses.append(float(total))
        if handle is not None:
            handle.disable()
    return losses


def trained_batches():
    """Counted after a batch of evaluation, dealt with gradients on as `prepare_trainer` does, and one of training."""
    counts, model = [], small_llama()
    with enable_hsap(model, HsapPlugin(context_size=2)) as handle:
        for training in (False, True):
            model.train(training)
            handle.dealer.deal(packed([9]))
            counts.append(handle.dealer.trained_batches)
    return counts


def counts_of_single_ranks():
    """The error where every rank divides by a count of its own."""
    with enable_hsap(small_llama(), HsapPlugin(context_size=2)) as handle:
        try:
            handle.dealer.deal({**packed([9]), "num_items_in_batch": torch.tensor(8 + dist.get_rank())})
        except RankMismatchError as error:
            return str(error)
    return "accepted"


def training_without_labels():
    """What is logged when a trainer takes the labels away."""
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("hsap_hf").addHandler(handler)
    model = small_llama().train()
    with enable_hsap(model, HsapPlugin(context_size=2)):
        for _ in range(2):
            model(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False)
    logging.getLogger("hsap_hf").removeHandler(handler)
    return said


def copied_model():
    """A deep copy is enabled by itself: undoing it leaves the original as it was."""
    import copy

    model = small_llama()
    handle = enable_hsap(model, HsapPlugin(context_size=2))
    twin = copy.deepcopy(model)
    twin.hsap_handle.disable()
    original_still_on = hasattr(model, "hsap_handle") and not hasattr(twin, "hsap_handle")
    twin_is_stock = twin.config._attn_implementation == "sdpa" and not twin._forward_pre_hooks
    handle.disable()
    return original_still_on, twin_is_stock, model.config._attn_implementation, len(model._forward_pre_hooks)


def resized_vocabulary():
    """A config that was changed while enabled keeps the change."""
    model = small_llama()
    with enable_hsap(model, HsapPlugin(context_size=2)):
        model.resize_token_embeddings(101)
    return model.config.vocab_size, model.config._attn_implementation


def static_cache_generation():
    """Padded generation with a cache whose masks are built before the first forward: (enabled, stock)."""
    model = small_llama().eval()
    arguments = {
        "input_ids": torch.tensor([[0, 5, 6], [7, 8, 9]]),
        "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
        "max_new_tokens": 4,
        "do_sample": False,
        "cache_implementation": "static",
        "disable_compile": True,
        "pad_token_id": 0,
    }
    stock = model.generate(**arguments)
    with enable_hsap(model, HsapPlugin(context_size=2)):
        ours = model.generate(**arguments)
    return ours.tolist(), stock.tolist()


def weights_trained_alone():
    """What happens at each of three batches where every rank takes its own step, its gradients reduced by nobody."""
    model = small_llama().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    batch = packed([40, 3] if dist.get_rank() else [90, 7], seed=dist.get_rank())
    said = []
    with enable_hsap(model, HsapPlugin(context_size=2)) as handle:
        for _ in range(3):
            try:
                handle.dealer.deal(batch)
            except RankMismatchError as error:
                said.append(str(error))
                break
            model(**batch).loss.backward()
            optimizer.step()
            said.append("trained")
    return said


def infinite_loss():
    """The error, and whether a gradient exists, where one token's embedding is infinite."""
    model = small_llama().train()
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = torch.inf
    batch = packed([40, 3] if dist.get_rank() else [90, 7], seed=dist.get_rank())
    batch["input_ids"].masked_fill_(batch["input_ids"] == 5, 6)
    if dist.get_rank() == 1:
        batch["input_ids"][0, 0] = 5
    with enable_hsap(model, HsapPlugin(context_size=4, debug=True)):
        try:
            model(**batch).loss.backward()
        except NonFiniteError as error:
            return str(error), any(parameter.grad is not None for parameter in model.parameters())
    return "accepted"


PROMPT = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "attention_mask": torch.ones(1, 4, dtype=torch.int64)}
GREEDY = {"do_sample": False, "max_new_tokens": 5, "pad_token_id": 0}


def _shared_loss(model):
    """Of a batch whose document of 60 tokens both ranks of a group compute."""
    batch = packed([9] if dist.get_rank() % 2 else [60, 7], seed=dist.get_rank())
    with torch.no_grad():
        return float(model(**batch, num_items_in_batch=76.0).loss)


def losses_around_what_ended_early():
    """Before, and after a batch that was refused and a generation that was interrupted, each with a stock call."""
    model = small_llama(initializer_range=0.2).eval()
    losses = []
    with enable_hsap(model, HsapPlugin(context_size=2, max_tokens_per_rank=100)), torch.no_grad():
        losses.append(_shared_loss(model))
        try:
            model(**packed([500]))
        except PackTooLargeError:
            model(**PROMPT)
        losses.append(_shared_loss(model))

        def interrupt(*_):
            raise KeyboardInterrupt

        hook = model.lm_head.register_forward_hook(interrupt)
        for call in (model.generate, model):
            with suppress(KeyboardInterrupt):
                call(**PROMPT)
        hook.remove()
        losses.append(_shared_loss(model))
    return losses


def generations_of_a_copy():
    """(original, copy with other weights, that copy undone), and whether the original's own changes are still there."""
    import copy
    import sys

    model = small_llama().eval()
    with enable_hsap(model, HsapPlugin(context_size=2)):
        twin = copy.deepcopy(model)
        with torch.no_grad():
            twin.lm_head.weight.zero_()
        found = [one.generate(**PROMPT, **GREEDY).tolist() for one in (model, twin)]
        hook = sys.excepthook
        twin.hsap_handle.disable()
        found.append(twin.generate(**PROMPT, **GREEDY).tolist())
        kept = sys.excepthook is hook and "generate" in vars(model) and "generate" not in vars(twin)
    return found, kept


def generation_of_ones_own():
    """Of a model that was given its own `generate`: what it returns while enabled, and whether it is there after."""
    model = small_llama()
    model.generate = own = lambda *_: (model.config._attn_implementation, "own")
    with enable_hsap(model, HsapPlugin(context_size=2)):
        said = model.generate(1)
    return said, model.generate is own


def generation_without_a_cache():
    """(stock, enabled and asked for logits) and the batches that were shared meanwhile."""
    model = small_llama(initializer_range=0.2).eval()
    stock = model.generate(**PROMPT, **GREEDY, use_cache=False).tolist()
    with enable_hsap(model, HsapPlugin(context_size=2, return_logits="brought")) as handle:
        ours = model.generate(**PROMPT, **GREEDY, use_cache=False).tolist()
        return stock, ours, handle.report()["batches"]


def predictions_of_a_prepared_trainer():
    """(with return_logits="brought" the largest difference from the stock logits; why there are none without)."""
    model = small_llama(initializer_range=0.2).eval()
    batch = packed([9] if dist.get_rank() % 2 else [60, 7], seed=dist.get_rank())
    call = {name: value for name, value in batch.items() if name != "cu_seqlens"}
    with torch.no_grad():
        stock = model(**call, use_cache=False).logits
        with enable_hsap(model, HsapPlugin(context_size=2, return_logits="brought")):
            trainer = OwnLoop(model)
            prepare_trainer(trainer)
            ours = model(**trainer._prepare_inputs(batch)).logits
    with enable_hsap(model, HsapPlugin(context_size=2)):
        trainer = OwnLoop(model)
        prepare_trainer(trainer)
        try:
            trainer.predict([])
        except ConfigError as error:
            refused = str(error)
    return float((ours - stock).abs().max()), refused, trainer.predict([])


class OwnLoop:
    """As much of a trainer as `prepare_trainer` asks for."""

    def __init__(self, model, **args):
        self.model, self.args = model, SimpleNamespace(**args)

    def _prepare_inputs(self, inputs):
        return inputs

    def predict(self, rows):
        return rows


def without_logits(forward):
    """A forward that gives no logits where it is told so, or trains on labels, as Liger's does."""

    @wraps(forward)
    def liger(*args, skip_logits=None, **kwargs):
        outputs = forward(*args, **kwargs)
        if skip_logits is None:
            skip_logits = forward.__self__.training and kwargs.get("shift_labels") is not None
        return type(outputs)(loss=outputs.loss, logits=None if skip_logits else outputs.logits)

    return liger


def evaluation_of_a_prepared_trainer():
    """(stock, prepared) loss of what this rank brings, without num_items_in_batch; and why counts of its own are
    refused."""
    model = small_llama(initializer_range=0.2).eval()
    batch = packed([9] if dist.get_rank() % 2 else [60, 7], seed=dist.get_rank())
    call = {name: value for name, value in batch.items() if name != "cu_seqlens"}
    with torch.no_grad():
        stock = float(model(**call, use_cache=False).loss)
        with enable_hsap(model, HsapPlugin(context_size=2)):
            trainer = OwnLoop(model)
            prepare_trainer(trainer)
            with patch.object(model, "forward", without_logits(model.forward)):
                ours = [float(model(**trainer._prepare_inputs(batch), skip_logits=True).loss)]
                model.train()  # it has no dropout
                ours.append(float(model(**trainer._prepare_inputs(batch)).loss))
            try:
                prepare_trainer(OwnLoop(model, average_tokens_across_devices=False))
            except ConfigError as error:
                return stock, ours, str(error)
    return stock, ours, "accepted"
