"""Runs on one rank of the gloo pool: the process groups that enabling HSAP makes."""

import torch
import torch.distributed as dist
from small import VOCABULARY, small_llama

from hsap_hf import HsapDataCollator, HsapPlugin, enable_hsap
from hsap_hf.comm import build_mesh
from hsap_hf.comm.groups import Groups

CPU = torch.device("cpu")


def told(context_size, ulysses_size, **options):
    """Of every axis: its ranks, whether it is the job's own group, and its limit in seconds."""
    mesh = build_mesh(HsapPlugin(context_size=context_size, ulysses_size=ulysses_size, **options), "cpu")
    return {
        name: (dist.get_process_group_ranks(group), group is dist.group.WORLD, limit(group).total_seconds())
        for name in Groups.__dataclass_fields__
        for group in [getattr(mesh, name).group]
    }


def limit(group):
    return group._get_backend(CPU).options._timeout


def packed(length):
    ids = torch.arange(length) % (VOCABULARY - 3) + 3
    return HsapDataCollator()([{"input_ids": ids}])


def own_parameters_of_one_rank(group, steps=3):
    """Plain DDP with weights that only rank 0 uses: its gradients are ready at another moment than the others'."""
    model = small_llama()
    model.extra = torch.nn.Linear(model.config.hidden_size, model.config.hidden_size)
    if dist.get_rank() == 0:
        model.model.layers[0].mlp.register_forward_hook(lambda module, args, output: output + model.extra(output))
    handle = enable_hsap(model, HsapPlugin(context_size=group[0], ulysses_size=group[1], timeout_seconds=20))
    whole = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True, bucket_cap_mb=1e-5)
    norms = []
    for _ in range(steps):
        whole.zero_grad()
        whole(**packed(60)).loss.backward()
        norms.append(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm().item())
    handle.disable()
    return norms


def left_by_an_error():
    """Rank 0 leaves a session by an error of its own, which it catches; then all enable once more: their losses."""
    model, batch = small_llama(), packed(60)
    try:
        with enable_hsap(model, HsapPlugin(context_size=4)):
            first = model(**batch).loss.item()
            if dist.get_rank() == 0:
                raise ValueError("mine")
    except ValueError:
        pass
    with enable_hsap(model, HsapPlugin(context_size=4)):
        return first, model(**batch).loss.item()
