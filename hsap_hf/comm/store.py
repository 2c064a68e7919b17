"""Ranks meet at the store torch.distributed started from: before there are groups, and after they have failed."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist

from hsap_hf import errors
from hsap_hf.errors import CollectiveTimeoutError, HsapError, RankMismatchError

_GOOD = "good"
_LAST_WORDS = "hsap/last words"
_LOST = re.compile(r"closed by peer|reset by peer|gloo|NCCL|[Tt]imed out")
"""How the backends say that another rank is gone."""


def join(error: Exception | None, settings: str, timeout_seconds: float) -> None:
    """Wait until every rank of the job has called this; the n-th call of a rank meets the n-th of the others.

    Building groups is collective, so a rank that stops before it would leave the others waiting. They meet at the
    store through which torch.distributed started. Raises `error` where there is one, the error of another rank, or
    RankMismatchError where `settings` differ; CollectiveTimeoutError says how many ranks came. The first verdict in
    the store counts for all: who comes after a timeout gets that timeout.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        if error is not None:
            raise error
        return
    rank, world = dist.get_rank(), dist.get_world_size()
    store = dist.distributed_c10d._get_default_store()
    call = f"hsap/{store.add(f'hsap/calls of {rank}', 1)}"
    first = store.compare_set(f"{call}/settings", "", settings).decode()
    if error is None and first != settings:
        error = RankMismatchError(f"ranks enable HSAP with different settings: {settings} here, {first} elsewhere.")
    if error is not None:
        store.compare_set(f"{call}/error", "", _written(error, f"rank {rank}: "))
    if store.add(f"{call}/arrived", 1) == world:
        store.delete_key(_LAST_WORDS)
        failed = store.check([f"{call}/error"])
        store.compare_set(f"{call}/verdict", "", store.get(f"{call}/error").decode() if failed else _GOOD)
    try:
        store.wait([f"{call}/verdict"], timedelta(seconds=timeout_seconds))
    except RuntimeError:
        late = CollectiveTimeoutError(
            f"{store.add(f'{call}/arrived', 0)} of {world} ranks called enable_hsap within {timeout_seconds:g} s. "
            f"Every rank must call it, as often as the others; a rank that ended says why in its own output."
        )
        store.compare_set(f"{call}/verdict", "", _written(late))
    verdict = store.get(f"{call}/verdict").decode()
    if error is not None:
        raise error
    if verdict != _GOOD:
        raise read_error(verdict)


def leave_words(error: BaseException) -> None:
    """Write what ends this rank where others find it. Never raises."""
    with suppress(Exception):
        store = dist.distributed_c10d._get_default_store()
        store.compare_set(_LAST_WORDS, "", f"{dist.get_rank()} {named(error)}")


def last_words(error: BaseException) -> RankMismatchError | None:
    """What ended the rank whose loss `error` reports; None for other errors, or where nothing was written.

    For a rank that waited in a collective of somebody else, where no agreement reaches it.
    """
    if isinstance(error, HsapError) or not isinstance(error, RuntimeError) or not _LOST.search(str(error)):
        return None
    with suppress(Exception):  # the store has ended with the rank that held it, or there never was one
        store = dist.distributed_c10d._get_default_store()
        if store.check([_LAST_WORDS]):
            rank, _, text = store.get(_LAST_WORDS).decode().partition(" ")
            return RankMismatchError(f"rank {rank}: {text}")
    return None


def named(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {error}"


def _written(error: Exception, prefix: str = "") -> str:
    text = str(error) if isinstance(error, HsapError) else named(error)
    return f"{type(error).__name__}\n{prefix}{text}"


def read_error(written: str) -> HsapError:
    """The error that another rank wrote as "class\\ntext"; a class that is not ours becomes RankMismatchError."""
    kind, _, text = written.partition("\n")
    found = getattr(errors, kind, None)
    if isinstance(found, type) and issubclass(found, HsapError):
        return found(text)
    return RankMismatchError(text)
