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
    if pack is not None:
        raise ConfigError(f"--pack {pack}: {text[:80]!r} is one list of lengths and has no packs by name.")
    return _checked(content, text)


def read_packs(text: str, names: list[str] | None) -> dict[str, list[int]]:
    """The same for several packs by name; all of a file's packs where none is named."""
    content = _content(text)
    if isinstance(content, dict):
        return {name: _named(content, name, text) for name in names or _packs(content, text)}
    if names:
        raise ConfigError(f"--pack {names[0]}: {text[:80]!r} is one list of lengths and has no packs by name.")
    return {"pack": _checked(content, text)}


def _content(text: str) -> Any:
    path = Path(text)
    try:
        return json.loads(path.read_text() if _is_file(path) else f"[{text.strip('[] ')}]")
    except (json.JSONDecodeError, UnicodeDecodeError):
        kind = "no JSON" if _is_file(path) else "neither a file that is there nor a list like 900,40,8"
        raise ConfigError(f"--lengths {text[:80]!r} is {kind}.") from None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a list may be too long for a file name
        return False


def _named(content: dict[str, Any], pack: str | None, text: str) -> list[int]:
    packs = _packs(content, text)
    if pack is None:
        raise ConfigError(f"{text} holds several packs. Choose one by --pack: {', '.join(packs)}.")
    if pack not in packs:
        raise ConfigError(f"--pack {pack!r} is not in {text}. Choose one of: {', '.join(packs)}.")
    return _checked(packs[pack], text)


def _packs(content: dict[str, Any], text: str) -> dict[str, Any]:
    packs = content.get("packs")
    if not packs or not isinstance(packs, dict):
        raise ConfigError(
            f'{text} has no packs. Needed is a list of lengths, or {{"packs": {{"name": [900, 40, 8]}}}}.'
        )
    return packs


def _checked(content: Any, text: str) -> list[int]:
    if not isinstance(content, list):
        raise ConfigError(f"{text}: expected a list of lengths, got a {type(content).__name__}.")
    if not content:
        raise ConfigError(f"--lengths {text!r}: holds no document. Give a list like 900,40,8.")
    return content
