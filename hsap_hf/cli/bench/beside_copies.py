"""The whole pack on every GPU beside small copies that nobody needs: what an awake link costs."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from threading import Event

import torch
from torch import Tensor

from hsap_hf.cli.bench.ways import Way, whole_way
from hsap_hf.cli.bench.whole_pack import WholePack
from hsap_hf.comm.axis import ProcessAxis
from hsap_hf.comm.peer import PeerMemory

_BYTES = 2**20
_SECONDS = 0.01
"""Between two copies. An H200's links stay awake for about 0.05 s after one."""


def beside_copies_way(pack: WholePack, everyone: ProcessAxis) -> Way:
    """The whole pack on every rank, each by itself, while some of the next rank's memory is copied again and again.

    Nobody waits for a copy, but it wakes the links. Needs GPUs that may read each other's memory.
    """
    memory = PeerMemory(_BYTES, pack.grad.device, everyone)
    return replace(whole_way(pack, everyone.size), during=lambda: _copies(memory.theirs))


def beside_own_copies_way(pack: WholePack, copies: int) -> Way:
    """The same with as much of the rank's own memory: the links sleep."""
    own = torch.empty(_BYTES, dtype=torch.uint8, device=pack.grad.device)
    return replace(whole_way(pack, copies), during=lambda: _copies(own))


@contextmanager
def _copies(source: Tensor) -> Iterator[None]:
    """As long as this lasts, on a stream of its own; raises in the end what ended them early."""
    stop = Event()
    with ThreadPoolExecutor(1) as threads:
        copying = threads.submit(_copy_until, stop, source)
        try:
            yield
        finally:
            stop.set()
        copying.result()


def _copy_until(stop: Event, source: Tensor) -> None:
    torch.cuda.set_device(source.device)  # each thread has its own
    here, stream = torch.empty_like(source), torch.cuda.Stream(source.device)
    stream.wait_stream(torch.cuda.current_stream(source.device))
    with torch.cuda.stream(stream):
        while not stop.wait(_SECONDS):
            here.copy_(source)
    stream.synchronize()
