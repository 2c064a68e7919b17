"""One rank of a run, from recipe to proof."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

import torch
from transformers import Trainer

from hsap_hf.config import EXPECTED_RANKS
from hsap_hf.data import HsapDataCollator, PackedDataset
from hsap_hf.data.corpus import Corpus, load_documents
from hsap_hf.errors import ConfigError
from hsap_hf.hf import HsapHandle, causal_model, enable_hsap
from hsap_hf.train.model import load_model
from hsap_hf.train.proof import Proof, prove
from hsap_hf.train.recipe import Recipe, build_training_arguments
from hsap_hf.train.report import compute_dtype, show_banner, show_proof, show_result


def run(recipe: Recipe, *, only_verify: bool = False, trust_remote_code: bool = False) -> bool:
    """Train as this rank of the job, then prove it where the recipe asks; `only_verify` proves without training.

    True where everything asked for succeeded.
    """
    arguments = build_training_arguments(recipe)
    _check_world(arguments.world_size)
    corpus = load_corpus(recipe, arguments)
    model = load_model(recipe.model, arguments.seed, trust_remote_code=trust_remote_code)
    vocabulary = causal_model(model).config.vocab_size
    if corpus.tokenizer is not None and len(corpus.tokenizer) > vocabulary:
        raise ConfigError(f"the tokenizer has {len(corpus.tokenizer)} entries, the model's vocabulary {vocabulary}.")
    corpus.check_ids(vocabulary)
    with enable_hsap(model, recipe.hsap) as handle:
        dataset = PackedDataset(
            corpus.documents,
            pack_tokens=recipe.packing.pack_tokens,
            group_size=handle.group_size,
            num_replicas=max(1, arguments.world_size // handle.group_size),
            seed=recipe.packing.seed,
        )
        trainer = Trainer(
            model, arguments, train_dataset=dataset, data_collator=HsapDataCollator(), processing_class=corpus.tokenizer
        )
        chief = arguments.process_index == 0
        if chief and recipe.logging.banner:
            show_banner(recipe, handle, model, dataset, corpus, arguments)
        if not only_verify:
            _train(trainer)
        wants_proof = only_verify or recipe.logging.proof
        proof = (
            _proof(handle, model.to(arguments.device), dataset, compute_dtype(model, arguments))
            if wants_proof
            else None
        )
    if chief and wants_proof:
        show_proof(proof)
    return proof.passed if proof is not None else not only_verify


def _train(trainer: Trainer) -> None:
    arguments = trainer.args
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    trainer.save_state()
    if arguments.save_strategy != "no":
        trainer.save_model()
    if arguments.process_index == 0:
        show_result(trainer.state.log_history)


def _check_world(world_size: int) -> None:
    expected = int(os.environ.get(EXPECTED_RANKS, world_size))
    if world_size != expected:
        raise ConfigError(
            f"{expected} ranks were asked for, {world_size} run. With accelerate on CPUs, write distributed_type: "
            f"MULTI_GPU and use_cpu: true; MULTI_CPU starts one process."
        )


def load_corpus(recipe: Recipe, arguments: Any) -> Corpus:
    """The recipe's documents. Rank 0 of a machine reads and tokenizes first, the others find its cache."""
    options = asdict(recipe.data)
    source, tokenizer = options.pop("source"), options.pop("tokenizer")
    with arguments.main_process_first(desc="tokenize"):
        return load_documents(source, tokenizer or recipe.model.name_or_path, **options)


def _proof(handle: HsapHandle, model: Any, dataset: PackedDataset, dtype: str) -> Proof | None:
    """Proof on the first pack; None in a group of one, where there is nothing to compare."""
    if handle.mesh is None:
        return None
    item = handle.mesh.replica % dataset.num_packs * handle.group_size + handle.mesh.group.rank
    batch = HsapDataCollator()([dataset[item]])
    device = next(model.parameters()).device
    return prove(handle, model, {name: value.to(device) for name, value in batch.items()}, dtype)


def shut_down() -> None:
    """Leave torch.distributed in order: without this, gloo's threads may abort the interpreter's exit."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
