"""What every attention kernel offers, and how scores are made."""

from __future__ import annotations

import importlib
import importlib.metadata
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from hsap_hf.attention.segments import Segments


@dataclass(frozen=True)
class Scores:
    """How a query scores keys: softcap(scale * q . k), limited to the last `window` keys (None: all)."""

    scale: float
    window: int | None = None
    softcap: float | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """One varlen call: q [T, N, H], k [S, G, H], v [S, G, Hv] in independent segments; N is a multiple of G."""

    q: Tensor
    k: Tensor
    v: Tensor
    segments: Segments
    causal: bool
    """The last query of a segment is aligned with its last key. A window only counts here."""
    scores: Scores


Into = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Where the gradients of queries, keys and values go; None: into a new tensor."""
NOWHERE: Into = (None, None, None)


def grads_of(problem: Problem, into: Into) -> tuple[Tensor, Tensor, Tensor]:
    """Tensors to write the three gradients to: those given, new ones elsewhere."""
    inputs = zip((problem.q, problem.k, problem.v), into, strict=True)
    grad_q, grad_k, grad_v = (torch.empty_like(x) if place is None else place for x, place in inputs)
    return grad_q, grad_k, grad_v


def placed(result: Tensor, into: Tensor | None) -> Tensor:
    """`into`, holding the result, for kernels that cannot write there themselves."""
    return result if into is None else into.copy_(result)


def must_repeat() -> bool:
    """Whether torch was told to give the same bits every time (Trainer's full_determinism): a backward that several
    blocks add to then takes its slower form, as torch's own flash kernel does by itself."""
    return torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()


class Kernel(ABC):
    """Varlen attention with its log-sum-exp: out [T, N, Hv], lse [N, T] (at least float32).

    A partial result is differentiated directly: with the merged out and lse, `backward` gives this part's exact share.
    Heads of a width that `_forward` and `_backward` do not take are filled up with zeros, which changes no score.
    """

    name: ClassVar[str]
    device_type: ClassVar[str | None] = None
    """Where it runs; None: everywhere."""
    dtypes: ClassVar[frozenset[str] | None] = None
    """What it computes in; None: every floating type."""
    min_capability: ClassVar[int] = 0
    """Oldest GPU it runs on, as CUDA's major compute capability."""
    max_head_dim: ClassVar[int | None] = None
    has_softcap: ClassVar[bool] = False
    has_value_dim: ClassVar[bool] = False
    """Value heads may be of another width than query heads."""
    width_multiple: ClassVar[int] = 1
    """What divides the widths of heads that it takes."""
    package: ClassVar[str | None] = None
    """The module that must be importable; None: torch brings the kernel."""
    distribution: ClassVar[str] = "torch"
    """What brings it, as pip calls it."""
    install: ClassVar[str] = ""

    def missing(self, scores: Scores, head_dim: int, value_dim: int, dtype: str, device_type: str) -> str | None:
        """Why this kernel cannot do it, in words; None where it can."""
        if self.device_type not in (None, device_type):
            return f"it runs on {self.device_type}, not on {device_type}"
        problem = None if self.package is None else _not_loaded(self.package)
        if problem is not None:
            return f"{problem}: {self.install}"
        major = _capability() if device_type == "cuda" else None
        if major is not None and major < self.min_capability:
            return f"it needs a GPU of compute capability {self.min_capability} or more, not {major}"
        if self.dtypes is not None and dtype not in self.dtypes:
            return f"it computes in {' or '.join(sorted(self.dtypes))}, not in {dtype}"
        if scores.softcap is not None and not self.has_softcap:
            return "it has no softcap"
        widest = max(self.widths(head_dim, value_dim))
        if self.max_head_dim is not None and widest > self.max_head_dim:
            return f"its heads are at most {self.max_head_dim} wide, not {widest}"
        return None

    def version(self) -> str:
        """What brings it and in which version, like "torch 2.11.0"."""
        try:
            return f"{self.distribution} {importlib.metadata.version(self.distribution)}"
        except importlib.metadata.PackageNotFoundError:
            return self.distribution

    def widths(self, head_dim: int, value_dim: int, group: int = 1) -> tuple[int, int]:
        """Widths of query and value heads as it computes them; group: query heads that share a key-value head."""
        head_dim, value_dim = (-(-dim // self.width_multiple) * self.width_multiple for dim in (head_dim, value_dim))
        return (head_dim, value_dim) if self.has_value_dim else (max(head_dim, value_dim),) * 2

    def forward(self, problem: Problem, into: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(out, lse); out is `into` where one is given."""
        wide = self._filled_up(problem)
        if wide is problem:
            return self._forward(problem, into)
        out, lse = self._forward(wide, None)
        return _cut(out, problem.v.shape[-1], into), lse

    def backward(
        self, problem: Problem, grad_out: Tensor, out: Tensor, lse: Tensor, into: Into = NOWHERE
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(grad_q, grad_k, grad_v); each of them is that of `into` where one is given."""
        wide = self._filled_up(problem)
        if wide is problem:
            return self._backward(problem, grad_out, out, lse, into)
        grad_out, out = (_wider(x, wide.v.shape[-1]) for x in (grad_out, out))
        grads = self._backward(wide, grad_out, out, lse, NOWHERE)
        inputs = zip(grads, (problem.q, problem.k, problem.v), into, strict=True)
        grad_q, grad_k, grad_v = (_cut(grad, x.shape[-1], place) for grad, x, place in inputs)
        return grad_q, grad_k, grad_v

    def _filled_up(self, problem: Problem) -> Problem:
        """The same where widths are right already."""
        given = problem.q.shape[-1], problem.v.shape[-1]
        head_dim, value_dim = self.widths(*given, problem.q.shape[1] // problem.k.shape[1])
        if (head_dim, value_dim) == given:
            return problem
        q, k = _wider(problem.q, head_dim), _wider(problem.k, head_dim)
        return replace(problem, q=q, k=k, v=_wider(problem.v, value_dim))

    @abstractmethod
    def _forward(self, problem: Problem, into: Tensor | None) -> tuple[Tensor, Tensor]:
        """`forward` of heads of the right widths."""

    @abstractmethod
    def _backward(
        self, problem: Problem, grad_out: Tensor, out: Tensor, lse: Tensor, into: Into
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`backward` of heads of the right widths."""


def _wider(x: Tensor, width: int) -> Tensor:
    """Heads filled up with zeros, never a slice of something: of odd widths kernels could not load its rows."""
    return x.contiguous() if x.shape[-1] == width else pad(x, (0, width - x.shape[-1]))


def _cut(x: Tensor, width: int, into: Tensor | None) -> Tensor:
    """The adjoint, into a tensor of its own or the one given."""
    return x[..., :width].contiguous() if into is None else into.copy_(x[..., :width])


def _capability() -> int | None:
    """Major compute capability of the current GPU; None without one."""
    return torch.cuda.get_device_capability()[0] if torch.cuda.is_available() else None


HALF = frozenset({"bfloat16", "float16"})


def window_sizes(problem: Problem) -> tuple[int, int]:
    """(left, right) as flash-attention counts them: keys before and after the query's own; -1 is no limit."""
    if not problem.causal:
        return -1, -1
    window = problem.scores.window
    return (-1 if window is None else window - 1), 0


def varlen_words(problem: Problem) -> dict[str, object]:
    """Edges, longest segments and scale, as flash-attention calls them."""
    segments = problem.segments
    return {
        "cu_seqlens_q": segments.cu_q,
        "cu_seqlens_k": segments.cu_k,
        "max_seqlen_q": segments.max_q,
        "max_seqlen_k": segments.max_k,
        "softmax_scale": problem.scores.scale,
    }


@lru_cache
def _not_loaded(package: str) -> str | None:
    """Why it cannot be imported; None where it can. Built for another torch, it is there and does not load."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(package)
    except ModuleNotFoundError:
        return "it is not installed"
    except Exception as error:  # whatever its own code raises
        return f"it is installed, but does not load ({(str(error) or repr(error)).splitlines()[0][:200]})"
    return None
