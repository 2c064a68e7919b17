"""Documents to train on: the user's own files, a hub data set, or the source code of Python's standard library."""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hsap_hf.data.tables import checked_texts, load_texts, no_text, tokenize, tokenize_rows
from hsap_hf.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

STDLIB = "stdlib"

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

    def check_ids(self, vocabulary: int) -> None:
        """Raise ConfigError where a document holds a token id outside [0, vocabulary): on a GPU that ends the job."""
        low, high = 0, 0
        for ids in self._ids():
            if len(ids):
                low, high = min(low, int(ids.min())), max(high, int(ids.max()))
        if low < 0 or high >= vocabulary:
            raise ConfigError(
                f"a document holds token id {low if low < 0 else high}, the model's vocabulary has {vocabulary:,} "
                f"entries. Tokenize with the model's own tokenizer, or set a larger vocab_size."
            )

    def _ids(self) -> Iterator[np.ndarray]:
        """Token ids of some documents at a time."""
        if isinstance(self.documents, list):
            yield from map(np.asarray, self.documents)
            return
        for rows in self.documents.with_format("arrow").iter(1_000):  # type: ignore[attr-defined]
            for chunk in rows["input_ids"].chunks:
                yield chunk.flatten().to_numpy(zero_copy_only=False)


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
    assistant_only_loss: bool = False,
    seed: int = 0,
) -> Corpus:
    """Tokenized documents, ready for PackedDataset, with their tokenizer.

    source: "stdlib", a file or folder of .jsonl, .json, .parquet or .csv, or the name of a hub data set.
    tokenizer: name or path; None trains a byte-level BPE of `vocab_size` entries on the documents themselves.
    max_documents, max_tokens: take no more than this, chosen by `seed`; a document is taken whole or not at all.
    max_document_tokens: leave out longer documents, and count them.
    assistant_only_loss: of conversations, only what the assistant says counts.

    Raises ConfigError where the source cannot be read as documents.
    """
    chosen = _tokenizer(tokenizer) if tokenizer is not None else None
    num_too_long = 0
    if source == STDLIB:
        most = max_document_tokens and max_document_tokens * _BYTES_PER_TOKEN
        num_too_long = sum(path.stat().st_size > most for path in _library_files()) if most else 0
        texts = standard_library(
            max_documents, max_bytes=max_tokens and max_tokens * _BYTES_PER_TOKEN, max_file_bytes=most, seed=seed
        )
        chosen = chosen or train_tokenizer(texts, vocab_size)
        documents: Sequence[Any] = tokenize(texts, chosen)
        lengths = [len(document) for document in documents]
    else:
        rows = load_texts(source, split=split, max_documents=max_documents, seed=seed)
        if chosen is None and "input_ids" not in rows.column_names:
            if text_field not in rows.column_names:
                raise ConfigError(no_text(source, text_field, rows.column_names))
            chosen = train_tokenizer(checked_texts((row[text_field] for row in rows), source, text_field), vocab_size)
        documents = tokenize_rows(rows, chosen, text_field, source, assistant_only_loss)
        lengths = [len(row) for row in documents["input_ids"]]
    kept = [i for i, length in enumerate(lengths) if max_document_tokens is None or length <= max_document_tokens]
    num_too_long += len(lengths) - len(kept)
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
    paths = _library_files()
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


def _library_files() -> list[Path]:
    root = Path(sysconfig.get_paths()["stdlib"])
    files = (path for path in root.rglob("*.py") if not _NOT_LIBRARY.intersection(path.relative_to(root).parts))
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


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


def _tokenizer(name: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"tokenizer {name!r}: {str(error).splitlines()[0]}\n"
            "Set data.tokenizer to a folder or hub name that holds one; without it, a model's own folder must hold it "
            "(tokenizer.save_pretrained)."
        ) from error


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
