"""Stock batches become rows of whole documents; anything else is refused in words."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DataCollatorWithFlattening

from hsap_hf import HsapDataCollator
from hsap_hf.errors import PackError
from hsap_hf.hf.documents import read_batch

DOCUMENTS = [[5, 6, 7], [8], [9, 10]]
EXAMPLES = [{"input_ids": tokens, "labels": tokens} for tokens in DOCUMENTS]
READ = {  # token id, position id, label of the next token
    "lengths": [3, 1, 2],
    "tokens": [[5, 0, 6], [6, 1, 7], [7, 2, -100], [8, 0, -100], [9, 0, 10], [10, 1, -100]],
}
X = 99  # padding: must never be read


def rows(*values):
    return torch.tensor(values)


def first_labels_masked(labels, mask):
    """No token is left that the padding before it would have to predict."""
    return labels.masked_fill(mask.bool() & ~torch.nn.functional.pad(mask[:, :-1], (1, 0)).bool(), -100)


def padded(side):
    ids = {"right": rows([5, 6, 7], [8, X, X], [9, 10, X]), "left": rows([5, 6, 7], [X, X, 8], [X, 9, 10])}[side]
    mask = (ids != X).long()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    labels = ids.masked_fill(ids == X, -100)
    return {
        "input_ids": ids,
        "labels": labels if side == "right" else first_labels_masked(labels, mask),
        "attention_mask": mask,
        "position_ids": positions,
    }


def without(batch, *names):
    return {name: value for name, value in batch.items() if name not in names}


ONE_ROW = {"input_ids": rows([5, 6, 7, 8, 9, 10]), "labels": rows([-100, 6, 7, -100, -100, 10])}
GOOD = {
    "flattening collator": DataCollatorWithFlattening()(EXAMPLES),
    "flattening collator with cu_seq_lens": DataCollatorWithFlattening(return_flash_attn_kwargs=True)(EXAMPLES),
    "our collator": HsapDataCollator()(EXAMPLES),
    "cu_seqlens alone": {**ONE_ROW, "cu_seqlens": torch.tensor([0, 3, 4, 6], dtype=torch.int32)},
    "cu_seq_lens_q beside nothing": {**ONE_ROW, "cu_seqlens": None, "cu_seq_lens_q": rows([0, 3, 4, 6])},
    "cu_seq_lens_q alone": {**ONE_ROW, "cu_seq_lens_q": rows([0, 3, 4, 6])},
    "positions alone": {**ONE_ROW, "position_ids": rows([0, 1, 2, 0, 0, 1])},
    "all-ones mask": {**ONE_ROW, "position_ids": rows([0, 1, 2, 0, 0, 1]), "attention_mask": rows([1] * 6)},
    "shift_labels": {
        "input_ids": ONE_ROW["input_ids"],
        "shift_labels": rows([6, 7, -100, -100, 10, -100]),
        "position_ids": rows([0, 1, 2, 0, 0, 1]),
    },
    "padded right": padded("right"),
    "padded left": padded("left"),
    "boolean mask": {**padded("left"), "attention_mask": padded("left")["attention_mask"].bool()},
    "padded right without positions": without(padded("right"), "position_ids"),
    "packed and padded": {
        "input_ids": rows([5, 6, 7, 8], [9, 10, X, X]),
        "labels": rows([5, 6, 7, -100], [9, 10, -100, -100]),
        "position_ids": rows([0, 1, 2, 0], [0, 1, 0, 0]),
        "attention_mask": rows([1, 1, 1, 1], [1, 1, 0, 0]),
    },
}


@pytest.mark.parametrize("name", GOOD)
def test_every_stock_form_of_a_batch_is_read_as_the_same_documents(name):
    brought = read_batch(GOOD[name])
    assert brought.lengths == READ["lengths"]
    assert brought.tokens.tolist() == READ["tokens"]
    assert brought.num_supervised == 3
    assert brought.shape == tuple(GOOD[name]["input_ids"].shape)
    if brought.kept is not None:
        assert GOOD[name]["input_ids"].flatten()[brought.kept].tolist() == [5, 6, 7, 8, 9, 10]


def test_left_padding_without_positions_keeps_the_positions_the_stock_model_uses():
    """Transformers counts columns when no positions are given, padding included; so do we."""
    brought = read_batch(without(padded("left"), "position_ids"))
    assert brought.lengths == [3, 1, 2]
    assert brought.tokens[:, 1].tolist() == [0, 1, 2, 2, 1, 2]


def test_rows_of_a_plain_batch_are_documents():
    brought = read_batch({"input_ids": rows([5, 6], [7, 8]), "labels": rows([5, 6], [7, 8])})
    assert brought.lengths == [2, 2]
    assert brought.tokens.tolist() == [[5, 0, 6], [6, 1, -100], [7, 0, 8], [8, 1, -100]]


def test_positions_of_one_row_count_for_all_rows():
    brought = read_batch({"input_ids": rows([5, 6, 7], [8, 9, 10]), "position_ids": rows([0, 0, 1])})
    assert brought.lengths == [1, 2, 1, 2]
    assert brought.num_supervised == 0


@pytest.mark.parametrize(
    "batch",
    [
        HsapDataCollator()([]),
        {"input_ids": torch.zeros(1, 0, dtype=torch.int64), "labels": torch.zeros(1, 0, dtype=torch.int64)},
        {"input_ids": torch.zeros(1, 0, dtype=torch.int64), "position_ids": torch.zeros(1, 0, dtype=torch.int64)},
        {"input_ids": rows([X, X]), "labels": rows([-100, -100]), "attention_mask": rows([0, 0])},
    ],
    ids=["our collator", "no tokens", "no positions", "nothing but padding"],
)
def test_an_empty_batch_holds_no_documents(batch):
    brought = read_batch(batch)
    assert brought.lengths == []
    assert brought.tokens.shape == (0, 3)
    assert brought.num_supervised == 0


IDS = rows([5, 6, 7], [8, 9, 10])
BAD = {
    "hole in a mask": (
        {"input_ids": IDS, "attention_mask": rows([1, 1, 1], [1, 0, 1])},
        "attention_mask has holes in row 1: kept tokens must stand together. Pad at one end",
    ),
    "4-D mask": (
        {"input_ids": IDS, "attention_mask": torch.ones(2, 1, 3, 3)},
        "attention_mask is a 4-D mask [2, 1, 3, 3]; needs a padding mask of 0 and 1 with the shape of input_ids [2, 3]",
    ),
    "mask of another length": ({"input_ids": IDS, "attention_mask": rows([1, 1])}, "2-D mask [1, 2]; needs a padding"),
    "mask that is no tensor": ({"input_ids": IDS, "attention_mask": {"full": 1}}, "attention_mask is a dict; needs"),
    "mask that numbers documents": (
        {"input_ids": IDS, "attention_mask": rows([1, 1, 2], [3, 3, 3])},
        "attention_mask holds values besides 0 and 1. For packed documents give position_ids instead.",
    ),
    "inputs_embeds alone": ({"inputs_embeds": torch.ones(1, 2, 4)}, "input_ids: got nothing, needs token ids"),
    "inputs_embeds beside ids": ({"input_ids": IDS, "inputs_embeds": torch.ones(2, 3, 4)}, "inputs_embeds cannot be"),
    "one-dimensional ids": ({"input_ids": IDS[0]}, "input_ids: got shape [3], needs token ids [rows, columns]"),
    "ids as a list": ({"input_ids": [[5, 6]]}, "input_ids: got"),
    "token types": ({"input_ids": IDS, "token_type_ids": IDS}, "token_type_ids cannot be dealt"),
    "labels of another shape": ({"input_ids": IDS, "labels": rows([1, 2])}, "labels has shape [1, 2]; needs that of"),
    "positions of another shape": ({"input_ids": IDS, "position_ids": rows([0], [1], [2])}, "position_ids has shape"),
    "hidden states asked for": ({"input_ids": IDS, "output_hidden_states": True}, "output_hidden_states=True asks for"),
    "attentions asked for": ({"input_ids": IDS, "output_attentions": True}, "output_attentions=True asks for values"),
    "some logits asked for": ({"input_ids": IDS, "logits_to_keep": 1}, "logits_to_keep=1 asks for values of tokens"),
    "edges that end early": ({**ONE_ROW, "cu_seqlens": rows([0, 3, 5])}, "cu_seqlens must rise from 0 to the number"),
    "edges that start late": ({**ONE_ROW, "cu_seqlens": rows([1, 6])}, "got 2 edges from [1] to [6]"),
    "edges that stand still": ({**ONE_ROW, "cu_seqlens": rows([0, 3, 3, 6])}, "Empty documents are left out"),
    "edges that fall": ({**ONE_ROW, "cu_seqlens": rows([0, 4, 3, 6])}, "cu_seqlens must rise"),
    "edges of several rows": ({"input_ids": IDS, "cu_seqlens": rows([0, 3])}, "of one row"),
    "padding that is trained on": (
        {"input_ids": rows([X, 5, 6]), "labels": rows([-100, 5, 6]), "attention_mask": rows([0, 1, 1])},
        "padding is trained on: a masked token has a next label",
    ),
    "a value per token that would stay behind": ({"input_ids": IDS, "weights": IDS}, "weights [2, 3] would stay"),
    "a value per document that would stay behind": (
        {"input_ids": IDS, "weights": rows(1, 2)},
        "weights [2] would stay",
    ),
    "a loss of the router": ({"input_ids": IDS, "output_router_logits": True}, "output_router_logits adds a loss"),
    "labels that are no tensor": ({"input_ids": IDS, "labels": [[1, 2, 3]]}, "labels has shape list; needs that of"),
    "no edges": ({**ONE_ROW, "cu_seqlens": rows([])}, "got 0 edges"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_set_of_whole_documents_is_refused_in_words(name):
    batch, text = BAD[name]
    with pytest.raises(PackError) as caught:
        read_batch(batch)
    assert text in str(caught.value)
    assert "tensor(" not in str(caught.value)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.sampled_from(["right", "left"]), st.integers(0, 3))
def test_padding_never_changes_what_is_read(lengths, side, extra):
    """The same documents flattened, and padded at either end by any amount."""
    tokens = [list(range(10 * i + 1, 10 * i + 1 + n)) for i, n in enumerate(lengths)]
    width = max(lengths) + extra
    mask = torch.tensor([([1] * n + [0] * (width - n))[:: 1 if side == "right" else -1] for n in lengths])
    every = torch.tensor([token for row in tokens for token in row])
    ids = torch.full(mask.shape, X).masked_scatter(mask.bool(), every)
    labels = first_labels_masked(ids.masked_fill(mask == 0, -100), mask)
    batch = {"input_ids": ids, "labels": labels, "attention_mask": mask, "position_ids": mask.cumsum(-1) - 1}
    flat = read_batch(HsapDataCollator()([{"input_ids": document} for document in tokens]))
    brought = read_batch(batch)
    assert brought.lengths == flat.lengths == lengths
    assert brought.tokens.tolist() == flat.tokens.tolist()
