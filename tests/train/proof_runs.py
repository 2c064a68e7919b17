"""The proof, on one rank of the gloo pool."""

import torch
import torch.distributed as dist
from small import VOCABULARY, small_llama

from hsap_hf import HsapDataCollator, HsapPlugin, enable_hsap
from hsap_hf.errors import ConfigError
from hsap_hf.train.proof import prove


def _batch(lengths):
    draw = torch.Generator().manual_seed(dist.get_rank())
    documents = [torch.randint(VOCABULARY, (length,), generator=draw).tolist() for length in lengths]
    return HsapDataCollator()([{"input_ids": document} for document in documents])


def _lora():
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(small_llama(), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)  # zeros would hide every gradient of lora_A
    return model


def proof_with_lora():
    """(passed, leak, own signal, largest difference of gradients) where embeddings are frozen."""
    model = _lora()
    batch = _batch([9, 30] if dist.get_rank() % 2 else [60, 7])
    proof = prove(enable_hsap(model, HsapPlugin(context_size=2)), model, batch, "float32")
    return proof.passed, proof.leak, proof.own_signal, proof.grad_difference


def proof_of_nothing():
    """Why documents of one token prove nothing."""
    model = small_llama()
    with enable_hsap(model, HsapPlugin(context_size=2)) as handle:
        try:
            prove(handle, model, _batch([1, 1, 1]), "float32")
        except ConfigError as error:
            return str(error)
    return "accepted"
