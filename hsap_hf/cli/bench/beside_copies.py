"""The whole pack on every GPU beside small copies over the link that nobody needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from hsap_hf.cli.bench.ways import Way, whole_way
from hsap_hf.cli.bench.whole_pack import WholePack
from hsap_hf.comm.axis import ProcessAxis
from hsap_hf.comm.peer import PeerMemory

_BYTES = 2**20
"""With every call."""


def beside_copies_way(pack: WholePack, everyone: ProcessAxis) -> Way:
    """The whole pack on every rank, each by itself; a little of the next rank's memory is copied beside every call.

    Nobody waits for the copy, and a call has one however long it takes. Needs GPUs that may read each other's memory.
    """
    whole = whole_way(pack, everyone.size)
    device = whole.rows.device
    memory = PeerMemory(_BYTES, device, everyone)
    here, side = torch.empty_like(memory.theirs), torch.cuda.Stream(device)

    def beside_a_copy(run: Callable[..., Any], *saved: Any) -> Any:
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            here.copy_(memory.theirs)
        return run(*saved)

    return replace(
        whole, forward=partial(beside_a_copy, whole.forward), backward=partial(beside_a_copy, whole.backward)
    )
