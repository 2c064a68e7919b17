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


def check_model_folder(name: str) -> None:
    """Raise ConfigError for a path without a folder, which would be taken for a model of the hub."""
    if (name.startswith((".", "/", "~")) or name.count("/") > 1) and not Path(name).is_dir():
        raise ConfigError(f"{name}: no such folder. Name a model's folder, or a model of the hub.")
