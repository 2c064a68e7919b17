"""Shapes of models, as far as time, bytes and memory depend on them."""

from collections.abc import Sequence
from dataclasses import dataclass

from hsap_hf.errors import PlanError
from hsap_hf.planner.documents import pairs


@dataclass(frozen=True, kw_only=True)
class Model:
    """A causal transformer with gated feed-forward layers, as Llama and Qwen have them."""

    name: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_query_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tied_embeddings: bool = False
    """The output layer shares the weights of the input embedding."""

    @property
    def layer_weights(self) -> int:
        """Weights of the linear maps of one layer."""
        heads = 2 * self.num_query_heads + 2 * self.num_kv_heads
        return self.hidden_size * (heads * self.head_dim + 3 * self.intermediate_size)

    @property
    def weights(self) -> int:
        """All weights, norms left out."""
        tables = 1 if self.tied_embeddings else 2
        return self.num_layers * self.layer_weights + tables * self.vocab_size * self.hidden_size

    def train_flops(self, lengths: Sequence[int]) -> int:
        """FLOP of forward and backward on documents that attend themselves alone; recomputed layers do not count.

        6 a weight and token, the output layer's weights among them; 12 a query-key pair, query head and element.
        """
        weights = self.num_layers * self.layer_weights + self.vocab_size * self.hidden_size
        work = self.num_layers * self.num_query_heads * self.head_dim * sum(pairs(0, length) for length in lengths)
        return 6 * weights * sum(lengths) + 12 * work

    def kv_heads_per_rank(self, ulysses_size: int) -> int:
        """Key-value heads that a rank holds once heads are traded; some are copies where ranks outnumber them.

        Raises PlanError where `ulysses_size` does not divide the query heads.
        """
        if self.num_query_heads % ulysses_size:
            raise PlanError(
                f"ulysses_size {ulysses_size} does not divide the {self.num_query_heads} query heads of {self.name}. "
                "Use a divisor, or leave the ranks to context_size, which has no rule about heads."
            )
        if self.num_kv_heads % ulysses_size == 0:
            return self.num_kv_heads // ulysses_size
        return 1 if ulysses_size % self.num_kv_heads == 0 else self.num_query_heads // ulysses_size


LLAMA3_8B = Model(
    name="llama-3-8b",
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=32,
    num_query_heads=32,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=128256,
)
LLAMA3_2_1B = Model(
    name="llama-3.2-1b",
    hidden_size=2048,
    intermediate_size=8192,
    num_layers=16,
    num_query_heads=32,
    num_kv_heads=8,
    head_dim=64,
    vocab_size=128256,
    tied_embeddings=True,
)
QWEN3_0_6B = Model(
    name="qwen3-0.6b",
    hidden_size=1024,
    intermediate_size=3072,
    num_layers=28,
    num_query_heads=16,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=151936,
    tied_embeddings=True,
)
QWEN3_8B = Model(
    name="qwen3-8b",
    hidden_size=4096,
    intermediate_size=12288,
    num_layers=36,
    num_query_heads=32,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=151936,
)
MODELS = (LLAMA3_8B, LLAMA3_2_1B, QWEN3_0_6B, QWEN3_8B)
