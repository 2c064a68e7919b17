"""What the collator makes of good examples, and what it says about bad ones."""

import pickle

import numpy as np
import pytest
import torch
from small import small_llama
from transformers import Trainer, TrainingArguments

from hsap_hf import HsapDataCollator
from hsap_hf.errors import PackError


def collate(*examples, **options):
    return {name: value.tolist() for name, value in HsapDataCollator(**options)(examples).items()}


def test_examples_become_one_row_of_documents():
    batch = collate({"input_ids": [5, 6, 7]}, {"input_ids": [8, 9], "labels": [8, -100]})
    assert batch == {
        "input_ids": [[5, 6, 7, 8, 9]],
        "labels": [[-100, 6, 7, -100, -100]],
        "position_ids": [[0, 1, 2, 0, 1]],
        "cu_seqlens": [0, 3, 5],
    }


def test_types_and_shapes_are_those_the_model_needs():
    batch = HsapDataCollator()([{"input_ids": [5, 6, 7]}])
    assert {name: (value.dtype, tuple(value.shape)) for name, value in batch.items()} == {
        "input_ids": (torch.int64, (1, 3)),
        "labels": (torch.int64, (1, 3)),
        "position_ids": (torch.int64, (1, 3)),
        "cu_seqlens": (torch.int32, (2,)),
    }


@pytest.mark.parametrize(("dropped", "edges"), [(True, [0, 5]), (False, [0, 2, 5])])
def test_trainer_drops_lengths_that_the_model_does_not_name(tmp_path, dropped, edges):
    """As docs/scripts.md warns."""
    rows = [{"input_ids": [5, 6, 7, 8, 9], "seq_lengths": [2, 3]}]
    arguments = TrainingArguments(tmp_path, use_cpu=True, remove_unused_columns=dropped, report_to=[])
    trainer = Trainer(small_llama(), arguments, train_dataset=rows, data_collator=HsapDataCollator())
    (batch,) = trainer.get_train_dataloader()
    assert batch["cu_seqlens"].tolist() == edges


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, lambda v: np.array(v, np.int32)])
def test_any_container_of_whole_numbers_is_read(kind):
    assert collate({"input_ids": kind([5, 6]), "labels": kind([5, 6])})["labels"] == [[-100, 6]]


@pytest.mark.parametrize(
    ("position_ids", "edges"),
    [
        ([0, 1, 2, 3], [0, 4]),
        ([0, 1, 0, 1], [0, 2, 4]),
        ([0, 0, 0, 1], [0, 1, 2, 4]),  # documents of one token
        ([7, 8, 0, 1], [0, 2, 4]),  # a document whose beginning lies elsewhere
        ([0, 1, 5, 6], [0, 2, 4]),  # not the successor: another document
    ],
)
def test_documents_start_where_positions_stop_counting_up(position_ids, edges):
    batch = collate({"input_ids": [5, 6, 7, 8], "position_ids": position_ids})
    assert batch["cu_seqlens"] == edges
    assert batch["position_ids"] == [position_ids]
    assert [place for place, label in enumerate(batch["labels"][0]) if label == -100] == edges[:-1]


@pytest.mark.parametrize(
    ("mask", "kept"), [([1, 1, 1, 1], [5, 6, 7, 8]), ([1, 1, 0, 0], [5, 6]), ([0, 1, 1, 1], [6, 7, 8]), ([0] * 4, [])]
)
def test_padding_is_dropped(mask, kept):
    batch = collate({"input_ids": [5, 6, 7, 8], "attention_mask": mask, "labels": [5, 6, 7, 8]})
    assert batch["input_ids"] == [kept]
    assert batch["labels"] == [[-100, *kept[1:]] if kept else []]
    assert batch["cu_seqlens"] == ([0, len(kept)] if kept else [0])


def test_lengths_of_documents_tell_them_apart():
    batch = collate({"input_ids": [5, 6, 7, 8, 9], "seq_lengths": [2, 0, 3]}, {"input_ids": [4], "seq_lengths": [1]})
    assert batch["position_ids"] == [[0, 1, 0, 1, 2, 0]]
    assert batch["cu_seqlens"] == [0, 2, 5, 6]
    both = {"input_ids": [5, 6], "seq_lengths": [1, 1], "position_ids": [0, 1], "assistant_masks": [0, 1]}
    assert collate({**both, "labels": [-100, 6]})["cu_seqlens"] == [0, 2]


