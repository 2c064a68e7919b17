"""A training run as one YAML file: read strictly, every problem reported at once, before anything heavy happens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hsap_hf.config import HsapPlugin
from hsap_hf.errors import ConfigError
from hsap_hf.strict import parse_scalar, read_yaml, unknown_keys
from hsap_hf.train.arguments import training_arguments, training_problems
from hsap_hf.train.sections import DataSection, LoggingSection, ModelSection, PackingSection

if TYPE_CHECKING:
    from transformers import TrainingArguments


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything `hsap train` needs to know."""

    model: ModelSection
    data: DataSection
    packing: PackingSection
    hsap: HsapPlugin = field(default_factory=HsapPlugin)
    training: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of transformers.TrainingArguments, by their own names."""
    logging: LoggingSection = field(default_factory=LoggingSection)

    def __post_init__(self) -> None:
        problems = training_problems(self.training) + list(self._problems())
        if problems:
            raise ConfigError("\n".join(problems))

    def _problems(self) -> Iterable[str]:
        vocabulary = (self.model.config or {}).get("vocab_size", self.data.vocab_size)
        if self.model.config is not None and self.data.tokenizer is None and vocabulary < self.data.vocab_size:
            yield (
                f"model.config.vocab_size is {vocabulary}, but data.vocab_size allows the tokenizer that is trained "
                f"{self.data.vocab_size} entries. Raise the first or lower the second."
            )
        group, limit = self.hsap.context_size, self.hsap.max_tokens_per_rank
        if group != "auto":
            group *= self.hsap.ulysses_size
        if group != "auto" and limit is not None and self.packing.pack_tokens > limit * group:
            yield (
                f"packing.pack_tokens is {self.packing.pack_tokens}, but hsap.max_tokens_per_rank allows {limit} on "
                f"each of {group} ranks, {limit * group} in all: full packs would be refused. Lower the first, or "
                "raise max_tokens_per_rank or context_size."
            )


_SECTIONS = {"model": ModelSection, "data": DataSection, "packing": PackingSection, "logging": LoggingSection}


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, with `section.key=value` overrides on top of it.

    Raises one ConfigError that lists every problem of every section.
    """
    content = read_yaml(path)
    problems = [problem for text in overrides if (problem := _override(content, text))]
    problems += _code_from_data(content, "")
    problems += unknown_keys(content, [*_SECTIONS, "hsap", "training"], str(path))
    sections: dict[str, Any] = {}
    for name in (*_SECTIONS, "hsap", "training"):
        values = content.get(name)
        if values is not None and not isinstance(values, dict):
            problems.append(f"{name}: got {values!r}, needs `key: value` lines.")
            continue
        try:
            sections[name] = _section(name, values or {})
        except ConfigError as error:
            problems += str(error).splitlines()
    if not problems:
        try:
            return Recipe(**sections)
        except ConfigError as error:
            problems = str(error).splitlines()
    raise ConfigError(f"{path}:\n" + "\n".join(f"  - {problem}" for problem in problems))


def build_training_arguments(recipe: Recipe) -> TrainingArguments:
    """TrainingArguments of the recipe, with our defaults where it is silent. Starts torch.distributed when launched.

    Raises ConfigError where transformers refuses the combination on this machine.
    """
    return training_arguments(recipe.training)


def _section(name: str, values: dict[str, Any]) -> Any:
    """One section, checked. Raises ConfigError with a line per problem."""
    if name == "hsap":
        return HsapPlugin.from_mapping(values)
    if name == "training":
        if problems := training_problems(values):
            raise ConfigError("\n".join(problems))
        return values
    owner = _SECTIONS[name]
    if problems := owner.problems(values):
        raise ConfigError("\n".join(problems))
    return owner(**values)


def _override(content: dict[str, Any], text: str) -> str | None:
    """Write `section.key=value` into `content`, or say why not."""
    name, equals, value = text.partition("=")
    keys = name.strip().split(".")
    if not equals or len(keys) < 2 or not all(keys):
        return f"override {text!r}: needs the form section.key=value, for example training.max_steps=20."
    place = content
    for depth, key in enumerate(keys[:-1], start=1):
        if place.get(key) is None:
            place[key] = {}
        place = place[key]
        if not isinstance(place, dict):
            return f"override {text!r}: {'.'.join(keys[:depth])} is {place!r} and holds no keys."
    try:
        place[keys[-1]] = parse_scalar(value)
    except (yaml.YAMLError, ConfigError):
        return f"override {text!r}: the value is not YAML. Quote it, for example {name}='text'."
    return None


def _code_from_data(content: Any, where: str) -> list[str]:
    """A sentence per `trust_remote_code` at any depth, which is taken out so that it is reported once."""
    if isinstance(content, list):
        return [problem for item in content for problem in _code_from_data(item, where)]
    if not isinstance(content, dict):
        return []
    problems = []
    for key in list(content):
        path = f"{where}.{key}".lstrip(".")
        if key == "trust_remote_code":
            del content[key]
            problems.append(
                f"{path}: a recipe never runs code from elsewhere. If you trust the repository, pass "
                "--trust-remote-code on the command line, and remove this key."
            )
        else:
            problems += _code_from_data(content[key], path)
    return problems
