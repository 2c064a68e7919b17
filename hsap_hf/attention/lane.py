"""A stream beside the current one, so that what waits for keys and what does not share the device."""

from __future__ import annotations

from functools import lru_cache
from types import TracebackType

import torch


class Lane:
    """`with lane:` runs on a stream of higher priority, after all that was asked for before `Lane` was made.

    Kernels of both streams then fill each other's last, half empty wave, and what the lane sends goes out as soon as
    it is there, not after the kernels beside it. `join()` lets the current stream wait for the lane; every tensor of
    the lane must be used after it, or in the lane. Nothing where there is nothing to wait for, or no streams.
    """

    def __init__(self, device: torch.device, *, idle: bool = False) -> None:
        self._stream = None if idle or device.type != "cuda" else _lane_stream(device)
        if self._stream is not None:
            self._before = torch.cuda.current_stream(device)
            self.follow()

    def __enter__(self) -> Lane:
        if self._stream is not None:
            torch.cuda.set_stream(self._stream)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            torch.cuda.set_stream(self._before)

    def follow(self) -> None:
        """The lane waits for what the stream beside it was asked for so far."""
        if self._stream is not None:
            self._stream.wait_stream(self._before)

    def join(self) -> None:
        """The stream beside the lane waits for it."""
        if self._stream is not None:
            self._before.wait_stream(self._stream)


@lru_cache
def _lane_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device, priority=-1)
