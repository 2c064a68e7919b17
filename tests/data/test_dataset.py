"""Packs as a dataset: whatever the group size and the loader, a group meets one pack at a time."""

from itertools import chain

import datasets
import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from torch.utils.data import DataLoader

from hsap_hf import HsapDataCollator
from hsap_hf.data import PackedDataset
from hsap_hf.errors import PackError

# Token 1000 * document + position, so that a batch says what it holds.
DOCUMENTS = [[1000 * doc + place for place in range(1 + doc * 13 % 90)] for doc in range(60)]


def dataset(documents=DOCUMENTS, **options):
    return PackedDataset(documents, **{"pack_tokens": 128, "seed": 3, **options})


def packs_of(packed):
    """The documents of every pack, in reading order, gathered from its parts."""
    size = packed.group_size
    return [
        frozenset(token for part in range(size) for token in packed[index * size + part]["input_ids"])
        for index in range(packed.num_packs)
    ]


def test_an_epoch_holds_every_token_once():
    packed = dataset()
    assert sorted(t for item in range(len(packed)) for t in packed[item]["input_ids"]) == sorted(chain(*DOCUMENTS))
    assert (packed.num_documents, packed.num_tokens) == (60, sum(map(len, DOCUMENTS)))
    assert packed.num_split_documents == 0


@pytest.mark.parametrize("group_size", [2, 3, 8])
def test_the_group_size_does_not_change_the_packs(group_size):
    alone, shared = dataset(), dataset(group_size=group_size)
    assert len(shared) == len(alone) * group_size
    for epoch in (0, 1):
        alone.set_epoch(epoch)
        shared.set_epoch(epoch)
        assert packs_of(alone) == packs_of(shared)


def test_epochs_differ_in_order_and_not_in_composition():
    packed = dataset()
    first = packs_of(packed)
    packed.set_epoch(1)
    second = packs_of(packed)
    assert first != second
    assert set(first) == set(second)
    packed.set_epoch(0)
    assert packs_of(packed) == first


def test_alone_no_part_is_empty():
    packed = dataset()
    assert all(packed[item]["input_ids"] for item in range(len(packed)))


def test_items_tell_documents_apart():
    item = dataset([[1, 2, 3], [4, 5]], pack_tokens=5)[0]
    starts = [place for place, position in enumerate(item["position_ids"]) if position == 0]
    assert len(starts) == 2
    assert [place for place, label in enumerate(item["labels"]) if label == -100] == starts
    assert item["position_ids"] in ([0, 1, 2, 0, 1], [0, 1, 0, 1, 2])


def test_a_part_may_be_empty():
    packed = dataset([[1, 2, 3]], group_size=2)
    assert packed[1] == {"input_ids": [], "labels": [], "position_ids": []}


def test_long_documents_are_split_and_counted():
    packed = dataset([list(range(300)), [5, 6]], pack_tokens=128)
    assert packed.num_split_documents == 1
    assert max(len(packed[item]["input_ids"]) for item in range(len(packed))) <= 128
    assert sum(len(packed[item]["input_ids"]) for item in range(len(packed))) == 302


ROWS = [{"input_ids": [1, 2, 3], "labels": [-100, -100, 3]}, {"input_ids": [4, 5], "labels": [4, 5]}]


@pytest.mark.parametrize("documents", [ROWS, datasets.Dataset.from_list(ROWS)], ids=["mappings", "datasets.Dataset"])
def test_labels_of_the_documents_are_kept(documents):
    item = dataset(documents, pack_tokens=8)[0]
    assert dict(zip(item["input_ids"], item["labels"], strict=True)) == {1: -100, 2: -100, 3: 3, 4: -100, 5: 5}


@pytest.mark.parametrize(
    "documents",
    [
        [np.array(document, np.int32) for document in DOCUMENTS],
        [torch.tensor(document) for document in DOCUMENTS],
        datasets.Dataset.from_dict({"input_ids": DOCUMENTS, "text": ["x"] * 60}),
        datasets.Dataset.from_dict({"input_ids": DOCUMENTS[::-1]}).select(range(59, -1, -1)),
    ],
    ids=["arrays", "tensors", "datasets.Dataset", "selected rows"],
)
def test_documents_may_come_in_many_forms(documents):
    assert packs_of(dataset(documents)) == packs_of(dataset())
    assert dataset(documents)[0] == dataset()[0]


