"""N ranks in one process: threads that speak the same protocol, so numerics need no launcher."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from hsap_hf.comm.axis import Pending, Traffic, count_received
from hsap_hf.comm.mesh import HsapMesh

T = TypeVar("T")


class _Room:
    """Where the ranks of one loopback axis leave their messages."""

    def __init__(self, size: int) -> None:
        self.box: list[Any] = [None] * size
        self.barrier = threading.Barrier(size, timeout=60)

    def swap(self, rank: int, message: Any) -> list[Any]:
        self.box[rank] = message
        self.barrier.wait()
        everyone = list(self.box)
        self.barrier.wait()
        return everyone


@dataclass(frozen=True)
class LoopbackAxis:
    """One rank's end of an axis that lives in this process."""

    rank: int
    room: _Room
    traffic: Traffic = field(default_factory=Traffic)

    @property
    def size(self) -> int:
        return len(self.room.box)

    def all_to_all(
        self, send: Tensor, send_rows: list[int], receive_rows: list[int], purpose: str, into: Tensor | None = None
    ) -> Pending:
        messages = self.room.swap(self.rank, torch.split(send, send_rows))
        received = torch.cat([message[self.rank] for message in messages])
        if len(received) != sum(receive_rows):
            raise AssertionError(f"{purpose}: rank {self.rank} got {len(received)} rows, expected {sum(receive_rows)}")
        count_received(self.traffic, received, receive_rows, self.rank)
        return Pending(received if into is None else into.copy_(received), None)

    def all_gather(self, row: Tensor, purpose: str) -> Tensor:
        return torch.stack(self.room.swap(self.rank, row))

    def all_reduce_max(self, row: Tensor, purpose: str) -> Tensor:
        return self.all_gather(row, purpose).amax(0)


def loopback_grid(context_size: int, ulysses_size: int) -> list[tuple[LoopbackAxis, LoopbackAxis, LoopbackAxis]]:
    """(group, context, ulysses) axes of every rank of one group, ulysses innermost."""
    group = _Room(context_size * ulysses_size)
    across = [_Room(context_size) for _ in range(ulysses_size)]
    inside = [_Room(ulysses_size) for _ in range(context_size)]
    return [
        (LoopbackAxis(c * ulysses_size + u, group), LoopbackAxis(c, across[u]), LoopbackAxis(u, inside[c]))
        for c in range(context_size)
        for u in range(ulysses_size)
    ]


def lone_mesh() -> HsapMesh:
    """The mesh of a job with one rank."""
    group, context, ulysses = loopback_grid(1, 1)[0]
    return HsapMesh(context, ulysses, group, group, group, replica=0, num_replicas=1)


def run_ranks(size: int, body: Callable[[int], T]) -> list[T]:
    """`body(rank)` on `size` threads at once; returns their results or raises the first error."""
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = body(rank)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
    return results
