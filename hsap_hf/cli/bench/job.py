"""Ranks that measure: started with a request, they answer through a file."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from hsap_hf.errors import ConfigError, HsapError, PackTooLargeError

SLOW_LINK: Mapping[str, str] = {"NCCL_P2P_DISABLE": "1"}
"""Between GPUs of one machine, NCCL goes through host memory: a stand-in for a network."""
TOO_LARGE = 3
"""Exit code of a rank whose memory, or `max_tokens_per_rank`, does not hold its share."""

_NO_MEMORY = ("out of memory", "ALLOC_FAILED", "CUDA calloc")


def link_of(device_type: str) -> str:
    """What carries messages between this process and the others, in words."""
    if device_type != "cuda":
        return "gloo"
    return "nccl without peer-to-peer" if SLOW_LINK.items() <= os.environ.items() else "nccl"


def ask(program: str, request: Mapping[str, Any], ranks: int, environment: Mapping[str, str]) -> tuple[int, Any]:
    """Run `program` on so many ranks of this machine: (0, its answer), or (exit code, None). Both sides are JSON."""
    from hsap_hf.train.launch import launch_ranks

    with tempfile.TemporaryDirectory(prefix="hsap_") as folder:
        asked, answered = Path(folder, "request.json"), Path(folder, "answer.json")
        asked.write_text(json.dumps(request))
        code = launch_ranks(program, ranks, [str(asked), str(answered)], environment)
        if code:
            return code, None
        if not answered.is_file():
            raise HsapError("the ranks ended without an answer; run again, and look at what they print.")
        return 0, json.loads(answered.read_text())


def answer(arguments: Sequence[str], measure: Callable[[dict[str, Any]], Any]) -> int:
    """The other side, on every rank: what `measure` makes of the request is the first rank's answer.

    Returns the exit code: 0 good, 1 failed, 2 bad configuration, TOO_LARGE; an error of ours is one text, without a
    traceback.
    """
    request_file, answer_file = map(Path, arguments)
    rank = os.environ.get("RANK", "0")
    try:
        found = measure(json.loads(request_file.read_text()))
    except Exception as error:
        no_memory = out_of_memory(error)
        if not no_memory and not isinstance(error, HsapError):
            raise
        typer.echo(f"rank {rank}: {type(error).__name__}: {error}", err=True)
        if no_memory:
            os._exit(TOO_LARGE)  # at once: the others wait for this rank, and it would wait for them
        return TOO_LARGE if isinstance(error, PackTooLargeError) else 2 if isinstance(error, ConfigError) else 1
    if rank == "0":
        answer_file.write_text(json.dumps(found))
    return 0


def out_of_memory(error: BaseException | None) -> bool:
    """Whether a device's memory ended; libraries say so in several ways, and we may have wrapped them."""
    while error is not None:
        if isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY):
            return True
        error = error.__cause__
    return False
