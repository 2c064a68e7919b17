"""The process groups of a job, none of them somebody else's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist

_FEWEST_MULTIPROCESSORS, _MULTIPROCESSORS_A_NEIGHBOUR, _MOST_MULTIPROCESSORS = 8, 4, 16
"""Of a GPU, for the exchange; attention beside it gets the others. On two H100s NCCL would take 17 of 132. Between two
H200s 2 and 4 were slower than 8, and 16 no faster; between four 4 were too few, and 12 as good as 16 or 24."""


@dataclass(frozen=True)
class Groups:
    """This rank's groups. None is the job's default group, where data parallelism sends gradients when they are ready:
    on one communicator ranks in which that happens at different moments would wait for each other for ever."""

    context: dist.ProcessGroup
    ulysses: dist.ProcessGroup
    group: dist.ProcessGroup
    """All ranks that share packs: one of the two others, where it has all of them."""
    group_host: dist.ProcessGroup
    """The same ranks over gloo."""
    world_host: dist.ProcessGroup
    """Every rank of the job over gloo."""


def make_groups(context_size: int, ulysses_size: int, device_type: str, timeout_seconds: float) -> Groups:
    """Every rank of the job must call it, in the same order; ulysses ranks are innermost, replicas outermost.

    They are new ones each time, since a rank that left by an error may have left messages in the old.
    """
    limit = timedelta(seconds=timeout_seconds)
    ranks = torch.arange(dist.get_world_size()).view(-1, context_size, ulysses_size)
    patience = max(limit, _job_limit(device_type))
    urgent = _urgent(context_size) if device_type == "cuda" else None
    context = _own(ranks.transpose(1, 2).reshape(-1, context_size).tolist(), patience, urgent)
    ulysses = _own(ranks.reshape(-1, ulysses_size).tolist(), patience)
    if ulysses_size == 1:
        group = context
    elif context_size == 1:
        group = ulysses
    else:
        group = _own(ranks.flatten(1).tolist(), patience)
    host, _ = dist.new_subgroups(context_size * ulysses_size, timeout=limit, backend="gloo")
    world = cast(dist.ProcessGroup, dist.new_group(timeout=limit, backend="gloo"))
    return Groups(context, ulysses, group, cast(dist.ProcessGroup, host), world)


def _own(ranks: Sequence[Sequence[int]], limit: timedelta, options: Any = None) -> dist.ProcessGroup:
    """The one of these groups that this rank is in."""
    if options is not None:
        options._timeout = limit
    own, _ = dist.new_subgroups_by_enumeration([list(each) for each in ranks], timeout=limit, pg_options=options)
    return cast(dist.ProcessGroup, own)


def _job_limit(device_type: str) -> timedelta:
    """How long the job's own collectives may take (Trainer's ddp_timeout). NCCL counts from when the host asked for
    one, which in a backward of long documents may be minutes before its turn comes."""
    backend = cast(dist.ProcessGroup, dist.group.WORLD)._get_backend(torch.device(device_type))
    try:
        return backend.options._timeout
    except (AttributeError, RuntimeError):  # of backends that do not tell
        return timedelta()


def _urgent(slots: int) -> Any:
    """Keys and their gradients travel beside attention kernels, which leave no room on the device: without priority
    NCCL's own kernels would only start when those are done. Nor should NCCL take more room than it needs: it holds all
    of it while it waits for a slower rank."""
    options = dist.ProcessGroupNCCL.Options(is_high_priority_stream=True)
    asked = max(_FEWEST_MULTIPROCESSORS, _MULTIPROCESSORS_A_NEIGHBOUR * (slots - 1))
    options.config.max_ctas = min(asked, _MOST_MULTIPROCESSORS)
    return options
