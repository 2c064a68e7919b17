"""One rank of two hosts: trains one step in every group, and writes where it stands and what it received from whom."""

import json
import sys
from collections import Counter
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from hsap_hf import HsapDataCollator, HsapPlugin, enable_hsap
from hsap_hf.planner import fetches, sends

LENGTHS = [[180, 5, 3], [180, 5, 3], [40, 40, 40], [40, 16]]  # 138 tokens a rank


def told(model, rank, context_size, ulysses_size):
    with enable_hsap(model, HsapPlugin(context_size=context_size, ulysses_size=ulysses_size)) as handle:
        rows = [{"input_ids": torch.arange(length) % 90 + 3} for length in LENGTHS[rank]]
        model(**HsapDataCollator()(rows)).loss.backward()
        mesh, plan = handle.mesh, handle.plan
    slot, layers = mesh.context.rank, model.config.num_hidden_layers
    planned = Counter()  # keys arrive once a layer; of the keys sent, the gradients come back
    for fetch in fetches(plan, slot, None):
        planned[fetch.from_slot] += layers * (fetch.stop - fetch.start)
    for send in sends(plan, slot, None):
        planned[send.to_slot] += layers * (send.stop - send.start)
    cut = plan.cut_documents
    return {
        "ulysses": mesh.ulysses.all_gather(torch.tensor([rank]), "who is here").flatten().tolist(),
        "slots_per_node": mesh.slots_per_node,
        "near_slots": mesh.near_slots,
        "owners": [[plan.lengths[doc], sorted({own.slot for own in owned})] for doc, owned in cut.items()],
        "slot": slot,
        "planned": planned,
        "received": mesh.context.traffic.rows_from,
    }


folder, *groups = sys.argv[1:]
arguments = TrainingArguments(folder, use_cpu=True, report_to=[])
llama = LlamaForCausalLM(
    LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
)
for group in groups:
    found = told(llama, arguments.process_index, *map(int, group.split("x")))
    Path(folder, f"{group}-rank{arguments.process_index}.json").write_text(json.dumps(found))
