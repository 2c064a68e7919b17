"""What enable_hsap changes on a model, and what is left of it, seen from one rank of the gloo pool."""

import copy
import io
import os
import sys
import time

import torch
import torch.distributed as dist
from forward_runs import enabled, packed
from peft import LoraConfig, get_peft_model
from small import LLAMA, small_llama
from transformers import LlamaConfig, LlamaForCausalLM

from hsap_hf import HsapPlugin, disable_hsap, enable_hsap
from hsap_hf.errors import HsapError


def snapshot(model):
    """Every attribute of every module, by identity, every config by value, and the exception hook."""
    own = []
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            kept = dict(value) if isinstance(value, dict) else value
            own.append((name, attribute, id(value), {k: id(v) for k, v in kept.items()} if kept is not value else None))
            if attribute == "config":
                own.append((name, value._attn_implementation, copy.deepcopy(value.to_dict())))
    return own, sys.excepthook


def pickled(group):
    """What a whole model says that is saved while HSAP is enabled, and whether one is, later."""
    model = small_llama()
    with enabled(model, group):
        try:
            torch.save(model, io.BytesIO())
        except HsapError as error:
            refusal = str(error)
    torch.save(model, io.BytesIO())
    return refusal


def restored(group):
    """Whether nothing is left of HSAP after each way to end it."""
    model, me = small_llama(), dist.get_rank()
    before, results = snapshot(model), {}
    handle = enabled(model, group)
    results["changed while enabled"] = snapshot(model) != before
    model(**packed([8, 30], me)).loss.backward()
    model.zero_grad()
    handle.disable()
    results["handle.disable"] = snapshot(model) == before
    handle.disable()
    results["disable twice"] = snapshot(model) == before
    enabled(model, group)
    disable_hsap(model)
    results["disable_hsap"] = snapshot(model) == before
    disable_hsap(model)
    with enabled(model, group):
        model(**packed([3], me))
    results["context manager"] = snapshot(model) == before
    try:
        with enabled(model, group):
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        results["context manager with an error"] = snapshot(model) == before
    handle = enabled(model, group)
    try:
        model(**{**packed([4], me), "attention_mask": torch.ones(1, 1, 4, 4)})
    except HsapError:
        handle.disable()
        results["after a refused batch"] = snapshot(model) == before
    return results


def refused(group, changes):
    """The error of enable_hsap, and whether the model is as it was."""
    model = small_llama(**changes)
    before = snapshot(model)
    try:
        enabled(model, group)
    except HsapError as error:
        return type(error).__name__, str(error), snapshot(model) == before
    return None


def twice(group):
    model = small_llama()
    handle = enabled(model, group)
    before = snapshot(model)
    try:
        enable_hsap(model, HsapPlugin())
    except HsapError as error:
        unchanged = snapshot(model) == before
        handle.disable()
        enabled(model, group).disable()  # after disabling it may be enabled again
        return type(error).__name__, str(error), unchanged
    return None


def shared_config(group):
    """Two models from one config object, of which the first is enabled."""
    torch.manual_seed(0)
    config = LlamaConfig(**LLAMA)
    first, second = LlamaForCausalLM(config), LlamaForCausalLM(config)
    ids = packed([12, 5], 0)["input_ids"]
    stock = second(ids, use_cache=False).logits
    with enabled(first, group) as handle:
        dealt = first(**packed([12, 5], dist.get_rank())).loss
        names = first.config._attn_implementation, second.config._attn_implementation
        same = torch.equal(second(ids, use_cache=False).logits, stock)
        batches = handle.report()["batches"]
    return names, same, batches, bool(dealt.isfinite()), first.config is second.config is config


def lora(group, first):
    """PEFT before or after enable_hsap: the loss, the stock loss, and whether gradients and the undo are right."""
    me = dist.get_rank()
    batch, config = packed([30, 4], me), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
    plain = get_peft_model(small_llama(), config)
    if first == "peft":
        model = copy.deepcopy(plain)
        before = snapshot(model)
        handle = enabled(model, group)
    else:
        base = small_llama()
        handle = enabled(base, group)
        torch.manual_seed(dist.get_rank())
        model = get_peft_model(base, config)
        model.load_state_dict(plain.state_dict())
        before = None
    losses = []
    stock_batch = {name: value for name, value in batch.items() if name != "cu_seqlens"} | {"use_cache": False}
    for one, call in ((model, batch), (plain, stock_batch)):
        loss = one(**call, num_items_in_batch=100.0).loss
        loss.backward()
        for parameter in one.parameters():
            if parameter.requires_grad:
                dist.all_reduce(parameter.grad)
        total = loss.detach().clone()
        dist.all_reduce(total)
        losses.append(float(total))
    grads = zip(model.parameters(), plain.parameters(), strict=True)
    difference = max(float((a.grad - b.grad).abs().max()) for a, b in grads if b.requires_grad)
    batches = handle.report()["batches"]
    disable_hsap(model)
    model.zero_grad()
    undone = before is None or snapshot(model) == before
    stock = model.config._attn_implementation != "hsap" and not any("hsap" in vars(m) for m in model.modules())
    return losses, difference, batches, undone and stock


def reports(group):
    """What the handle counted over two batches, against the plans."""
    me = dist.get_rank()
    model = small_llama()
    handle = enabled(model, group)
    first = handle.plan
    for lengths in ([[50, 1], [2], [3], [4]][me], [10, 10]):
        with torch.no_grad():
            model(**packed(lengths, me))
    plan = handle.plan
    report = handle.report()
    handle.disable()
    return first, [list(plan.lengths), plan.context_size], report, handle.group_size


def disagreeing(kind):
    """What every rank hears where rank 2 alone differs, and whether its model stayed as it was."""
    me = dist.get_rank()
    model = small_llama(attention_dropout=0.1 if kind == "model" and me == 2 else 0.0)
    sizes = {"context_size": 4 if kind == "settings" and me == 2 else 2}
    before = snapshot(model)
    try:
        if kind == "absent" and me == 2:
            time.sleep(1.5)
        enable_hsap(model, HsapPlugin(**sizes, timeout_seconds=1 if kind == "absent" else 60))
    except HsapError as error:
        return type(error).__name__, str(error), snapshot(model) == before
    return "enabled"


def near_slots(group, blind_rank):
    """What a rank takes for neighbours, where `blind_rank` alone was told not to read others' memory."""
    if dist.get_rank() == blind_rank:
        os.environ["NCCL_P2P_DISABLE"] = "1"
    try:
        model = small_llama()
        with enabled(model, group) as handle:
            model(**packed([8, 30], dist.get_rank()))
            return handle.mesh.near_slots
    finally:
        os.environ.pop("NCCL_P2P_DISABLE", None)
