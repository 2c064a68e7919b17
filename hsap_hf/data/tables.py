"""Texts in files, folders and hub data sets: read as rows, and tokenized."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hsap_hf.data.collator import IGNORED
from hsap_hf.errors import ConfigError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


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


def tokenize_rows(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase | None,
    text_field: str,
    source: str,
    assistant_only_loss: bool = False,
) -> Dataset:
    """Rows with `input_ids`, and `labels` where they came with them or only what the assistant says counts.

    A row is tokenized already (`input_ids`), a text (`text_field`), or a conversation (`messages`, laid out by the
    tokenizer's chat template).
    """
    if assistant_only_loss:
        template = _template_with_answers(rows, tokenizer, source)

        def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
            return _conversations(batch["messages"], tokenizer, template)

    elif "input_ids" in rows.column_names:
        return rows.select_columns([name for name in ("input_ids", "labels") if name in rows.column_names])
    elif text_field in rows.column_names:

        def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
            return {"input_ids": tokenize(checked_texts(batch[text_field], source, text_field), tokenizer)}

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
        raise ConfigError(no_text(source, text_field, rows.column_names))
    return rows.map(encode, batched=True, batch_size=256, remove_columns=rows.column_names, desc="tokenize")


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
            documents.append(_closed(ids, end))
    return documents


def _closed(ids: list[int], end: int | None) -> np.ndarray:
    """Token ids int32[tokens], the last of which is `end`, where there is such a token."""
    return np.asarray(ids if end is None or ids[-1:] == [end] else [*ids, end], dtype=np.int32)


def _template_with_answers(rows: Dataset, tokenizer: PreTrainedTokenizerBase | None, source: str) -> str:
    """The chat template, where it says which of its text the assistant speaks."""
    if "messages" not in rows.column_names:
        raise ConfigError(
            f"data.assistant_only_loss: data.source {source!r} has the columns {', '.join(rows.column_names)}; needed "
            f"are conversations (messages). Rows of input_ids can bring labels of their own, {IGNORED} for prompts."
        )
    template = getattr(tokenizer, "chat_template", None)
    if not isinstance(template, str) or not re.search(r"{%-?\s*generation\s*-?%}", template):
        raise ConfigError(
            "data.assistant_only_loss: the tokenizer has no chat template that marks what the assistant says with "
            "{% generation %} and {% endgeneration %}. Put them into its template, or bring input_ids and labels."
        )
    return template


def _conversations(
    messages: list[Any], tokenizer: PreTrainedTokenizerBase, template: str
) -> dict[str, list[np.ndarray]]:
    """Token ids of conversations, closed like texts, and labels that skip what the assistant does not say."""
    laid_out = tokenizer.apply_chat_template(
        messages, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
    )
    documents = [_closed(ids, tokenizer.eos_token_id) for ids in laid_out["input_ids"]]
    labels = [np.full_like(document, IGNORED) for document in documents]
    for document, own, answers in zip(documents, labels, laid_out["assistant_masks"], strict=True):
        (said,) = np.nonzero(answers)
        own[said] = document[said]
    return {"input_ids": documents, "labels": labels}


def checked_texts(values: Iterable[Any], source: str, field: str) -> Iterator[str]:
    for value in values:
        if not isinstance(value, str):
            raise ConfigError(
                f"data.source {source!r}: {field!r} of a row is a {type(value).__name__} ({str(value)[:40]}), needs a "
                f"text. Drop such rows, or name another column in data.text_field."
            )
        yield value


def no_text(source: str, text_field: str, columns: Sequence[str]) -> str:
    return (
        f"data.source {source!r} has the columns {', '.join(columns)}; needed is {text_field!r}, messages (with a "
        "tokenizer that has a chat template) or input_ids. Name the text column in data.text_field."
    )