@pytest.mark.parametrize("examples", [[], [{"input_ids": []}], [{"input_ids": [], "labels": [], "position_ids": []}]])
def test_a_rank_may_bring_nothing(examples):
    batch = HsapDataCollator()(examples)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["position_ids"].shape == (1, 0)
    assert batch["input_ids"].dtype == torch.int64
    assert batch["cu_seqlens"].tolist() == [0]


def test_the_callers_arrays_stay_as_they_are():
    labels = np.array([5, 6, 7])
    collate({"input_ids": labels, "labels": labels})
    assert labels.tolist() == [5, 6, 7]


def test_it_travels_to_loader_workers():
    assert pickle.loads(pickle.dumps(HsapDataCollator(max_tokens=9))) == HsapDataCollator(9)


BAD = [
    ([5, 6], "example 0 is a list; needed is a mapping with input_ids."),
    ({"text": "a"}, "example 0 has no input_ids, only ['text']. Tokenize the data first; with Trainer, "),
    ({"input_ids": None}, "example 0 has no input_ids"),
    ({"input_ids": [5, 6], "labels": [5]}, "example 0: 2 input_ids but 1 labels. Give every token one entry"),
    ({"input_ids": [5], "position_ids": [0, 1]}, "example 0: 1 input_ids but 2 position_ids."),
    ({"input_ids": [5], "attention_mask": [1, 1]}, "example 0: 1 input_ids but 2 attention_mask."),
    ({"input_ids": [5.0, 6.0]}, "example 0: input_ids holds float64 values; needed are whole numbers."),
    ({"input_ids": torch.tensor([5.0])}, "example 0: input_ids holds float32 values"),
    ({"input_ids": torch.tensor([5.0], dtype=torch.bfloat16)}, "input_ids is not one list of whole numbers."),
    ({"input_ids": [True, False]}, "example 0: input_ids holds bool values"),
    ({"input_ids": ["5", "6"]}, "example 0: input_ids holds <U1 values"),
    ({"input_ids": [5, None]}, "example 0: input_ids holds object values"),
    ({"input_ids": [[5, 6]]}, "example 0: input_ids has shape [1, 2]; needed is one list of whole numbers per"),
    ({"input_ids": [[5, 6], [7]]}, "example 0: input_ids is not one list of whole numbers."),
    ({"input_ids": 5}, "example 0: input_ids has shape []"),
    ({"input_ids": [5, 6], "position_ids": [-1, 0]}, "example 0: a position_id is -1; positions count from 0."),
    ({"input_ids": [5, 6, 7], "attention_mask": [1, 0, 1]}, "attention_mask has 1 zeros between its first and last 1."),
    ({"input_ids": [5, 6], "attention_mask": [1, 2]}, "attention_mask holds values other than 0 and 1."),
    ({"input_ids": [1, 2], "assistant_masks": [0, 1]}, "assistant_masks says which tokens count, and only labels do"),
    ({"input_ids": [1, 2], "loss_mask": [0, 1]}, "loss_mask says which tokens count"),
    (
        {"input_ids": [1, 2], "seq_idx": [0, 1]},
        "seq_idx tells documents apart, and only position_ids and seq_lengths do",
    ),
    ({"input_ids": [1, 2], "seq_lengths": [1, 2]}, "seq_lengths sum to 3, but there are 2 input_ids"),
    ({"input_ids": [1, 2], "seq_lengths": [3, -1]}, "seq_lengths sum to 2"),
]


@pytest.mark.parametrize(("example", "text"), BAD)
def test_malformed_examples_are_named(example, text):
    with pytest.raises(PackError) as error:
        HsapDataCollator()([example])
    assert text in str(error.value)


def test_the_error_names_the_example_and_not_its_tokens():
    with pytest.raises(PackError) as error:
        HsapDataCollator()([{"input_ids": [1]}, {"input_ids": [987654, 987655], "labels": [987656]}])
    assert str(error.value).startswith("example 1: ")
    assert "98765" not in str(error.value)


def test_too_many_tokens_are_refused_and_never_cut():
    assert collate({"input_ids": [5, 6]}, {"input_ids": [7]}, max_tokens=3)["cu_seqlens"] == [0, 2, 3]
    with pytest.raises(PackError) as error:
        collate({"input_ids": [5, 6]}, {"input_ids": [7, 8]}, max_tokens=3)
    assert str(error.value) == (
        "2 examples hold 4 tokens, max_tokens of the collator allows 3. Bring fewer examples per batch, cut the "
        "documents to fit, or raise max_tokens to at least 4."
    )
