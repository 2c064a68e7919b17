"""A small Llama and small data that several test folders train on."""

import random

import torch
from transformers import (
    DataCollatorForTokenClassification,
    DataCollatorWithFlattening,
    LlamaConfig,
    LlamaForCausalLM,
    set_seed,
)

from hsap_hf import HsapDataCollator

VOCABULARY = 96
LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def small_llama(**changes):
    """The same random weights on every rank and in every call."""
    set_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**LLAMA, **changes}))


class Documents(torch.utils.data.Dataset):
    """Short and long random documents; the labels of every `masked_every`-th do not count."""

    def __init__(self, count=320, lengths=(3, 5, 9, 17, 40, 120), masked_every=None):
        draw = random.Random(0)
        self.tokens = [[draw.randrange(3, VOCABULARY) for _ in range(draw.choice(lengths))] for _ in range(count)]
        self.masked_every = masked_every

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, item):
        tokens = self.tokens[item]
        masked = self.masked_every is not None and item % self.masked_every == 0
        return {"input_ids": tokens, "labels": [-100] * len(tokens) if masked else tokens}


class Padding:
    """Padded batches, as DataCollatorForSeq2Seq and friends make them: tokens, labels and a mask."""

    def __init__(self, side, width=None):
        from tokenizers import Tokenizer, models
        from transformers import PreTrainedTokenizerFast

        words = {f"t{i}": i for i in range(VOCABULARY)}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="t0")), pad_token="t0", padding_side=side
        )
        self.collate = DataCollatorForTokenClassification(
            tokenizer, padding="max_length" if width else True, max_length=width
        )

        self.first = {"left": [-100], "right": []}[side]  # stock Transformers lets padding predict what follows it

    def __call__(self, examples):
        rows = [(example["input_ids"], self.first + example["labels"][len(self.first) :]) for example in examples]
        return dict(
            self.collate([{"input_ids": ids, "labels": to, "attention_mask": [1] * len(ids)} for ids, to in rows])
        )


COLLATORS = {
    "flattening": DataCollatorWithFlattening,
    "hsap": HsapDataCollator,
    "right": lambda: Padding("right"),
    "left": lambda: Padding("left"),
    "fixed": lambda: Padding("right", 128),
}
