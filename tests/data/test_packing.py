"""Laws of packing: nothing lost, nothing twice, never too much, the same everywhere."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsap_hf.data import deal_parts, order_packs, pack_documents
from hsap_hf.errors import PackError

LENGTHS = st.lists(st.integers(0, 400), max_size=120)
PACK_TOKENS = st.integers(1, 150)


def tokens(spans):
    return sum(span.tokens for span in spans)


@given(LENGTHS, PACK_TOKENS, st.integers(0, 3))
def test_every_token_is_in_exactly_one_pack(lengths, pack_tokens, seed):
    packs = pack_documents(lengths, pack_tokens, seed)
    read = sorted(span for pack in packs for span in pack)
    for doc, length in enumerate(lengths):
        spans = [span for span in read if span.doc == doc]
        edges = [0, *(span.stop for span in spans)]
        assert [span.start for span in spans] == edges[:-1]
        assert edges[-1] == length


@given(LENGTHS, PACK_TOKENS)
def test_no_pack_is_empty_or_above_its_limit(lengths, pack_tokens):
    assert all(0 < tokens(pack) <= pack_tokens for pack in pack_documents(lengths, pack_tokens))


@given(LENGTHS, PACK_TOKENS)
def test_a_document_is_cut_only_if_it_is_longer_than_a_pack(lengths, pack_tokens):
    for pack in pack_documents(lengths, pack_tokens):
        for span in pack:
            assert span.tokens == lengths[span.doc] or lengths[span.doc] > pack_tokens


@given(LENGTHS, PACK_TOKENS, st.integers(1, 9))
def test_parts_hold_the_pack_and_differ_by_no_more_than_its_longest_span(lengths, pack_tokens, num_parts):
    for pack in pack_documents(lengths, pack_tokens):
        parts = deal_parts(pack, num_parts)
        assert len(parts) == num_parts
        assert sorted(span for part in parts for span in part) == sorted(pack)
        assert all(list(part) == [span for span in pack if span in part] for part in parts)
        loads = [tokens(part) for part in parts]
        assert max(loads) - min(loads) <= max(span.tokens for span in pack)


@given(st.integers(0, 50), st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_reads_every_pack_once(num_packs, seed, epoch):
    assert sorted(order_packs(num_packs, seed, epoch)) == list(range(num_packs))


def mix(count):
    return [7000 if place % 20 == 0 else 50 + place * 37 % 900 for place in range(count)]


def test_packs_are_nearly_full():
    lengths = mix(4000)
    packs = pack_documents(lengths, 8192)
    assert sum(lengths) / (len(packs) * 8192) > 0.98


def test_long_and_short_documents_share_packs():
    packs = pack_documents(mix(4000), 16384)
    both = [pack for pack in packs if min(s.tokens for s in pack) < 1000 and max(s.tokens for s in pack) == 7000]
    assert len(both) > 0.9 * len(packs)


def test_the_last_packs_are_as_full_as_the_others():
    packs = pack_documents(mix(400), 8192)
    assert min(map(tokens, packs)) > 0.8 * 8192


def test_a_seed_changes_the_packs_and_an_epoch_their_order():
    assert pack_documents(mix(200), 8192, 0) != pack_documents(mix(200), 8192, 1)
    assert order_packs(20, 0, 0) != order_packs(20, 0, 1) != order_packs(20, 1, 1)


def test_other_processes_pack_alike():
    program = (
        "from hsap_hf.data import pack_documents, order_packs;"
        "print(pack_documents([(i * 37) % 900 for i in range(300)], 2048, 5), order_packs(40, 5, 2))"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize(
    ("lengths", "pack_tokens", "text"),
    [
        ([5], 0, "pack_tokens is 0; a pack holds at least 1 token."),
        ([5, -1], 8, "document 1 has a length of -1 tokens; lengths are 0 or more."),
    ],
)
def test_impossible_packs_are_refused(lengths, pack_tokens, text):
    with pytest.raises(PackError) as error:
        pack_documents(lengths, pack_tokens)
    assert str(error.value) == text
