"""enable_hsap and disable_hsap: one call before training, one value that undoes it."""

from __future__ import annotations

import copy
import logging
import sys
import traceback
from collections.abc import Callable
from functools import partial
from types import MethodType, TracebackType
from typing import Any

import torch
from torch import nn

import hsap_hf
from hsap_hf.comm import (
    HsapMesh,
    announce,
    build_mesh,
    device_type_of,
    join,
    last_words,
    share_heads,
    take_own_gpu,
    world_size,
)
from hsap_hf.config import HsapPlugin, launched_ranks
from hsap_hf.errors import ConfigError, UnsupportedModelError
from hsap_hf.hf.hooks import NUM_FACTS, Dealer
from hsap_hf.hf.patch import AttentionPatch
from hsap_hf.hf.strategies import refuse_strategies
from hsap_hf.hf.support import check_kernel, check_model_support
from hsap_hf.planner import Plan

_HANDLE = "hsap_handle"
_RECOMPILE_LIMIT = 64
"""Attention and the deal break graphs, and each break makes functions of its own, compiled once for fixed and once for
changing lengths. At torch's limit of 8 layers silently run without being compiled."""
_NO_LOGITS = (
    "outputs.logits is None while HSAP is enabled: logits belong to dealt tokens. Where a compute_loss reads them, set "
    "HsapPlugin(return_logits='brought')."
)


class HsapHandle:
    """What `enable_hsap` did to a model; also a context manager that undoes it."""

    def __init__(self, model: nn.Module, plugin: HsapPlugin, mesh: HsapMesh | None) -> None:
        self.plugin, self.mesh = plugin, mesh
        self.earlier_generate: Callable[..., Any] | None = None
        """What the model itself had in place of its class's `generate`."""
        self.dealer: Dealer | None = None
        """What deals; None in a group of one rank."""
        self._undo: list[Callable[[], object]] = []
        """Of this model, so that a copy of it undoes its own."""
        self._undo_elsewhere: list[Callable[[], object]] = []
        """Of what is there once: a copy leaves it alone."""
        base = causal_model(model)
        if mesh is None:
            self._undo.append(base.register_forward_pre_hook(_without_cache, with_kwargs=True).remove)
        else:
            patch = AttentionPatch(model)
            patch.apply()
            self._undo.append(patch.undo)
            self.dealer = dealer = Dealer(plugin, mesh, patch, base)
            self._undo.append(base.register_forward_pre_hook(dealer.before_forward, with_kwargs=True).remove)
            after = base.register_forward_hook(dealer.after_forward, with_kwargs=True, always_call=True)
            self._undo.append(after.remove)
            self._keep_generate(base)
            self._chain_excepthook()
            self._raise_recompile_limit()
        setattr(base, _HANDLE, self)
        self._undo.append(partial(delattr, base, _HANDLE))

    @property
    def group_size(self) -> int:
        """Ranks that share one pack; what PackedDataset needs to know."""
        return 1 if self.mesh is None else self.mesh.group.size

    @property
    def plan(self) -> Plan | None:
        """The plan of the last batch; None before the first one, and for a group of one rank."""
        return self.dealer.plan if self.dealer else None

    def report(self) -> dict[str, int]:
        """Counts since `enable_hsap`: batches and tokens of this rank, rows of keys and key gradients it received."""
        if self.dealer is None or self.mesh is None:
            return {"batches": 0, "dealt_tokens": 0, "received_rows": 0, "received_bytes": 0}
        traffic = self.mesh.context.traffic
        return {
            "batches": self.dealer.batches,
            "dealt_tokens": self.dealer.dealt_tokens,
            "received_rows": traffic.rows,
            "received_bytes": traffic.num_bytes,
        }

    def disable(self) -> None:
        """Restore the model exactly; calling it twice changes nothing."""
        for undo in (self._undo_elsewhere, self._undo):
            while undo:
                undo.pop()()
        self.dealer = None

    def on_disable(self, undo: Callable[[], object]) -> None:
        """Let `disable` call `undo`, last change first. Not for changes of the model, which may be copied."""
        self._undo_elsewhere.append(undo)

    def announce(self, error: BaseException) -> None:
        """Tell the other ranks that this one ends with `error`, so that they end with the same text, not a hang."""
        if self.mesh is not None:
            if self.plugin.return_logits == "none" and _misses_logits(error):
                logging.getLogger("hsap_hf").error(_NO_LOGITS)
            announce(self.mesh, NUM_FACTS, error)

    def __deepcopy__(self, memo: dict[int, Any]) -> HsapHandle:
        """Of a copied model (a reference model, say)."""
        twin = memo[id(self)] = object.__new__(type(self))
        for name, value in vars(self).items():
            setattr(twin, name, [] if name == "_undo_elsewhere" else copy.deepcopy(value, memo))
        return twin

    def __enter__(self) -> HsapHandle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.announce(error)
        self.disable()

    def _keep_generate(self, base: Any) -> None:
        """Let `generate` run on the stock attention."""
        self.earlier_generate = vars(base).get("generate")
        base.generate = MethodType(_generate, base)
        if self.earlier_generate is None:
            self._undo.append(partial(delattr, base, "generate"))
        else:
            self._undo.append(partial(setattr, base, "generate", self.earlier_generate))

    def _raise_recompile_limit(self) -> None:
        """For torch.compile; process-wide, like all its settings."""
        settings = torch._dynamo.config
        earlier = settings.recompile_limit
        if earlier < _RECOMPILE_LIMIT:
            settings.recompile_limit = _RECOMPILE_LIMIT
            self.on_disable(partial(setattr, settings, "recompile_limit", earlier))

    def _chain_excepthook(self) -> None:
        """An error that ends this process is told to the others, also where no `with` block is around."""
        following = sys.excepthook

        def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
            following(kind, error, trace)
            cause = last_words(error)
            if cause is not None:
                following(type(cause), cause, None)
            self.announce(error)

        def restore() -> None:
            if sys.excepthook is tell:
                sys.excepthook = following

        sys.excepthook = tell
        self.on_disable(restore)


