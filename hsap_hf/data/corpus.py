"""Documents to train on: the user's own files, a hub data set, or the source code of Python's standard library."""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hsap_hf.errors import ConfigError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

STDLIB = "stdlib"
BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}

_NOT_LIBRARY = {
    *("test", "tests", "site-packages", "dist-packages", "__pycache__"),
    *("idlelib", "lib2to3", "turtledemo", "ensurepip"),
}
_BYTES_PER_TOKEN = 4  # source code under a vocabulary of some thousand entries has 3.1 to 3.5
_TOKENIZER_SAMPLE = 1_000_000  # characters; training takes 0.3 s, a larger sample hardly changes the vocabulary
_SAMPLE_PER_TEXT = 20_000  # characters, so that one giant file does not become the vocabulary


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """What a run trains on."""

    documents: Sequence[Any]
    """Tokenized documents as PackedDataset takes them."""

    tokenizer: PreTrainedTokenizerBase | None
    """What tokenized them; None where they came tokenized and no tokenizer was named."""

    num_too_long: int = 0
    """Documents left out because they exceed `max_document_tokens`."""


def load_documents(
    source: str,
    tokenizer: str | None = None,
    *,
    split: str = "train",
    text_field: str = "text",
    vocab_size: int = 4096,
    max_documents: int | None = None,
    max_tokens: int | None = None,
    max_document_tokens: int | None = None,
    seed: int = 0,
) -> Corpus:
    """Tokenized documents, ready for PackedDataset, with their tokenizer.

    source: "stdlib", a file or folder of .jsonl, .json, .parquet or .csv, or the name of a hub data set.
    tokenizer: name or path; None trains a byte-level BPE of `vocab_size` entries on the documents themselves.
    max_documents, max_tokens: take no more than this, chosen by `seed`; a document is taken whole or not at all.
    max_document_tokens: leave out longer documents, and count them.

    Raises ConfigError where the source cannot be read as documents.
    """
    chosen = _tokenizer(tokenizer) if tokenizer is not None else None
    if source == STDLIB:
        texts = standard_library(
            max_documents,
            max_bytes=max_tokens and max_tokens * _BYTES_PER_TOKEN,
            max_file_bytes=max_document_tokens and max_document_tokens * _BYTES_PER_TOKEN,
            seed=seed,
        )
        chosen = chosen or train_tokenizer(texts, vocab_size)
        documents: Sequence[Any] = tokenize(texts, chosen)
        lengths = [len(document) for document in documents]
    else:
        rows = load_texts(source, split=split, max_documents=max_documents, seed=seed)
        if chosen is None and "input_ids" not in rows.column_names:
            if text_field not in rows.column_names:
                raise ConfigError(_no_text(source, text_field, rows.column_names))
            chosen = train_tokenizer(_texts((row[text_field] for row in rows), source, text_field), vocab_size)
        documents = tokenize_rows(rows, chosen, text_field, source)
        lengths = [len(row) for row in documents["input_ids"]]
    kept = [i for i, length in enumerate(lengths) if max_document_tokens is None or length <= max_document_tokens]
    num_too_long = len(lengths) - len(kept)
    if max_tokens is not None:
        kept = [kept[i] for i in _fitting((lengths[i] for i in kept), max_tokens)]
    if not kept:
        raise ConfigError(
            f"data.source {source!r}: none of the {len(lengths)} documents can be taken; {num_too_long} exceed "
            f"max_document_tokens ({max_document_tokens}), max_tokens is {max_tokens}. Raise these, or bring more data."
        )
    if len(kept) < len(lengths):
        documents = [documents[i] for i in kept] if source == STDLIB else documents.select(kept)
    return Corpus(documents=documents, tokenizer=chosen, num_too_long=num_too_long)


def standard_library(
    max_files: int | None = None, *, max_bytes: int | None = None, max_file_bytes: int | None = None, seed: int = 0
) -> list[str]:
    """Source files of Python's standard library, one text each, without its tests: some hundred files, about 11 MB.

    Lengths span five orders of magnitude, which makes it a real mix of long and short documents on every machine.
    The limits take a part of it, chosen by `seed`. Files that are empty or not UTF-8 are skipped.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files = (path for path in root.rglob("*.py") if not _NOT_LIBRARY.intersection(path.relative_to(root).parts))
    paths = sorted(files, key=lambda path: path.relative_to(root).as_posix())
    if max_file_bytes is not None:
        paths = [path for path in paths if path.stat().st_size <= max_file_bytes]
    if max_files is not None or max_bytes is not None:
        random.Random(f"files {seed}").shuffle(paths)  # noqa: S311  (repeatable order, not cryptography)
    if max_bytes is not None:
        paths = [paths[i] for i in _fitting((path.stat().st_size for path in paths), max_bytes)]
    texts = []
    for path in paths[:max_files]:
        try:
            texts.append(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, OSError):
            continue
    return [text for text in texts if text]


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocab_size` entries, learned from the first million characters.

    Same texts, same tokenizer, in every process: all ranks may train their own.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|bos|>", "<|eos|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(alphabet) + len(special):
        raise ConfigError(
            f"vocab_size is {vocab_size}; a byte-level vocabulary starts with {len(alphabet)} bytes and {len(special)} "
            f"special tokens. Set vocab_size to {len(alphabet) + len(special)} or more, or name a tokenizer."
        )
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(_sample(texts), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=special[0], eos_token=special[1])


def tokenize(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, *, add_special_tokens: bool = True
) -> list[np.ndarray]:
    """Token ids int32[tokens] of each text, closed by the tokenizer's end-of-sequence token where it has one."""
    end = tokenizer.eos_token_id
    documents = []
    remaining = iter(texts)
    while batch := list(islice(remaining, 256)):
        for ids in tokenizer(
            batch,
            add_special_tokens=add_special_tokens,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # no warning about lengths: packs take any
        )["input_ids"]:
            closing = [] if end is None or ids[-1:] == [end] else [end]
            documents.append(np.asarray(ids + closing, dtype=np.int32))
    return documents


