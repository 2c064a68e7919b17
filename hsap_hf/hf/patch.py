"""Everything that is changed on a model, as a value that can be undone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from hsap_hf.errors import UnsupportedModelError
from hsap_hf.hf.interface import NAME, register, register_resting


@dataclass
class AttentionPatch:
    """The model's own copy of its configs, which name the attention to take."""

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
        models = [module for module in self.model.modules() if isinstance(module, PreTrainedModel)]
        for module in models:
            module.set_attn_implementation(NAME)
        if any(module.config._attn_implementation != NAME for module in models):
            self.undo()
            raise UnsupportedModelError(f"{type(self.model).__name__} does not let its attention be replaced.")
        self.rest()

    def configs(self) -> list[Any]:
        """The model's own, as they are now."""
        return [config for config, _ in self._stock]

    def share(self) -> None:
        """From now on attention is HSAP's, and nothing is masked."""
        self._name(lambda stock: NAME)

    def keep(self) -> None:
        """From now on attention and masks are stock."""
        self._name(lambda stock: stock)

    def rest(self) -> None:
        """Between forwards of the whole model: what calls a part of it takes the stock attention and the stock masks,
        but a backward may compute dealt layers anew."""
        self._name(lambda stock: stock if self.generating else register_resting(stock))

    def _name(self, name_for: Callable[[str], str]) -> None:
        for config, stock in self._stock:
            config._attn_implementation_internal = name_for(stock)

    @contextmanager
    def generation(self) -> Iterator[None]:
        """All of it on the stock attention: `generate` builds masks before its first forward."""
        self.generating += 1
        self.keep()
        try:
            yield
        finally:
            self.generating -= 1
            self.rest()

    def undo(self) -> None:
        """Restore every attribute. A config that was changed meanwhile (a resized vocabulary, say) keeps the change."""
        for config, name in self._stock:
            config._attn_implementation_internal = name
        for module, config in self._owners:
            if module.config.to_dict() == config.to_dict():
                module.config = config
        self._owners.clear()
        self._stock.clear()