@pytest.mark.parametrize(
    ("documents", "text"),
    [
        ([], "the 0 documents hold no tokens: there is nothing to train on."),
        ([[], []], "the 2 documents hold no tokens: there is nothing to train on."),
        ([{"text": "a"}], "document 0 has no input_ids, only ['text']. Tokenize the text first."),
        (datasets.Dataset.from_dict({"text": ["a"]}), "the dataset has no column input_ids, only ['text']."),
        ([{"input_ids": [1, 2], "labels": [1]}], "document 0: 2 input_ids but 1 labels. Give every token one label"),
        (datasets.Dataset.from_dict({"input_ids": [[1, 2]], "labels": [[1]]}), "document 0: 2 input_ids but 1 labels."),
        (datasets.Dataset.from_dict({"input_ids": [[1], None]}), "document 1: input_ids is null."),
    ],
)
def test_unusable_documents_are_refused_at_once(documents, text):
    with pytest.raises(PackError) as error:
        dataset(documents)
    assert text in str(error.value)


@pytest.mark.parametrize("documents", [[[1.5, 2.5]], ["text"], [[[1, 2]]]])
def test_documents_that_are_not_token_ids_are_named(documents):
    with pytest.raises(PackError, match=r"^document 0: token ids have shape .* needed is one list of whole numbers"):
        dataset(documents)[0]


def loader(packed, world, rank, **options):
    """This rank's loader as accelerate prepares it: what Trainer iterates over."""
    plain = DataLoader(packed, batch_size=1, shuffle=False, collate_fn=HsapDataCollator(), **options)
    return prepare_data_loader(plain, num_processes=world, process_index=rank, put_on_device=False)


@pytest.mark.parametrize(("world", "group_size"), [(1, 1), (2, 2), (4, 2), (4, 4), (6, 3), (3, 1)])
def test_the_ranks_of_a_group_meet_over_one_pack(world, group_size):
    packed = dataset(group_size=group_size)
    for epoch in range(2):
        loaders = [loader(packed, world, rank) for rank in range(world)]
        for one in loaders:
            one.set_epoch(epoch)
        steps = list(zip(*loaders, strict=True))
        packed.set_epoch(epoch)
        wanted = packs_of(packed)
        met = [
            frozenset(token for batch in step[first : first + group_size] for token in batch["input_ids"][0].tolist())
            for step in steps
            for first in range(0, world, group_size)
        ]
        repeated = len(met) - len(wanted)  # accelerate fills the last step with the first packs
        assert met == wanted + wanted[:repeated]
        assert repeated < world // group_size


def test_a_resumed_epoch_goes_on_where_it_stopped():
    packed = dataset(group_size=2)
    for rank in range(2):
        whole, rest = loader(packed, 2, rank), skip_first_batches(loader(packed, 2, rank), 3)
        for one in (whole, rest):
            one.set_epoch(4)
        expected = [batch["input_ids"].tolist() for batch in whole][3:]
        packed.set_epoch(0)
        assert [batch["input_ids"].tolist() for batch in rest] == expected


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
@pytest.mark.parametrize(
    "options",
    [
        {"pin_memory": True},
        {"num_workers": 2, "pin_memory": True},
        {"num_workers": 2, "persistent_workers": True},
        {"num_workers": 1, "multiprocessing_context": "spawn", "persistent_workers": True},
    ],
    ids=["pinned", "workers", "persistent", "spawned"],
)
def test_workers_follow_the_epoch(options):
    packed = dataset(group_size=2)
    ours = loader(packed, 1, 0, **options)
    for epoch in range(3):  # the loader counts epochs itself
        batches = list(ours)
        packed.set_epoch(epoch)
        assert [batch["input_ids"][0].tolist() for batch in batches] == [item["input_ids"] for item in packed]
        assert all(batch["cu_seqlens"][-1] == batch["input_ids"].shape[1] for batch in batches)
