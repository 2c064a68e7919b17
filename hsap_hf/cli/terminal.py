"""Where tables are printed, and where files can be written."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from rich.console import Console

from hsap_hf.errors import ConfigError

_FILE_WIDTH = 140
"""Columns into a file or a pipe, where neither a terminal nor COLUMNS sets a limit."""


def console() -> Console:
    """The terminal, or a wide page."""
    return Console() if sys.stdout.isatty() or "COLUMNS" in os.environ else Console(width=_FILE_WIDTH)


def check_folder(path: Path, option: str) -> None:
    """Raise ConfigError where a file cannot be written because its folder is not there."""
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{option} {path}: there is no folder {path.parent}. Make it, or name another file.")
