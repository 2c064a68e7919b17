"""Models and machines as users name them on the command line."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from hsap_hf.errors import ConfigError
from hsap_hf.planner.machine import MACHINES, Machine
from hsap_hf.planner.model import MODELS, Model

MODEL_NAMES = ", ".join(model.name for model in MODELS)
MACHINE_NAMES = ", ".join(machine.name for machine in MACHINES)


def read_model(name: str) -> Model:
    """The shape of a named model, or of the configuration in a folder or on the hub."""
    for model in MODELS:
        if model.name == name:
            return model
    from transformers import AutoConfig

    try:
        return shape_of(AutoConfig.from_pretrained(name), Path(name).name)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--model {name}: not one of {MODEL_NAMES}, and {str(error).splitlines()[0]}") from error


def shape_of(config: Any, name: str) -> Model:
    """The shape that a transformers configuration describes."""
    text = config.get_text_config()
    try:
        heads = text.num_attention_heads
        return Model(
            name=name,
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            num_layers=text.num_hidden_layers,
            num_query_heads=heads,
            num_kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
            vocab_size=text.vocab_size,
            tied_embeddings=bool(text.tie_word_embeddings),
        )
    except AttributeError as error:
        raise ConfigError(f"the shape of {name} is not like Llama's: {error}.") from None


def read_machine(name: str) -> Machine:
    """A named machine, or the one in a file that `hsap doctor --calibrate FILE` wrote."""
    for machine in MACHINES:
        if machine.name == name:
            return machine
    try:
        found = json.loads(Path(name).read_text())
        return Machine(**{field.name: found[field.name] for field in fields(Machine)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--machine {name}: not one of {MACHINE_NAMES}, and no file of `hsap doctor --calibrate` ({error!r})."
        ) from None


def write_machine(machine: Machine, path: Path) -> None:
    """Write the file that `read_machine` reads."""
    path.write_text(json.dumps(asdict(machine), indent=2) + "\n")
