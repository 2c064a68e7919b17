"""The hierarchy of ranks: replicas, context and ulysses, outermost to innermost."""

from __future__ import annotations

import atexit
import sys
import time
from dataclasses import dataclass
from typing import NoReturn

import torch
import torch.distributed as dist

from hsap_hf.comm.axis import Axis, ProcessAxis
from hsap_hf.comm.groups import make_groups
from hsap_hf.config import HsapPlugin, may_read_peers
from hsap_hf.errors import ConfigError


@dataclass(frozen=True)
class HsapMesh:
    """Where this rank stands: one axis per level, and two axes on the host for agreement."""

    context: Axis
    ulysses: Axis
    group: Axis
    """All `context x ulysses` ranks that share packs; ulysses ranks are innermost."""
    group_host: Axis
    """The same ranks over gloo: lengths travel here without touching the device."""
    world_host: Axis
    """Every rank of the job over gloo: where all of them agree, or fail together."""
    replica: int
    num_replicas: int
    slots_per_node: int | None = None
    """Neighbouring slots of a group that share a node; None where all do, or nodes and groups do not line up."""
    near_slots: int | None = None
    """Neighbouring slots whose GPUs may read each other's memory; None: all of the group's."""

    def __deepcopy__(self, memo: object) -> HsapMesh:
        """A copied model (a reference model, say) shares its groups with the original."""
        return self

    def __reduce__(self) -> NoReturn:
        raise ConfigError(
            "a model with HSAP enabled cannot be pickled whole: its process groups are of this job. Save its weights "
            "(save_pretrained, or model.state_dict()), or call disable_hsap(model) first."
        )

    def describe(self) -> str:
        """The mesh in words, for a banner."""
        world = self.num_replicas * self.group.size
        return (
            f"{world} ranks = {self.num_replicas} replicas x {self.context.size} context x {self.ulysses.size} ulysses"
        )


def build_mesh(plugin: HsapPlugin, device_type: str) -> HsapMesh:
    """Build all process groups; every rank of the job must call it, in the same order.

    Raises ConfigError where groups do not fill the world.
    """
    if device_type == "cuda":
        take_own_gpu()
    world = dist.get_world_size()
    context_size, ulysses_size = plugin.context_for(world), plugin.ulysses_size
    groups = make_groups(context_size, ulysses_size, device_type, plugin.timeout_seconds)

    def axis(process_group: dist.ProcessGroup) -> ProcessAxis:
        return ProcessAxis(process_group, plugin.timeout_seconds, plugin.debug)

    for ending in (let_go, leave):  # the last one registered is the first that runs
        atexit.unregister(ending)
        atexit.register(ending)
    world_host = axis(groups.world_host)
    own_ranks = dist.get_node_local_rank(fallback_rank=dist.get_rank()) + 1
    facts = torch.tensor([own_ranks, int(not may_read_peers())])  # the same on all, since messages depend on them
    ranks, distant = world_host.all_reduce_max(facts, "count the ranks of a node").tolist()
    slots = slots_of_node(ranks, context_size, ulysses_size)
    group_size = context_size * ulysses_size
    return HsapMesh(
        context=axis(groups.context),
        ulysses=axis(groups.ulysses),
        group=axis(groups.group),
        group_host=axis(groups.group_host),
        world_host=world_host,
        replica=dist.get_rank() // group_size,
        num_replicas=world // group_size,
        slots_per_node=None if slots == context_size else slots,
        near_slots=slots if slots is not None and not distant else 1,
    )


def take_own_gpu() -> None:
    """Before anything asks a GPU: this rank's own, as torch would choose it for groups, where none was chosen yet."""
    if not torch.cuda.is_initialized():
        torch.cuda.set_device(dist.get_node_local_rank(fallback_rank=dist.get_rank()) % torch.cuda.device_count())


def let_go() -> None:
    """Give gloo's threads a moment to let go of their last tensors, while Python still runs.

    A thread that does so later aborts the process: it asks for Python's lock, and is unwound through C++ that forbids
    it. Source: github.com/pytorch/pytorch/pull/179291.
    """
    time.sleep(0.1)


def leave() -> None:
    """End all groups, which ends their threads. Not after an error: others may be gone, and this would wait."""
    if dist.is_initialized() and not hasattr(sys, "last_value"):
        dist.destroy_process_group()


def slots_of_node(ranks: int, context_size: int, ulysses_size: int) -> int | None:
    """Slots of one group that share a node of so many ranks; None where nodes and groups do not line up."""
    slots, rest = divmod(ranks, ulysses_size)
    if rest or max(slots, context_size) % min(slots, context_size):
        return None
    return min(slots, context_size)


def world_size() -> int:
    """Ranks of the running job; 1 where torch.distributed is not running."""
    return dist.get_world_size() if dist.is_initialized() else 1


def device_type_of(module: torch.nn.Module) -> str:
    """The device type collectives of this model run on; a meta or CPU model beside CUDA ranks counts as CUDA."""
    parameter = next(module.parameters(), None)
    if parameter is not None and parameter.device.type not in ("cpu", "meta"):
        return parameter.device.type
    return "cuda" if dist.is_initialized() and "nccl" in dist.get_backend() else "cpu"