def enable_hsap(model: nn.Module, plugin: HsapPlugin | None = None) -> HsapHandle:
    """Let `model` train on packs that its group of ranks shares. Call it before Trainer or accelerator.prepare.

    plugin: None reads HSAP_CONFIG_FILE and HSAP_* variables. In a group of one rank the stock attention stays.
    Raises ConfigError (sizes, heads, other parallelism) or UnsupportedModelError (every reason listed), on all ranks
    where it is so on one; RankMismatchError where their settings differ. Nothing is changed on an error.
    """
    base, error, shared = causal_model(model), None, False
    try:
        if not isinstance(plugin, HsapPlugin | None):
            plugin, got = None, type(plugin).__name__
            raise ConfigError(f"enable_hsap: plugin is a {got}, needs HsapPlugin(context_size=...) or None.")
        plugin = plugin or HsapPlugin.from_env()
        shared = _check(model, base, plugin)
    except Exception as problem:  # whatever it is, every rank of the job must hear of it
        error = problem
    settings = plugin or HsapPlugin()  # where none could be read there is an error to spread
    join(error, f"hsap_hf {hsap_hf.__version__} {settings}", settings.timeout_seconds)
    assert plugin is not None
    return HsapHandle(model, plugin, build_mesh(plugin, device_type_of(base)) if shared else None)


def _check(model: nn.Module, base: Any, plugin: HsapPlugin) -> bool:
    """Whether groups have more than one rank. Raises every reason why this model cannot be enabled in this job."""
    if _HANDLE in vars(base):
        raise ConfigError("HSAP is enabled on this model already. Call disable_hsap(model) first to change settings.")
    if world_size() < launched_ranks():
        raise ConfigError(
            f"{launched_ranks()} ranks were launched, but torch.distributed is not running yet. Create "
            f"TrainingArguments (or accelerate's Accelerator) before enable_hsap."
        )
    if plugin.context_for(world_size()) * plugin.ulysses_size == 1:
        return False
    refuse_strategies(base)
    for name, adapter in (getattr(model, "peft_config", None) or {}).items():
        if getattr(adapter, "is_prompt_learning", False):
            raise UnsupportedModelError(
                f"adapter {name!r} ({type(adapter).__name__}) puts virtual tokens before every row, which belong to no "
                f"document. Adapters that change weights (LoRA, DoRA) work."
            )
        if getattr(adapter, "alora_invocation_tokens", None):
            raise UnsupportedModelError(
                f"adapter {name!r} is an activated LoRA, which begins at a token that it looks for in every row of a "
                f"batch. Leave alora_invocation_tokens out: LoRA works."
            )
    report = check_model_support(base)
    if report.note is not None:
        logging.getLogger("hsap_hf").warning("%s: %s", report.model_type, report.note)
    device_type = device_type_of(base)
    if device_type == "cuda":
        take_own_gpu()
    check_kernel(report, plugin.kernel, str(base.dtype).removeprefix("torch."), device_type)
    _check_heads(base.config, plugin.ulysses_size)
    return True


def disable_hsap(model: nn.Module) -> None:
    """Undo `enable_hsap`; a model it was never called on stays as it is."""
    handle = handle_of(model)
    if handle is not None:
        handle.disable()


def handle_of(model: nn.Module) -> HsapHandle | None:
    """The handle of an enabled model; None where HSAP is not enabled."""
    return vars(causal_model(model)).get(_HANDLE)


def causal_model(model: nn.Module) -> Any:
    """The causal language model inside DDP and PEFT wrappers."""
    while hasattr(model, "module") and isinstance(model.module, nn.Module):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _misses_logits(error: BaseException) -> bool:
    """Whether `error` is what a line that mentions logits says of None."""
    if not isinstance(error, AttributeError | TypeError) or "NoneType" not in str(error):
        return False
    return any("logits" in (frame.line or "") for frame in traceback.extract_tb(error.__traceback__))


def _check_heads(config: Any, ulysses_size: int) -> None:
    """Raise ConfigError where ulysses ranks cannot share the heads; sizes that differ by layer only go alone."""
    heads = getattr(config, "num_attention_heads", None)
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    if isinstance(heads, int) and isinstance(kv_heads, int):
        share_heads(heads, kv_heads, ulysses_size, torch.device("cpu"))
    elif ulysses_size > 1:
        raise ConfigError("the number of heads differs by layer or is not told. Use ulysses_size=1.")


def _generate(model: Any, *args: Any, **kwargs: Any) -> Any:
    """In place of an enabled model's `generate`; of a copied model, for the copy."""
    handle = vars(model)[_HANDLE]
    stock = handle.earlier_generate or partial(type(model).generate, model)
    with handle.dealer.patch.generation():
        return stock(*args, **kwargs)


def _without_cache(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """With a cache, Transformers lets packed documents see each other; a call with labels needs none."""
    if kwargs.get("labels") is not None and kwargs.get("past_key_values") is None:
        kwargs["use_cache"] = False
    return args, kwargs
