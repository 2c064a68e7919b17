"""A dealt batch: what the layers and the loss of one forward need. It travels with the batch, never in a global."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from hsap_hf.attention import Call, Scores, SlotTables, choose_kernel, compile_tables
from hsap_hf.comm import Deal, HsapMesh, rank_rows, share_heads
from hsap_hf.config import HsapPlugin
from hsap_hf.hf.documents import Brought
from hsap_hf.planner import Plan


class DealtBatch:
    """One rank's part of a dealt pack.

    No dataclass: FSDP2's mixed precision copies every dataclass among the arguments of a layer, field by field.
    """

    def __init__(
        self,
        *,
        mesh: HsapMesh,
        plan: Plan,
        deal: Deal,
        brought: Brought,
        tokens: Tensor,
        num_supervised: int,
        plugin: HsapPlugin,
        recomputes: Callable[[], bool],
        tables: dict[int | None, SlotTables],
    ) -> None:
        self.mesh, self.plan, self.deal, self.brought, self.plugin = mesh, plan, deal, brought, plugin
        self.tokens = tokens
        """[T, 3] int64: input id, position id, label of the next token, of the tokens this rank computes."""
        self.num_supervised = num_supervised
        """Tokens of the whole group whose label counts."""
        self.recomputes = recomputes
        """Whether layers run their forward again in the backward: activation checkpointing."""
        self.tables = tables
        """By attention window; compiled at the first layer that asks, kept with the plan."""
        self.handed_out = False
        """A trainer holds the dealt tokens itself, so it gets their logits."""
        self.attention_calls = 0
        """How often a layer asked for attention; tells whether the model really uses it."""
        self._calls: dict[tuple[object, ...], Call] = {}

    def call(self, q_TNH: Tensor, k_TGH: Tensor, v_TGH: Tensor, scores: Scores) -> Call:
        """What `attend` needs for these heads and scores; compiled at the first layer that asks."""
        if scores.window is not None and scores.window >= max(self.plan.lengths, default=0):
            scores = replace(scores, window=None)  # it hides nothing, and full attention is cheaper to share
        key = (q_TNH.shape[1:], k_TGH.shape[1:], v_TGH.shape[1:], q_TNH.dtype, scores)
        if key not in self._calls:
            slot, device = self.mesh.context.rank, q_TNH.device
            dtype = str(q_TNH.dtype).removeprefix("torch.")
            kernel = choose_kernel(self.plugin.kernel, scores, q_TNH.shape[-1], v_TGH.shape[-1], dtype, device.type)
            if scores.window not in self.tables:
                asked = self.plugin.exchange_messages
                self.tables[scores.window] = compile_tables(
                    self.plan,
                    slot,
                    scores.window,
                    device,
                    num_messages=None if asked == "auto" else asked,
                    near_slots=self.mesh.near_slots,
                    ulysses_size=self.mesh.ulysses.size,
                )
            heads = share_heads(q_TNH.shape[1], k_TGH.shape[1], self.mesh.ulysses.size, device)
            self._calls[key] = Call(
                tables=self.tables[scores.window],
                context=self.mesh.context,
                ulysses=self.mesh.ulysses,
                rows=rank_rows(self.plan.tokens(slot), self.mesh.ulysses.size),
                heads=heads,
                kernel=kernel,
                scores=scores,
                keep_borrowed=self._keeps_borrowed(q_TNH.shape[1], heads.num_kv_heads, scores.window),
            )
        return self._calls[key]

    def _keeps_borrowed(self, heads: int, kv_heads: int, window: int | None) -> bool:
        """Whether borrowed keys and values stay until the backward; from what all ranks of the group know alike.

        Beside them stay a slot's own queries and outputs (`heads`), keys and values (`kv_heads`, replicas among them).
        """
        setting, plan = self.plugin.borrowed_keys, self.plan
        if setting != "auto":
            return setting == "keep"
        return plan.most_fetched(window) * kv_heads <= plan.tokens(0) * (heads + kv_heads) or self.recomputes()

    def model_row(self) -> tuple[Tensor, Tensor, Tensor]:
        """input_ids, position_ids, shift_labels [1, max(T, 1)]; a rank without tokens gets one that never counts."""
        tokens = self.tokens
        if not len(tokens):
            tokens = torch.tensor([[0, 0, -100]], device=tokens.device)
        ids, positions, labels = tokens.T.contiguous().unsqueeze(1)
        return ids, positions, labels

    def to_owners(self, dealt: Tensor) -> Tensor:
        """[max(T, 1), ...] of dealt tokens -> [brought tokens, ...], in this rank's own order."""
        return self.deal.to_owners(self.mesh.group, dealt[: len(self.tokens)].contiguous())
