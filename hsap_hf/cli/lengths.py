"""Document lengths as users give them on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hsap_hf.errors import ConfigError


def read_lengths(text: str, pack: str | None) -> list[int]:
    """Lengths from a list like 900,40,8, a JSON file with a list, or one with {"packs": {name: [...]}} and a name."""
    content = _content(text)
    if isinstance(content, dict):
        return _named(content, pack, text)
    return _checked(content, text)


def read_packs(text: str, names: list[str] | None) -> dict[str, list[int]]:
    """The same for several packs by name; all of a file's packs where none is named."""
    content = _content(text)
    if isinstance(content, dict):
        return {name: _named(content, name, text) for name in names or content.get("packs", {})}
    return {"pack": _checked(content, text)}


def _content(text: str) -> Any:
    path = Path(text)
    try:
        return json.loads(path.read_text() if _is_file(path) else f"[{text.strip('[] ')}]")
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ConfigError(f"--lengths {text[:80]!r} is neither a JSON file nor a list like 900,40,8.") from None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a list may be too long for a file name
        return False


def _named(content: dict[str, Any], pack: str | None, text: str) -> list[int]:
    packs = content.get("packs", {})
    if pack not in packs:
        raise ConfigError(f"--pack {pack!r} is not in {text}. Choose one of: {', '.join(packs) or 'none there'}.")
    return _checked(packs[pack], text)


def _checked(content: Any, text: str) -> list[int]:
    if not isinstance(content, list):
        raise ConfigError(f"{text}: expected a list of lengths, got a {type(content).__name__}.")
    return content
