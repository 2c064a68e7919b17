"""A user's own script: a bare Trainer, and enable_hsap without a plugin."""

import tempfile

from transformers import DataCollatorWithFlattening, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from hsap_hf import enable_hsap

arguments = TrainingArguments(
    tempfile.mkdtemp(), use_cpu=True, max_steps=2, report_to=[], save_strategy="no", per_device_train_batch_size=2
)
model = LlamaForCausalLM(
    LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
)
handle = enable_hsap(model)
rows = [{"input_ids": list(range(3, 12 + i % 50)), "labels": list(range(3, 12 + i % 50))} for i in range(16)]
Trainer(model, arguments, train_dataset=rows, data_collator=DataCollatorWithFlattening()).train()
counts = handle.report()
print(
    f"RANK {arguments.process_index} of {arguments.world_size}: {handle.plugin.context_size} slots, {counts['batches']}"
)
