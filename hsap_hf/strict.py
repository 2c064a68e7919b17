"""User-written YAML, read without guessing: no tags, no duplicate keys, no silent types, no unknown names."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from hsap_hf.errors import ConfigError

MAX_BYTES = 1 << 20


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and reads `1e-5` as the number everybody means."""


def _mapping_without_duplicates(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"line {node.start_mark.line + 1}: the key {key!r} stands twice. Keep one of them.")
    return dict(zip(keys, (loader.construct_object(value, deep=True) for _, value in node.value), strict=True))


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_duplicates)


def parse_scalar(text: str) -> Any:
    """One value as YAML reads it, plus floats without a dot (`1e-5`), which YAML 1.1 takes for strings."""
    return _numbers(yaml.load(text, Loader=_StrictLoader))  # noqa: S506  (a SafeLoader)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file of at most 1 MiB. Raises ConfigError with the file's name and line."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file.")
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"{path}: {path.stat().st_size} bytes; a configuration has at most {MAX_BYTES}.")
    try:
        content = parse_scalar(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, ConfigError) as error:
        raise ConfigError(f"{path}: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, got a {type(content).__name__}.")
    return content


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, str) and "e" in value.lower() and value[:1] in "+-.0123456789":
        try:
            return float(value)
        except ValueError:
            return value
    return value


def unknown_keys(given: Iterable[str], known: Iterable[str], where: str) -> list[str]:
    """One sentence per name in `given` that is not `known`, each with the nearest known name."""
    known = sorted(known)
    problems = []
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}."
            problems.append(f"{where}: unknown key {name!r}; {hint}")
    return problems


def field_problems(owner: type, values: Mapping[str, Any], where: str) -> list[str]:
    """One sentence per value whose type is not that of the dataclass field it is meant for."""
    hints = get_type_hints(owner)
    names = [field.name for field in fields(owner)]
    problems = unknown_keys(values, names, where)
    for name in names:
        if name in values and not _fits(values[name], hints[name]):
            problems.append(f"{where}.{name}: got {values[name]!r}, needs {_spell(hints[name])}.")
    return problems


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    origin = get_origin(hint)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(hint))
    if origin in (Union, types.UnionType):
        return any(_fits(value, choice) for choice in get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def _spell(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(repr(choice) for choice in get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_spell(choice) for choice in get_args(hint))
    if hint is type(None):
        return "null"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}.get(
        hint, str(getattr(hint, "__name__", hint))
    )