def load_texts(source: str, *, split: str = "train", max_documents: int | None = None, seed: int = 0) -> Dataset:
    """Rows of a file, of all readable files in a folder, or of a hub data set, through datasets.load_dataset.

    Raises ConfigError with the reason and a way out where they cannot be read.
    """
    from datasets import load_dataset

    path = Path(source).expanduser()
    files = sorted(p for p in path.rglob("*") if p.suffix in BUILDERS) if path.is_dir() else [path]
    builders = {BUILDERS.get(file.suffix) for file in files}
    if path.exists() and (len(builders) != 1 or None in builders):
        found = ", ".join(sorted(filter(None, builders))) or "no such file"
        raise ConfigError(
            f"data.source {source!r}: needed is a file, or a folder of files of one kind, out of "
            f"{', '.join(BUILDERS)}; found: {found}. Point data.source at one kind, or convert the files."
        )
    try:
        if path.exists():
            rows = load_dataset(builders.pop(), data_files=[str(file) for file in files], split=split)
        else:
            rows = load_dataset(source, split=split)
    except Exception as error:  # datasets raises dozens of types; each means that there is no data to train on
        said = (str(error) or "nothing to read").splitlines()[0][:300]
        advice = "Give an existing file or folder, the name of a hub data set you can reach, or 'stdlib'."
        if path.exists():
            advice = "It is there and cannot be read: what datasets logged above says where. Mend or convert it."
        raise ConfigError(
            f"data.source {source!r}, split {split!r}: {type(error).__name__}: {said}\n{advice}"
        ) from error
    if max_documents is not None and max_documents < len(rows):
        rows = rows.shuffle(seed=seed).select(range(max_documents))
    return rows


def tokenize_rows(rows: Dataset, tokenizer: PreTrainedTokenizerBase | None, text_field: str, source: str) -> Dataset:
    """Rows with `input_ids`, and `labels` where they came with them.

    A row is tokenized already (`input_ids`), a conversation (`messages`, laid out by the tokenizer's chat template),
    or a text (`text_field`).
    """
    if "input_ids" in rows.column_names:
        return rows.select_columns([name for name in ("input_ids", "labels") if name in rows.column_names])
    if text_field in rows.column_names:

        def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
            return {"input_ids": tokenize(_texts(batch[text_field], source, text_field), tokenizer)}

    elif "messages" in rows.column_names:
        if not getattr(tokenizer, "chat_template", None):
            raise ConfigError(
                f"data.source {source!r} holds conversations (messages), but the tokenizer has no chat template. "
                "Name a tokenizer that has one in data.tokenizer, or bring a text column."
            )

        def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
            texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in batch["messages"]]
            return {"input_ids": tokenize(texts, tokenizer, add_special_tokens=False)}

    else:
        raise ConfigError(_no_text(source, text_field, rows.column_names))
    return rows.map(encode, batched=True, batch_size=256, remove_columns=rows.column_names, desc="tokenize")


def _tokenizer(name: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"tokenizer {name!r}: {str(error).splitlines()[0]}\n"
            "Give a folder or hub name that holds a tokenizer, or leave data.tokenizer out."
        ) from error


def _no_text(source: str, text_field: str, columns: Sequence[str]) -> str:
    return (
        f"data.source {source!r} has the columns {', '.join(columns)}; needed is {text_field!r}, messages (with a "
        "tokenizer that has a chat template) or input_ids. Name the text column in data.text_field."
    )


def _texts(values: Iterable[Any], source: str, field: str) -> Iterator[str]:
    for value in values:
        if not isinstance(value, str):
            raise ConfigError(
                f"data.source {source!r}: {field!r} of a row is a {type(value).__name__} ({str(value)[:40]}), needs a "
                f"text. Drop such rows, or name another column in data.text_field."
            )
        yield value


def _sample(texts: Iterable[str]) -> Iterable[str]:
    left = _TOKENIZER_SAMPLE
    for text in texts:
        if left <= 0:
            return
        yield text[:_SAMPLE_PER_TEXT]
        left -= min(len(text), _SAMPLE_PER_TEXT)


def _fitting(sizes: Iterable[int], budget: int) -> list[int]:
    """Places of the sizes that fit, first come first served, into what the earlier ones left of `budget`."""
    places = []
    for place, size in enumerate(sizes):
        if size <= budget:
            places.append(place)
            budget -= size
    return places
