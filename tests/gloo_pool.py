"""Four gloo ranks that live as long as the test run: starting them costs seconds, a call costs milliseconds."""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import pickle
import socket
import sys
import time
import traceback
from multiprocessing import connection
from typing import Any

START_SECONDS = 60


class PoolError(AssertionError):
    """A rank of the pool raised, died or did not answer in time."""


class GlooPool:
    """`size` processes in one gloo world; `run` calls a function by name on all of them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._ranks: list[tuple[Any, Any]] = []

    def run(self, function: str, /, *args: Any, timeout: float = 120, **kwargs: Any) -> list[Any]:
        """Results of "module:name" called with these arguments, by rank. The module is one that tests can import.

        Raises PoolError with every rank's traceback; the pool starts anew at the next call.
        """
        if not self._ranks:
            self._start()
            timeout += START_SECONDS
        request = pickle.dumps((list(sys.path), function, args, kwargs))
        for _, pipe in self._ranks:
            pipe.send_bytes(request)
        deadline = time.monotonic() + timeout
        waiting = {pipe: rank for rank, (_, pipe) in enumerate(self._ranks)}
        results, problems = [None] * self.size, []
        while waiting and (seconds := deadline - time.monotonic()) > 0:
            for pipe in connection.wait(list(waiting), seconds):
                rank = waiting.pop(pipe)
                try:
                    good, results[rank] = pickle.loads(pipe.recv_bytes())
                except (EOFError, OSError):
                    good, results[rank] = False, "died"
                if not good:  # the others may wait for this rank for ever
                    problems.append(f"rank {rank} {results[rank]}")
                    deadline = min(deadline, time.monotonic() + 5)
        problems += [f"rank {rank} gave no answer in time" for rank in waiting.values()]
        if problems:
            self.close()
            raise PoolError(f"{function}:\n" + "\n".join(problems))
        return results

    def close(self) -> None:
        """End every process; calling it twice changes nothing."""
        for process, pipe in self._ranks:
            pipe.close()
            process.kill()
            process.join()
        self._ranks = []

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, self.size, port, theirs), daemon=True)
            process.start()
            theirs.close()
            self._ranks.append((process, ours))


def _serve(rank: int, size: int, port: int, pipe: Any) -> None:
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in world.items()}, MASTER_ADDR="127.0.0.1")
    os.environ["TRITON_INTERPRET"] = "1"  # kernels of other packages run on CPUs
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    while True:
        try:
            request = pipe.recv_bytes()
        except EOFError:
            return
        try:
            path, function, args, kwargs = pickle.loads(request)
            sys.path[:] = path
            module, _, name = function.partition(":")
            called = getattr(importlib.import_module(module), name)
            gc.freeze()  # what libraries hold is never garbage; accelerate collects often, and would look at all of it
            answer = (True, called(*args, **kwargs))
            _leave_groups()
        except BaseException:
            answer = (False, "raised\n" + traceback.format_exc())
        pipe.send_bytes(pickle.dumps(answer))


def _leave_groups() -> None:
    """End the process groups that a call made: each has threads that never sleep for long, hundreds stall a machine."""
    from torch import distributed

    gc.collect()
    distributed.barrier()
    for group in list(distributed.distributed_c10d._world.pg_map):
        if group is not distributed.group.WORLD:
            distributed.destroy_process_group(group)
