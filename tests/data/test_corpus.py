"""Documents from the standard library and from the user's own files, without a network."""

import hashlib
import json
import subprocess
import sys

import pytest

from hsap_hf.data import corpus
from hsap_hf.errors import ConfigError

TEXTS = ["def f(x):\n    return x\n", "a much longer text, " * 50, "naïve 数"]


@pytest.fixture(scope="module")
def tokenizer():
    return corpus.train_tokenizer(TEXTS, 300)


def test_the_standard_library_mixes_very_long_and_very_short_files():
    texts = corpus.standard_library()
    sizes = sorted(map(len, texts))
    assert len(texts) > 300
    assert sizes[0] < 100
    assert sizes[-1] > 100_000
    assert texts == corpus.standard_library()


def test_a_part_of_it_is_chosen_by_seed_and_within_its_limits():
    texts = corpus.standard_library(40, max_bytes=200_000, max_file_bytes=30_000, seed=1)
    assert len(texts) <= 40
    assert sum(len(text.encode()) for text in texts) <= 200_000
    assert max(len(text.encode()) for text in texts) <= 30_000
    assert texts == corpus.standard_library(40, max_bytes=200_000, max_file_bytes=30_000, seed=1)
    assert texts != corpus.standard_library(40, max_bytes=200_000, max_file_bytes=30_000, seed=2)


@pytest.mark.parametrize(("ids", "named"), [([5, 300], 300), ([-1, 5], -1)])
def test_token_ids_outside_the_vocabulary_are_refused_before_a_model_meets_them(tmp_path, ids, named):
    rows = [{"input_ids": [1, 2]}, {"input_ids": []}, {"input_ids": ids}]
    found = corpus.load_documents(write(tmp_path, "ids.jsonl", rows))
    with pytest.raises(ConfigError, match=f"token id {named}, the model's vocabulary has 300 entries"):
        found.check_ids(300)
    corpus.load_documents(write(tmp_path, "few.jsonl", rows[:2])).check_ids(3)
    corpus.Corpus(documents=[[0, 2], []], tokenizer=None).check_ids(3)


def test_the_tokenizer_reads_any_text_back(tokenizer):
    for text in [*TEXTS, "\x00\r\n\t🙂"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer) <= 300
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)


def test_every_document_ends_once(tokenizer):
    documents = corpus.tokenize([*TEXTS, "", "done<|eos|>"], tokenizer)
    assert [int((document == tokenizer.eos_token_id).sum()) for document in documents] == [1] * 5
    assert all(document[-1] == tokenizer.eos_token_id for document in documents)
    assert documents[0].dtype == "int32"


