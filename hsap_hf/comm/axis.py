"""One axis of the mesh: the ranks along it and the only collectives this package uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from hsap_hf.errors import CollectiveTimeoutError, HsapError, RankMismatchError


@dataclass
class Traffic:
    """Rows and bytes this rank received from other ranks, counted at the collectives themselves."""

    rows_from: Counter[int] = field(default_factory=Counter)
    """Rows by the rank of the axis that sent them."""
    num_bytes: int = 0

    @property
    def rows(self) -> int:
        return self.rows_from.total()


class Pending:
    """A collective under way. `wait()` returns what was received; on CUDA it only orders streams.

    keep: what is sent. Its memory stays reserved as long as this object lives, since the stream that it belongs to may
    not have waited yet: with expandable segments, an allocator that runs short unmaps what that stream is done with.
    """

    def __init__(self, received: Tensor, finish: Callable[[], object] | None, keep: Tensor | None = None) -> None:
        self._received, self._finish, self._keep = received, finish, keep

    def wait(self) -> Tensor:
        if self._finish is not None:
            self._finish()
            self._finish = None
        return self._received


class Axis(Protocol):
    """What deal, exchange and ulysses need: torch.distributed and the one-process loopback both provide it."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def traffic(self) -> Traffic: ...

    def all_to_all(
        self, send: Tensor, send_rows: list[int], receive_rows: list[int], purpose: str, into: Tensor | None = None
    ) -> Pending:
        """Start an uneven all-to-all over dim 0: `send_rows[r]` rows go to rank r, `receive_rows[r]` come from it.

        into: where they go; None: into a new tensor.
        """

    def all_gather(self, row: Tensor, purpose: str) -> Tensor:
        """[n] on each rank -> [size, n] on every rank; blocks."""

    def all_reduce_max(self, row: Tensor, purpose: str) -> Tensor:
        """Elementwise maximum over the ranks; blocks."""


@contextmanager
def explained(purpose: str, timeout_seconds: float) -> Iterator[None]:
    """Turn the backends' errors into ours, with the phase and what usually lies behind it."""
    try:
        yield
    except HsapError:
        raise
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise  # this rank's own; a fault of an earlier kernel shows up here, too
    except RuntimeError as error:
        if "imed out" in str(error) or "imeout" in str(error):
            raise CollectiveTimeoutError(
                f"waited {timeout_seconds:g} s for other ranks in phase '{purpose}'. A rank is stuck or slower, "
                f"or it makes another number of forward calls. If it may take this long (saving, first batch), "
                f"raise timeout_seconds."
            ) from error
        raise RankMismatchError(
            f"another rank left in phase '{purpose}'; its own error, printed by that rank, is the cause "
            f"({str(error).splitlines()[0][:160]})."
        ) from error


@dataclass(frozen=True)
class ProcessAxis:
    """An axis over a torch.distributed process group."""

    group: dist.ProcessGroup
    timeout_seconds: float
    debug: bool = False
    """Fill receive buffers with NaN first, so that a row nobody sent cannot pass unseen."""
    traffic: Traffic = field(default_factory=Traffic)

    @property
    def rank(self) -> int:
        return dist.get_rank(self.group)

    @property
    def size(self) -> int:
        return dist.get_world_size(self.group)

    def all_to_all(
        self, send: Tensor, send_rows: list[int], receive_rows: list[int], purpose: str, into: Tensor | None = None
    ) -> Pending:
        if self.size == 1:
            return Pending(send if into is None else into.copy_(send), None)
        received = send.new_empty((sum(receive_rows), *send.shape[1:])) if into is None else into
        if self.debug and received.is_floating_point():
            received.fill_(torch.nan)
        count_received(self.traffic, received, receive_rows, self.rank)
        send = send.contiguous()
        with explained(purpose, self.timeout_seconds):
            work = dist.all_to_all_single(received, send, receive_rows, send_rows, group=self.group, async_op=True)
        assert work is not None

        def finish() -> None:
            with explained(purpose, self.timeout_seconds):
                # NCCL orders streams here and has its own watchdog; a host timeout would make it synchronise.
                work.wait() if received.is_cuda else work.wait(timedelta(seconds=self.timeout_seconds))

        return Pending(received, finish, send)

    def all_gather(self, row: Tensor, purpose: str) -> Tensor:
        gathered = row.new_empty((self.size, *row.shape))
        with explained(purpose, self.timeout_seconds):
            dist.all_gather(list(gathered.unbind()), row, group=self.group)
        return gathered

    def all_reduce_max(self, row: Tensor, purpose: str) -> Tensor:
        row = row.clone()
        with explained(purpose, self.timeout_seconds):
            dist.all_reduce(row, op=dist.ReduceOp.MAX, group=self.group)
        return row


def count_received(traffic: Traffic, received: Tensor, receive_rows: list[int], own_rank: int) -> None:
    """Add what came from other ranks; a rank's message to itself is not traffic."""
    came = {rank: rows for rank, rows in enumerate(receive_rows) if rows and rank != own_rank}
    traffic.rows_from.update(came)
    rows = sum(came.values())
    traffic.num_bytes += rows * (received[:1].numel() if len(received) else 0) * received.element_size()
