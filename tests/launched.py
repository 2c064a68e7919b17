"""Commands and ranks as real processes with deadlines that hold: what does not end in time is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PYTHON = sys.executable
HSAP = str(Path(sys.executable).with_name("hsap"))
ACCELERATE = str(Path(sys.executable).with_name("accelerate"))


@dataclass
class Ended:
    """One process that has ended. `code` is None where it had to be killed."""

    code: int | None
    out: str
    err: str
    ended_at: float


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def clean_environment(**changes: object) -> dict[str, str]:
    """This process' environment without what launchers and other tests put there."""
    foreign = ("HSAP_", "ACCELERATE_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "TORCHELASTIC", "FORK_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    settings = {"OMP_NUM_THREADS": 1, "HF_HUB_OFFLINE": 1, "PYTHONWARNINGS": "ignore", "COLUMNS": 200}
    return kept | {name: str(value) for name, value in (settings | changes).items()}


def launch(*words: object, deadline: float = 180, cwd: Path | None = None, **environment: object) -> Ended:
    """Run one command to its end."""
    return _wait([_Running(words, cwd, clean_environment(**environment))], deadline)[0]


def launch_ranks(*words: object, size: int = 2, deadline: float = 180, cwd: Path | None = None) -> list[Ended]:
    """Run the same command as `size` ranks of one job, started one by one so that nothing ends them but themselves."""
    world = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    ranks = [{"RANK": rank, "LOCAL_RANK": rank} for rank in range(size)]
    return _wait([_Running(words, cwd, clean_environment(**world, **rank)) for rank in ranks], deadline)


def launch_together(*commands: Sequence[object], deadline: float = 180) -> list[Ended]:
    """Run several commands at one time."""
    return _wait([_Running(tuple(words), None, clean_environment()) for words in commands], deadline)


class _Running:
    """A process that writes into files, so that it never waits for a reader."""

    def __init__(self, words: tuple[object, ...], cwd: Path | None, environment: dict[str, str]) -> None:
        self.ended_at: float | None = None
        self._texts = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115  (closed by `end`)
        self._process = subprocess.Popen(
            [str(word) for word in words],
            cwd=cwd or REPOSITORY,
            env=environment,
            stdout=self._texts[0],
            stderr=self._texts[1],
            start_new_session=True,
        )

    def has_ended(self) -> bool:
        if self.ended_at is None and self._process.poll() is not None:
            self.ended_at = time.time()
        return self.ended_at is not None

    def end(self) -> Ended:
        """What is left of it; kills it where it still runs."""
        late = not self.has_ended()
        if late:
            self._process.terminate()  # torchrun's ranks have sessions of their own: it must be asked to end them
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        shown = []
        for text in self._texts:
            text.seek(0)
            shown.append(text.read())
            text.close()
        return Ended(None if late else self._process.returncode, *shown, self.ended_at or 0.0)


def _wait(processes: list[_Running], deadline: float) -> list[Ended]:
    end = time.monotonic() + deadline
    while sum(process.has_ended() for process in processes) < len(processes) and time.monotonic() < end:
        time.sleep(0.05)
    return [process.end() for process in processes]
