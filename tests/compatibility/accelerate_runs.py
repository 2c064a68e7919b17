"""A bare Accelerate loop, on one rank of the gloo pool."""

import torch
import torch.distributed as dist
from accelerate import Accelerator
from small import COLLATORS, Documents, small_llama
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from hsap_hf import HsapPlugin, enable_hsap


def loop(model, documents, collator, group):
    accelerator = Accelerator(cpu=True)
    if group is not None:
        enable_hsap(model, HsapPlugin(context_size=group[0], ulysses_size=group[1]))
    loader = torch.utils.data.DataLoader(documents, batch_size=4, collate_fn=collator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    losses = []
    for batch in loader:
        supervised = (batch["labels"][:, 1:] != -100).sum()
        num_items = accelerator.gather(supervised).sum()  # of all ranks: the loss is a sum divided by it
        loss = model(**batch, num_items_in_batch=num_items, use_cache=False).loss * accelerator.num_processes
        accelerator.backward(loss)  # DDP takes the mean over ranks
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(accelerator.gather(loss.detach()).mean().item())
    return losses


def run(group):
    """Losses of an epoch, and the final weights on rank 0."""
    model = small_llama()
    losses = loop(model, Documents(count=96), COLLATORS["flattening"](), group)
    return losses, {name: w.numpy() for name, w in model.state_dict().items()} if dist.get_rank() == 0 else {}


def means(group):
    """Loss without num_items_in_batch on this rank's batch, whose size is its own: (HSAP, token mean of the group)."""
    model, documents, me = small_llama(), Documents(), dist.get_rank()
    batch = COLLATORS["flattening"]()([documents[item] for item in range(4 * me, 4 * me + 1 + me)])
    with enable_hsap(model, HsapPlugin(context_size=group[0], ulysses_size=group[1])):
        ours = model(**batch).loss.detach()
    own = model(**batch, use_cache=False).loss.detach()
    supervised = (batch["labels"][:, 1:] != -100).sum()
    total = torch.stack([own * supervised, supervised])
    dist.all_reduce(total)
    dist.all_reduce(ours)
    rank_means = own.clone()
    dist.all_reduce(rank_means)
    return float(ours) / 4, float(total[0] / total[1]), float(rank_means) / 4


def sharded(group, checkpointing=False, dtype=None):
    """Losses and gradient norms of an epoch under FSDP2's fully_shard, final weights, rows received."""
    model, documents = small_llama(), Documents(count=96)
    handle = enable_hsap(model, HsapPlugin(context_size=group[0], ulysses_size=group[1])) if group else None
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    policy = MixedPrecisionPolicy(param_dtype=dtype and getattr(torch, dtype))
    for layer in model.model.layers:
        fully_shard(layer, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    optimizer, seen, me = torch.optim.SGD(model.parameters(), lr=0.1), [], dist.get_rank()
    for start in range(0, len(documents), 16):
        mine = [documents[item] for item in range(start + 4 * me, start + 4 * me + 4)]
        batch = COLLATORS["flattening"]()(mine)
        num_items = (batch["labels"][:, 1:] != -100).sum()
        dist.all_reduce(num_items)
        loss = model(**batch, num_items_in_batch=num_items, use_cache=False).loss * dist.get_world_size()
        loss.backward()  # FSDP takes the mean over ranks
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).full_tensor()
        optimizer.step()
        optimizer.zero_grad()
        total = loss.detach().float()
        dist.all_reduce(total)
        seen.append((float(total) / dist.get_world_size(), float(norm)))
    weights = {name: w.full_tensor().numpy() for name, w in model.state_dict().items()}
    return seen, weights, handle.report()["received_rows"] if handle else 0
