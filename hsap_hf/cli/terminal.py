"""Where tables are printed."""

from __future__ import annotations

import os
import sys

from rich.console import Console

_FILE_WIDTH = 140
"""Columns into a file or a pipe, where neither a terminal nor COLUMNS sets a limit."""


def console() -> Console:
    """The terminal, or a wide page."""
    return Console() if sys.stdout.isatty() or "COLUMNS" in os.environ else Console(width=_FILE_WIDTH)
