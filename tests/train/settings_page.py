"""docs/settings.md as text, from the classes that hold the settings."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, fields

from hsap_hf import HsapPlugin
from hsap_hf.train.arguments import DEFAULTS, REFUSED
from hsap_hf.train.sections import DataSection, LoggingSection, ModelSection, PackingSection

_TOP = """<!-- Written by `pytest tests/train --write-docs`; do not edit. -->
# Settings

## HSAP

Fields of `HsapPlugin`, keys of the section `hsap:` in a recipe or in the file of `hsap launch`, and, in capitals after
`HSAP_`, variables of the environment: `HSAP_CONTEXT_SIZE=4`. `enable_hsap(model)` without a plugin reads the file that
`HSAP_CONFIG_FILE` names, and variables on top of it. Unknown names are refused everywhere.

"""
_RECIPE = """
## A recipe

One YAML file; `section.key=value` on the command line changes any value. Besides `hsap` it has these sections.
"""
_TRAINING = """
### training

Exactly `transformers.TrainingArguments`, checked by name and type before ranks start. `fsdp: true` shards the model
with FSDP2, where no accelerate file does. A recipe's own defaults:

"""
_REFUSED = """
and what it refuses, since the run would not be that of plain data parallelism:

"""
_ABOUT = {
    ModelSection: "The model: one of `name_or_path` and `config`.",
    DataSection: "The documents.",
    PackingSection: "How documents become packs. Longer ones than a pack are cut, and the banner says how many.",
    LoggingSection: "What the run prints besides Trainer's own logs.",
}


def page() -> str:
    """The whole file."""
    text = _TOP + _table(HsapPlugin) + _RECIPE
    for section, about in _ABOUT.items():
        text += f"\n### {section.where}\n\n{about}\n\n{_table(section)}"
    defaults = "".join(f"* `{name}: {_yaml(value)}`\n" for name, value in DEFAULTS.items())
    refused = "".join(
        textwrap.fill(
            f"* `{name}` other than {' or '.join(f'`{_yaml(one)}`' for one in allowed)}: {reason}",
            width=120,
            subsequent_indent="  ",
            break_on_hyphens=False,
        )
        + "\n"
        for name, (allowed, reason) in REFUSED.items()
    )
    return text + _TRAINING + defaults + _REFUSED + refused


def _table(kind: type) -> str:
    meanings, defaults = dict(_meanings(kind)), {item.name: item.default for item in fields(kind)}
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for item in fields(kind):
        default = "needed" if defaults[item.name] is MISSING else f"`{_yaml(defaults[item.name])}`"
        rows.append(f"| `{item.name}` | {_type(str(item.type))} | {default} | {meanings[item.name]} |")
    return "\n".join(rows) + "\n"


def _meanings(kind: type) -> Iterator[tuple[str, str]]:
    """Each field with the text below it."""
    (body,) = ast.parse(inspect.getsource(kind)).body
    for one, following in zip(body.body, body.body[1:], strict=False):
        if isinstance(one, ast.AnnAssign) and isinstance(following, ast.Expr):
            yield one.target.id, " ".join(following.value.value.split()).replace("|", "\\|")


def _type(annotation: str) -> str:
    """As readers of YAML call it."""
    words = annotation.replace("Literal[", "").replace("]", "").replace("dict[str, Any", "mapping")
    words = words.replace("None", "null").replace(" | ", ", ").replace("'", "")
    return ", ".join(f"`{word}`" for word in words.split(", "))


def _yaml(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
