"""Calls that would go wrong in silence, on one rank of the gloo pool."""

import logging

import torch
import torch.distributed as dist
from forward_runs import packed
from small import small_llama

from hsap_hf import HsapPlugin, enable_hsap
from hsap_hf.errors import NonFiniteError, RankMismatchError


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
