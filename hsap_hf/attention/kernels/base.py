"""What every attention kernel offers, and how scores are made."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

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


class Kernel(ABC):
    """Varlen attention with its log-sum-exp: out [T, N, Hv], lse [N, T] (at least float32).

    A partial result is differentiated directly: with the merged out and lse, `backward` gives this part's exact share.
    """

    name: ClassVar[str]
    device_type: ClassVar[str | None] = None
    """Where it runs; None: everywhere."""
    dtypes: ClassVar[frozenset[str] | None] = None
    """What it computes in; None: every floating type."""
    max_head_dim: ClassVar[int | None] = None
    has_softcap: ClassVar[bool] = False
    has_value_dim: ClassVar[bool] = False
    """Value heads may be of another width than query heads."""
    package: ClassVar[str | None] = None
    """The module that must be importable; None: torch brings the kernel."""
    install: ClassVar[str] = ""

    def missing(self, scores: Scores, head_dim: int, value_dim: int, dtype: str, device_type: str) -> str | None:
        """Why this kernel cannot do it, in words; None where it can."""
        if self.package is not None and not _importable(self.package):
            return f"it is not installed: {self.install}"
        if self.device_type not in (None, device_type):
            return f"it runs on {self.device_type}, not on {device_type}"
        if self.dtypes is not None and dtype not in self.dtypes:
            return f"it computes in {' or '.join(sorted(self.dtypes))}, not in {dtype}"
        if scores.softcap is not None and not self.has_softcap:
            return "it has no softcap"
        if head_dim != value_dim and not self.has_value_dim:
            return f"its value heads must be as wide as its query heads ({value_dim} and {head_dim})"
        if self.max_head_dim is not None and head_dim > self.max_head_dim:
            return f"its heads are at most {self.max_head_dim} wide, not {head_dim}"
        return None

    @abstractmethod
    def forward(self, problem: Problem, into: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(out, lse); out is `into` where one is given."""

    @abstractmethod
    def backward(
        self, problem: Problem, grad_out: Tensor, out: Tensor, lse: Tensor, into: Into = NOWHERE
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(grad_q, grad_k, grad_v); each of them is that of `into` where one is given."""


HALF = frozenset({"bfloat16", "float16"})


def window_sizes(problem: Problem) -> tuple[int, int]:
    """(left, right) as flash-attention counts them: keys before and after the query's own; -1 is no limit."""
    if not problem.causal:
        return -1, -1
    window = problem.scores.window
    return (-1 if window is None else window - 1), 0


def _importable(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False
