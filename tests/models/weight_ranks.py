"""What a gloo rank does with pretrained weights: the loss on real documents, with and without HSAP."""

from __future__ import annotations

import itertools
from pathlib import Path
from sysconfig import get_paths

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, AutoTokenizer

from hsap_hf import HsapPlugin, enable_hsap

# The file and the tokens of it that each rank brings.
BROUGHT = (
    [("argparse.py", 700), ("this.py", 90)],
    [("abc.py", 60)],
    [("ast.py", 350), ("bdb.py", 33)],
    [("cmd.py", 200)],
)


def compare_losses(folder: str, context_size: int) -> tuple[float, float, int]:
    """(HSAP's loss, the stock loss, cut documents of this rank's group); losses are means over all labels."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    documents = [[_tokens(tokenizer, *one) for one in of_rank] for of_rank in BROUGHT]
    num_items = sum(len(document) - 1 for of_rank in documents for document in of_rank)
    own = documents[dist.get_rank()]
    ids, lengths = torch.cat(own), [len(document) for document in own]
    labels = ids.clone()
    labels[[0, *itertools.accumulate(lengths)][:-1]] = -100
    positions = torch.cat([torch.arange(length) for length in lengths])
    batch = {"input_ids": ids, "labels": labels, "position_ids": positions}
    with enable_hsap(model, HsapPlugin(context_size=context_size)) as handle:
        ours = model(**{key: value[None] for key, value in batch.items()}, num_items_in_batch=num_items).loss.detach()
        cuts = len(handle.plan.cut_documents)
    with torch.no_grad():
        stock = sum(
            model(one[None], labels=one[None], use_cache=False, num_items_in_batch=num_items).loss for one in own
        )
    for loss in (ours, stock):
        dist.all_reduce(loss)
    return float(ours), float(stock), cuts


def _tokens(tokenizer, name: str, count: int) -> torch.Tensor:
    text = Path(get_paths()["stdlib"], name).read_text()
    return torch.tensor(tokenizer(text).input_ids[:count])
