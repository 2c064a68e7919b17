"""Agreement once per batch: everyone learns everyone's lengths, and all go on together or all fail with one text."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hsap_hf.comm.mesh import HsapMesh, leave
from hsap_hf.comm.store import leave_words, named, read_error
from hsap_hf.errors import HsapError, RankMismatchError

_INLINE = 56
"""Lengths that travel in the header itself; a rank that brings more costs one more exchange."""
_SAME_WEIGHTS = 1e-8
"""Relative difference allowed. DDP leaves none; a step with gradients of single ranks about 4e-7 at a rate of 1e-6."""
_TEXT = 1024
"""Bytes of an error text that reach the other ranks."""


@dataclass(frozen=True)
class Gathered:
    """What the ranks of a group brought, by group rank."""

    lengths: list[list[int]]
    facts: list[list[int]]
    failed: list[int]
    """Group ranks that could not read their batch."""


def gather_batches(mesh: HsapMesh, lengths: Sequence[int], facts: Sequence[int], failed: bool) -> Gathered:
    """Exchange the lengths this rank brought and a few numbers that describe its call; one small message each."""
    axis = mesh.group_host
    header = torch.zeros(2 + len(facts) + _INLINE, dtype=torch.int64)
    head = [int(failed), len(lengths), *facts, *lengths[:_INLINE]]
    header[: len(head)] = torch.tensor(head)
    headers = axis.all_gather(header, "gather lengths")
    rest_size = int(headers[:, 1].max()) - _INLINE
    lengths_of = headers[:, 2 + len(facts) :]
    if rest_size > 0:
        rest = torch.zeros(rest_size, dtype=torch.int64)
        rest[: max(0, len(lengths) - _INLINE)] = torch.tensor(list(lengths[_INLINE:]), dtype=torch.int64)
        lengths_of = torch.cat([lengths_of, axis.all_gather(rest, "gather more lengths")], 1)
    return Gathered(
        lengths=[row[:count].tolist() for row, count in zip(lengths_of, headers[:, 1].tolist(), strict=True)],
        facts=headers[:, 2 : 2 + len(facts)].tolist(),
        failed=[rank for rank, flag in enumerate(headers[:, 0].tolist()) if flag],
    )


def confirm(mesh: HsapMesh, error: Exception | None, plan: int, weights: float = 0.0) -> None:
    """Every rank of the job calls this before anything is dealt.

    plan: its fingerprint. weights: any measure of them, at least 0; 0 where a rank has none to compare.
    Raises on all ranks with the same text where a rank has an `error`, where the ranks of a group hold different plans,
    or where weights differ between any two ranks of the job.
    """
    world, replicas = mesh.world_host, mesh.num_replicas
    votes = torch.full((3 + 2 * replicas,), torch.iinfo(torch.int64).min)
    votes[0] = 0 if error is None else world.size - world.rank  # the largest is the lowest rank
    votes[1 + 2 * mesh.replica], votes[2 + 2 * mesh.replica] = plan, -plan
    bits = torch.tensor(weights, dtype=torch.float64).view(torch.int64)  # in the order of the numbers, from 0 on
    votes[-2], votes[-1] = bits, -bits
    agreed = world.all_reduce_max(votes, "agree on the batch")
    if agreed[0]:
        raise _spread(mesh, error, world.size - int(agreed[0]))
    for replica in range(replicas):
        if agreed[1 + 2 * replica] != -agreed[2 + 2 * replica]:
            raise _final(RankMismatchError(f"the ranks of replica {replica} compiled different plans for one batch."))
    largest, smallest = (agreed[-2:] * torch.tensor([1, -1])).view(torch.float64).tolist()
    if smallest > 0 and largest - smallest > _SAME_WEIGHTS * largest:  # false for NaN: plain training goes on too
        raise _final(
            RankMismatchError(
                f"weights differ between ranks (sampled sizes {smallest:.9g} to {largest:.9g}): gradients were not "
                f"reduced over all {world.size} ranks, or models began differently. Let DDP or FSDP span all "
                f"ranks, as their default process group does, or run replicas that differ on purpose as separate jobs."
            )
        )


def announce(mesh: HsapMesh, num_facts: int, error: BaseException, patience_seconds: float = 5.0) -> None:
    """Tell the other ranks, who wait for this one's next batch, why it will not come. Never raises, never hangs."""
    if getattr(error, "hsap_agreed", False):
        return
    atexit.unregister(leave)  # others may be gone: ending in order may hang
    leave_words(error)

    def tell() -> None:
        try:
            gather_batches(mesh, [], [0] * num_facts, failed=True)
            confirm(mesh, RuntimeError(named(error)), 0)
        except Exception:
            return  # this rank is ending anyway, and its own error is the one to show

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    teller.join(patience_seconds)


def _spread(mesh: HsapMesh, error: Exception | None, source: int) -> HsapError:
    """The error of rank `source`, rebuilt on every rank."""
    text = torch.zeros(_TEXT, dtype=torch.int64)
    if mesh.world_host.rank == source:
        kind = type(error).__name__ if isinstance(error, HsapError) else "RankMismatchError"
        message = str(error) if isinstance(error, HsapError | RuntimeError) else named(error)
        encoded = f"{kind}\n{message}".encode()[:_TEXT]
        text[: len(encoded)] = torch.tensor(list(encoded))
    letters = mesh.world_host.all_reduce_max(text, "spread the error")
    found = read_error(bytes(letter for letter in letters.tolist() if letter).decode(errors="ignore"))
    return _final(type(found)(f"rank {source}: {found}"))


def _final(error: HsapError) -> HsapError:
    error.hsap_agreed = True  # type: ignore[attr-defined]
    return error