def test_every_process_trains_the_same_tokenizer():
    program = (
        "from hsap_hf.data import corpus;"
        "texts = corpus.standard_library(max_bytes=300_000, max_file_bytes=50_000);"
        "print(corpus.train_tokenizer(texts, 1024).backend_tokenizer.to_str())"
    )
    children = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) for _ in range(2)]
    outputs = [child.communicate(timeout=60)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert len(json.loads(outputs[0])["model"]["vocab"]) == 1024
    assert hashlib.sha256(outputs[0]).digest() == hashlib.sha256(outputs[1]).digest()


def test_the_built_in_corpus_respects_its_limits():
    built = corpus.load_documents("stdlib", vocab_size=512, max_tokens=50_000, max_document_tokens=4000)
    lengths = [len(document) for document in built.documents]
    assert sum(lengths) <= 50_000
    assert sum(lengths) > 25_000
    assert max(lengths) <= 4000
    assert len(built.tokenizer) == 512


def write(folder, name, rows):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_texts_of_a_file_become_documents(tmp_path):
    source = write(tmp_path, "a.jsonl", [{"text": text} for text in TEXTS])
    built = corpus.load_documents(source, vocab_size=300)
    assert [built.tokenizer.decode(row["input_ids"][:-1]) for row in built.documents] == TEXTS


def test_a_folder_of_files_is_read_in_order(tmp_path):
    (tmp_path / "rows").mkdir()
    write(tmp_path / "rows", "b.jsonl", [{"body": TEXTS[1]}])
    write(tmp_path / "rows", "a.jsonl", [{"body": TEXTS[0]}])
    built = corpus.load_documents(str(tmp_path / "rows"), vocab_size=300, text_field="body")
    assert [built.tokenizer.decode(row["input_ids"][:-1]) for row in built.documents] == TEXTS[:2]


def test_conversations_use_the_chat_template(tmp_path, tokenizer):
    tokenizer.chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    source = write(tmp_path, "chat.jsonl", [{"messages": [{"role": "user", "content": "hi"}]}])
    built = corpus.load_documents(source, str(tmp_path / "tokenizer"))
    assert tokenizer.decode(built.documents[0]["input_ids"]) == "<user>hi<|eos|>"


ANSWERS = "{% for m in messages %}<{{ m['role'] }}>{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
ANSWERS += "{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"


def test_of_conversations_only_what_the_assistant_says_may_count(tmp_path, tokenizer):
    tokenizer.chat_template = ANSWERS
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    chats = [["user", "hi", "assistant", "naïve", "user", "more", "assistant", "x"], ["user", "nobody answers"]]
    messages = [[{"role": r, "content": c} for r, c in zip(chat[::2], chat[1::2], strict=True)] for chat in chats]
    source = write(tmp_path, "chat.jsonl", [{"messages": chat, "text": "unused"} for chat in messages])
    built = corpus.load_documents(source, str(tmp_path / "tokenizer"), assistant_only_loss=True)
    texts = [tokenizer.decode(row["input_ids"]) for row in built.documents]
    assert texts == ["<user>hi<assistant>naïve<user>more<assistant>x<|eos|>", "<user>nobody answers<|eos|>"]
    kept = [[label for label in row["labels"] if label != -100] for row in built.documents]
    assert [tokenizer.decode(labels) for labels in kept] == ["naïvex", ""]
    for row in built.documents:
        assert all(label in (-100, token) for label, token in zip(row["labels"], row["input_ids"], strict=True))


def test_answers_that_nothing_marks_are_refused(tmp_path, tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    chat = write(tmp_path, "chat.jsonl", [{"messages": [{"role": "user", "content": "hi"}]}])
    text = write(tmp_path, "text.jsonl", [{"text": "hi"}])
    for source, said in [(chat, "no chat template that marks what the assistant says"), (text, "has the columns text")]:
        with pytest.raises(ConfigError, match=f"data.assistant_only_loss: .*{said}"):
            corpus.load_documents(source, str(tmp_path / "tokenizer"), assistant_only_loss=True)


def test_tokenized_rows_are_taken_as_they_are(tmp_path):
    rows = [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "id": "a"}, {"input_ids": [4], "labels": [4], "id": "b"}]
    built = corpus.load_documents(write(tmp_path, "a.jsonl", rows))
    assert built.tokenizer is None
    assert list(built.documents) == [{"input_ids": r["input_ids"], "labels": r["labels"]} for r in rows]


def test_documents_left_out_are_counted(tmp_path):
    source = write(tmp_path, "a.jsonl", [{"input_ids": [1] * length} for length in (3, 90, 5, 4, 2)])
    built = corpus.load_documents(source, max_document_tokens=10, max_tokens=10)
    assert [len(row["input_ids"]) for row in built.documents] == [3, 5, 2]
    assert built.num_too_long == 1
    assert len(corpus.load_documents(source, max_documents=2).documents) == 2


def test_files_of_the_library_that_are_too_long_are_counted_without_being_read():
    some = corpus.load_documents("stdlib", vocab_size=300, max_document_tokens=300)
    assert some.num_too_long > 0
    assert len(some.documents) + some.num_too_long == len(corpus.standard_library())


def test_sources_that_cannot_be_read_are_refused_with_a_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    chat = write(tmp_path, "chat.jsonl", [{"messages": [{"role": "user", "content": "hi"}]}])
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "nothing.jsonl").write_text("")
    for source, options, text in [
        (write(tmp_path, "a.jsonl", [{"body": "x"}]), {}, "has the columns body; needed is 'text', messages"),
        (chat, {}, "has the columns messages; needed is 'text', messages (with a tokenizer that has a chat template)"),
        (write(tmp_path, "b.jsonl", [{"input_ids": [1] * 9}]), {"max_document_tokens": 5}, "none of the 1 documents"),
        (str(tmp_path / "empty"), {}, "found: no such file. Point data.source at one kind"),
        (str(tmp_path / "a.txt"), {}, "needed is a file, or a folder of files of one kind, out of .jsonl, .json"),
        (chat, {"split": "test"}, "split 'test': ValueError: Unknown split"),
        (
            write(tmp_path, "c.jsonl", [{"text": "x"}, {"text": None}]),
            {},
            "'text' of a row is a NoneType",
        ),
        (str(tmp_path / "nothing.jsonl"), {}, "It is there and cannot be read"),
        ("nobody/nothing", {}, "Give an existing file or folder, the name of a hub data set you can reach"),
        ("stdlib", {"vocab_size": 100}, "vocab_size is 100; a byte-level vocabulary starts with 256 bytes and 2"),
        ("stdlib", {"tokenizer": str(tmp_path / "empty")}, "Set data.tokenizer to a folder or hub name that holds one"),
    ]:
        with pytest.raises(ConfigError) as error:
            corpus.load_documents(source, **options)
        assert text in str(error.value)
