"""An axis whose ranks read each other's GPU memory: copy engines move the messages, and attention keeps its cores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from hsap_hf.comm.axis import Axis, Pending, ProcessAxis, explained
from hsap_hf.planner import Layout

MOST_PEERS = 8
"""Slots up to which this is considered; the GPUs of one node."""
_ROOM = 192 * 2**20
"""Bytes of a message. Longer ones go through NCCL: so much attention waits for them that it hides them either way."""


class PeerMemory:
    """Two rooms on every GPU of a group, which the others may read. Messages take turns with them.

    A rank leaves its message in a room of its own, waits for the others to have done the same, and fetches its rows
    from theirs. Whoever leaves the next but one message has waited for everyone to have left the next, hence to have
    fetched what was in the room before: one barrier a message is enough.

    Raises RuntimeError where the GPUs cannot do it. All ranks of the group must make it at the same time.
    """

    def __init__(self, group: dist.ProcessGroup, device: torch.device, timeout_seconds: float) -> None:
        import torch.distributed._symmetric_memory as symmetric

        self._mine = symmetric.empty(2 * _ROOM, dtype=torch.uint8, device=device)
        self._handle = symmetric.rendezvous(self._mine, group.group_name)
        size, dtype = self._mine.shape, self._mine.dtype
        self._theirs = [self._handle.get_buffer(rank, tuple(size), dtype) for rank in range(group.size())]
        self._stream = torch.cuda.Stream(device, priority=-1)
        self._timeout_ms = int(1e3 * timeout_seconds)
        self._start = 0

    def swap(self, send: Tensor, starts: list[int], received: list[Tensor]) -> torch.cuda.Event:
        """Leave the bytes `send` to all, and fill every tensor of `received`, one for each rank, from the byte of that
        rank's message at which `starts` says. Returns what to wait for before anything of this is used again."""
        first = self._start
        self._start = _ROOM - first
        self._stream.wait_stream(torch.cuda.current_stream(send.device))
        with torch.cuda.stream(self._stream):
            self._mine[first : first + len(send)].copy_(send)
            self._handle.barrier(timeout_ms=self._timeout_ms)
            for theirs, start, place in zip(self._theirs, starts, received, strict=True):
                if len(place):
                    place.copy_(theirs[first + start : first + start + len(place)])
            done = torch.cuda.Event()
            done.record()
        return done


def with_peer_memory(axis: ProcessAxis, everyone: Axis) -> ProcessAxis:
    """The same axis on peer memory; itself where a rank of `everyone`, who all call this, cannot have it."""
    try:
        memory = PeerMemory(axis.group, torch.device("cuda", torch.cuda.current_device()), axis.timeout_seconds)
    except RuntimeError:
        memory = None
    failed = everyone.all_reduce_max(torch.tensor([memory is None], dtype=torch.int64), "agree on peer memory")
    if memory is None or failed.item():
        return axis
    return PeerMemoryAxis(axis.group, axis.timeout_seconds, axis.debug, memory=memory)


@dataclass(frozen=True, kw_only=True)
class PeerMemoryAxis(ProcessAxis):
    """A process group's axis that moves what comes with a layout through `memory`, if there is room."""

    memory: PeerMemory

    def all_to_all(
        self,
        send: Tensor,
        send_rows: list[int],
        receive_rows: list[int],
        purpose: str,
        layout: Layout | None = None,
    ) -> Pending:
        row_bytes = send.element_size() * torch.Size(send.shape[1:]).numel()
        if layout is None or layout.most * row_bytes > _ROOM:
            return super().all_to_all(send, send_rows, receive_rows, purpose, layout)
        received, send = self.room(send, receive_rows), send.contiguous()
        starts = [start * row_bytes for start in layout.starts]
        places = torch.split(_bytes(received), [rows * row_bytes for rows in receive_rows])
        with explained(purpose, self.timeout_seconds):
            done = self.memory.swap(_bytes(send), starts, list(places))
        return Pending(received, lambda: torch.cuda.current_stream().wait_event(done), send)


def _bytes(x: Tensor) -> Tensor:
    return x.view(-1).view(torch.uint8)
