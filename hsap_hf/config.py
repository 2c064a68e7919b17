"""The one configuration object: how the ranks of a group share their documents."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from hsap_hf.errors import ConfigError
from hsap_hf.strict import field_problems, parse_scalar, read_yaml, unknown_keys

MOST_MESSAGES = 16
"""Of one exchange; four are the most that anybody timed."""
EXPECTED_RANKS = "HSAP_EXPECTED_WORLD_SIZE"
"""Where our launcher says how many ranks it starts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HsapPlugin:
    """How one group of ranks shares its documents. A group is `context_size x ulysses_size` consecutive ranks."""

    context_size: int | Literal["auto"] = "auto"
    """Slots that each own a share of every pack (outer axis, any network). "auto": all ranks / ulysses_size."""

    ulysses_size: int = 1
    """Ranks that share one slot by trading heads for tokens (inner axis, same node)."""

    kernel: Literal["auto", "flash_attn_4", "flash_attn_3", "flash_attn_2", "torch_flash", "sdpa", "dense"] = "auto"
    """Attention kernel. "auto": the fastest one present that honours what the model needs."""

    return_logits: Literal["none", "dealt", "brought"] = "none"
    """Logits a forward with labels returns: none, those of the dealt tokens, or those of the caller's own batch."""

    borrowed_keys: Literal["auto", "keep", "fetch_again"] = "auto"
    """Keys of other slots, between forward and backward: kept, or fetched again, which costs an exchange and saves
    memory. "auto": kept while a layer's take no more than the slot's own tensors, or where it is recomputed anyway."""

    exchange_messages: int | Literal["auto"] = "auto"
    """Messages in which keys of other slots come, each attended to while the next travels. "auto": what is predicted to
    be fastest: more than one between nodes, where attention to a slot's own keys is short, never with a window."""

    max_tokens_per_rank: int | None = None
    """Refuse a pack that would deal more tokens than this to one rank. None: no limit."""

    timeout_seconds: float = 600.0
    """How long a rank waits for the others to bring their batch, in seconds. A rank that died is noticed at once.
    NCCL ends exchanges that hang after this time or the job's own limit, whichever is longer."""

    debug: bool = False
    """Fill receive buffers with NaN before every exchange, so that a row nobody sent cannot pass unseen, and end the
    job where a rank's loss is not finite, before its backward. Costs a synchronisation of all ranks a forward."""

    def __post_init__(self) -> None:
        problems = field_problems(HsapPlugin, asdict(self), "hsap")
        if not problems:
            problems = [
                f"hsap.{name}: got {getattr(self, name)}, needs {need}."
                for name, ok, need in (
                    ("context_size", self.context_size == "auto" or self.context_size >= 1, 'at least 1, or "auto"'),
                    ("ulysses_size", self.ulysses_size >= 1, "at least 1"),
                    (
                        "exchange_messages",
                        self.exchange_messages == "auto" or 1 <= self.exchange_messages <= MOST_MESSAGES,
                        f'1 to {MOST_MESSAGES}, or "auto"',
                    ),
                    ("timeout_seconds", 0 < self.timeout_seconds < math.inf, "more than 0 seconds, and finite"),
                    ("max_tokens_per_rank", self.max_tokens_per_rank is None or self.max_tokens_per_rank >= 1, ">= 1"),
                )
                if not ok
            ]
        if problems:
            raise ConfigError("\n".join(problems))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str = "hsap") -> HsapPlugin:
        """The plugin described by `values`; every problem is listed in one ConfigError."""
        problems = field_problems(cls, values, where)
        if problems:
            raise ConfigError("\n".join(problems))
        return cls(**values)

    @classmethod
    def from_file(cls, path: str | Path) -> HsapPlugin:
        """Read a YAML file: its `hsap:` section where it has one, the whole file otherwise."""
        content = read_yaml(path)
        section = content.get("hsap", content)
        if not isinstance(section, dict):
            raise ConfigError(f"{path}: the section `hsap` must hold `key: value` lines, got {section!r}.")
        return cls.from_mapping(section, f"{path}: hsap")

    @classmethod
    def from_env(cls) -> HsapPlugin:
        """Read the file named by HSAP_CONFIG_FILE, then HSAP_CONTEXT_SIZE, HSAP_ULYSSES_SIZE, ... on top of it.

        ConfigError for other names that begin with HSAP_.
        """
        known = ["HSAP_CONFIG_FILE", EXPECTED_RANKS, *(f"HSAP_{field.name.upper()}" for field in fields(cls))]
        problems = unknown_keys((name for name in os.environ if name.startswith("HSAP_")), known, "environment")
        if problems:
            raise ConfigError("\n".join(problems))
        path = os.environ.get("HSAP_CONFIG_FILE")
        values = {} if path is None else asdict(cls.from_file(path))
        for field in fields(cls):
            text = os.environ.get(f"HSAP_{field.name.upper()}")
            if text is not None:
                values[field.name] = parse_scalar(text)
        return cls.from_mapping(values, "environment: HSAP_*")

    def context_for(self, world_size: int) -> int:
        """Slots of a group when `world_size` ranks run. Raises ConfigError where groups do not fill the world."""
        if self.context_size == "auto":
            if world_size % self.ulysses_size:
                raise ConfigError(
                    f"ulysses_size ({self.ulysses_size}) does not divide the {world_size} launched processes. "
                    f"Launch a multiple of {self.ulysses_size}, or set ulysses_size to a divisor of {world_size}."
                )
            return world_size // self.ulysses_size
        group = self.context_size * self.ulysses_size
        if world_size % group:
            raise ConfigError(
                f"context_size ({self.context_size}) x ulysses_size ({self.ulysses_size}) = {group} does not divide "
                f"the {world_size} launched processes. Launch a multiple of {group}, or lower one of the two sizes."
            )
        return self.context_size


def launched_ranks() -> int:
    """Ranks that a launcher says it started; 1 where no launcher did."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def may_read_peers() -> bool:
    """Whether NCCL may let GPUs of a node read each other's memory; without it keys travel as between nodes."""
    return os.environ.get("NCCL_P2P_DISABLE") != "1"
