"""Everything that is changed on a model, as a value that can be undone."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from hsap_hf.errors import UnsupportedModelError
from hsap_hf.hf.interface import NAME, STOCK_ATTRIBUTE, register


@dataclass
class AttentionPatch:
    """The model's own copy of its configs, switched to "hsap"."""

    model: nn.Module
    """The outermost module: PEFT wrappers hold the config too."""
    _owners: list[tuple[nn.Module, Any]] = field(default_factory=list)
    _stock: list[tuple[Any, str]] = field(default_factory=list)
    """Our configs and the implementation each had."""
    generating: int = 0
    """Calls of `generate` under way: none of their forwards is shared."""

    def apply(self) -> None:
        """Switch attention. Raises UnsupportedModelError, and leaves nothing behind, where the model keeps its own."""
        register()
        own: dict[int, Any] = {}
        for module in self.model.modules():
            config = vars(module).get("config")
            name = getattr(config, "_attn_implementation", None)
            if name is None:
                continue
            if id(config) not in own:
                own[id(config)] = copy.deepcopy(config)
                self._stock.append((own[id(config)], name))
            self._owners.append((module, config))
            module.config = own[id(config)]
            setattr(module, STOCK_ATTRIBUTE, name)
        for module in self.model.modules():
            if isinstance(module, PreTrainedModel):
                module.set_attn_implementation(NAME)
        if any(config._attn_implementation != NAME for config, _ in self._stock):
            self.undo()
            raise UnsupportedModelError(f"{type(self.model).__name__} does not let its attention be replaced.")

    def configs(self) -> list[Any]:
        """The model's own, as they are now."""
        return [config for config, _ in self._stock]

    def switch(self, *, stock: bool) -> None:
        """Let forwards take the stock attention and the stock masks from now on, or HSAP's."""
        for config, name in self._stock:
            config._attn_implementation_internal = name if stock else NAME

    @contextmanager
    def generation(self) -> Iterator[None]:
        """All of it on the stock attention: `generate` builds masks before its first forward."""
        self.generating += 1
        self.switch(stock=True)
        try:
            yield
        finally:
            self.generating -= 1
            self.switch(stock=self.generating > 0)

    def undo(self) -> None:
        """Restore every attribute. A config that was changed meanwhile (a resized vocabulary, say) keeps the change."""
        for config, name in self._stock:
            config._attn_implementation_internal = name
        for module, config in self._owners:
            if module.config.to_dict() == config.to_dict():
                module.config = config
            delattr(module, STOCK_ATTRIBUTE)
        self._owners.clear()
        self._stock.clear()
