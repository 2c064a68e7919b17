"""The sections of a recipe: what each key means, and which values cannot work."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, Literal

from hsap_hf.errors import ConfigError
from hsap_hf.strict import field_problems, unknown_keys

_UNKNOWN = object()  # stands for a value of the wrong type, so that it is complained about once


class Section:
    """A part of a recipe that checks its types and its meaning when it is made."""

    where: ClassVar[str]

    def __post_init__(self) -> None:
        if problems := self.problems(vars(self)):
            raise ConfigError("\n".join(problems))

    @classmethod
    def problems(cls, values: Mapping[str, Any]) -> list[str]:
        """One sentence per unknown key, missing key, wrong type and value that cannot work."""
        problems = field_problems(cls, values, cls.where)
        good = {}
        for item in fields(cls):
            if item.name in values:
                fits = not field_problems(cls, {item.name: values[item.name]}, cls.where)
                good[item.name] = values[item.name] if fits else _UNKNOWN
            elif item.default is not MISSING:
                good[item.name] = item.default
            else:
                problems.append(
                    f"{cls.where}.{item.name}: missing, it has no default. "
                    f"Write for example `{item.name}: {item.metadata['example']}`."
                )
        return problems + list(cls._meaning(good))

    @classmethod
    def _meaning(cls, values: Mapping[str, Any]) -> Iterable[str]:
        """Problems of `values`, all of the right type or _UNKNOWN."""
        for name, value in values.items():
            if isinstance(value, int) and not isinstance(value, bool) and name != "seed" and value < 1:
                yield f"{cls.where}.{name}: got {value}, needs at least 1."


@dataclass(frozen=True, kw_only=True)
class ModelSection(Section):
    """The model: pretrained (`name_or_path`) or with random weights (`config`)."""

    where: ClassVar[str] = "model"

    name_or_path: str | None = None
    """Folder or hub name of a pretrained causal language model."""

    config: dict[str, Any] | None = None
    """`model_type` and fields of its configuration class, for a model with random weights."""

    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """Type of the weights. Mixed precision keeps float32 here and sets `training.bf16`."""

    lora: dict[str, Any] | None = None
    """Arguments of peft.LoraConfig: train adapters and leave the model as it is."""

    attn_implementation: str | None = None
    """Attention the model is loaded with, and falls back to for generation. None: transformers decides."""

    @classmethod
    def _meaning(cls, values: Mapping[str, Any]) -> Iterable[str]:
        name, config, lora = values["name_or_path"], values["config"], values["lora"]
        if (name is None) == (config is None):
            got = "neither" if config is None else "both"
            yield f"model: needs one of name_or_path (pretrained) and config (random weights), got {got}."
        if isinstance(config, dict):
            yield from _config_problems(config)
        if isinstance(lora, dict):
            yield from _lora_problems(lora)


@dataclass(frozen=True, kw_only=True)
class DataSection(Section):
    """The documents: see hsap_hf.data.corpus.load_documents, which takes these as they are."""

    where: ClassVar[str] = "data"

    source: str = field(metadata={"example": "stdlib"})
    """"stdlib" (Python's own source code), a file or folder of .jsonl, .json, .parquet or .csv, or a hub name."""

    split: str = "train"
    """Split of the data set."""

    text_field: str = "text"
    """Column that holds the text. Columns `messages`, and `input_ids` with or without `labels`, are found by
    themselves."""

    assistant_only_loss: bool = False
    """Of `messages`, only what the assistant says counts: the tokenizer's chat template must mark it with
    `{% generation %}`. Otherwise every token counts, prompts too, but those whose label is -100."""

    tokenizer: str | None = None
    """Folder or hub name. None: that of `model.name_or_path`, or one trained on the documents."""

    vocab_size: int = 4096
    """Entries of a tokenizer trained on the documents."""

    max_documents: int | None = None
    """Take at most so many documents, chosen by `seed`."""

    max_tokens: int | None = None
    """Take documents, chosen by `seed`, up to so many tokens in all."""

    max_document_tokens: int | None = None
    """Leave out longer documents and say how many. None: keep all; packing cuts those longer than a pack."""

    seed: int = 0
    """Chooses the documents."""

    @classmethod
    def _meaning(cls, values: Mapping[str, Any]) -> Iterable[str]:
        yield from super()._meaning(values)
        if values["assistant_only_loss"] is True and values.get("source") == "stdlib":
            yield "data.assistant_only_loss: source code holds no conversations. Leave it out, or name another source."


@dataclass(frozen=True, kw_only=True)
class PackingSection(Section):
    """How documents become packs."""

    where: ClassVar[str] = "packing"

    pack_tokens: int = field(metadata={"example": 8192})
    """Most tokens that one group deals per micro-batch, whatever the group's size: with other sizes, the same packs."""

    seed: int = 0
    """Composes the packs and orders them anew every epoch."""


@dataclass(frozen=True, kw_only=True)
class LoggingSection(Section):
    """What the run prints besides Trainer's own logs."""

    where: ClassVar[str] = "logging"

    banner: bool = True
    """Say before training what runs: mesh, pack, kernel."""

    proof: bool = False
    """After training compare one step with and without HSAP: loss, gradients, leaks, traffic."""


def _config_problems(config: Mapping[str, Any]) -> Iterable[str]:
    """Fields that the configuration class would silently keep without using them, and values it refuses."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        yield "model.config.model_type: missing. Write for example `model_type: llama`."
    elif model_type not in CAUSAL:
        yield from unknown_keys([model_type], CAUSAL, "model.config.model_type")
    else:
        default = AutoConfig.for_model(model_type)
        known = {*vars(default), *default.attribute_map, "model_type", "rope_theta", "rope_scaling"}
        names = [name for name in known if not name.startswith("_")]
        unknown = list(unknown_keys(config, names, "model.config"))
        yield from unknown
        if not unknown:
            try:
                AutoConfig.for_model(**config)
            except Exception as error:  # whatever a configuration class raises
                yield f"model.config: {' '.join(str(error).split())}"


def _lora_problems(lora: Mapping[str, Any]) -> Iterable[str]:
    if importlib.util.find_spec("peft") is None:
        yield "model.lora: the package peft is not installed. Run `pip install 'hsap-hf[peft]'`, or remove model.lora."
        return
    from peft import LoraConfig

    yield from unknown_keys(lora, [item.name for item in fields(LoraConfig)], "model.lora")
