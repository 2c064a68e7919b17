"""What a run prints: a banner before, a result and the proof after."""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hsap_hf import __version__
from hsap_hf.attention import Scores, choose_kernel, find_kernel
from hsap_hf.data import PackedDataset
from hsap_hf.data.corpus import Corpus
from hsap_hf.hf import HsapHandle, causal_model
from hsap_hf.hf.support import head_dims
from hsap_hf.train.proof import Proof
from hsap_hf.train.recipe import Recipe


def show_banner(
    recipe: Recipe, handle: HsapHandle, model: Any, dataset: PackedDataset, corpus: Corpus, arguments: Any
) -> None:
    """Mesh, packs, kernel and model, one line each."""
    config = causal_model(model).config
    key_value_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    lengths = [span.tokens for index in range(dataset.num_packs) for span in dataset.pack(index)]
    rows = {
        "mesh": handle.mesh.describe() if handle.mesh else "groups of one rank: stock attention, nothing to share",
        "packs": f"{dataset.num_packs} of at most {recipe.packing.pack_tokens:,} tokens, dealt to one group each",
        "documents": f"{dataset.num_documents}, {dataset.num_tokens:,} tokens, {min(lengths):,} to {max(lengths):,}",
        "left out": f"{corpus.num_too_long} too long, {dataset.num_split_documents} split at the pack size",
        **_kernel(recipe, handle, model, arguments),
        "model": f"{config.model_type}, {model.num_parameters():,} parameters, {config.num_hidden_layers} layers, "
        f"{config.num_attention_heads} query and {key_value_heads} key-value heads, {recipe.model.dtype}",
    }
    table = Table(title=f"hsap_hf {__version__}", title_justify="left", show_header=False, box=None)
    for name, text in rows.items():
        table.add_row(f"[bold]{name}[/]", escape(text))
    Console().print(table)


def show_result(history: list[dict[str, Any]]) -> None:
    """First and last loss, the time, and on CUDA the peak memory of this rank."""
    losses = [entry["loss"] for entry in history if "loss" in entry]
    seconds = next((entry["train_runtime"] for entry in reversed(history) if "train_runtime" in entry), 0.0)
    memory = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at most" if torch.cuda.is_initialized() else ""
    if losses:
        steps = f"over {len(losses)} logged steps"
        Console().print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f} {steps}, {seconds:.1f} s{memory}")


def show_proof(proof: Proof | None) -> None:
    """The proof as a table; says so where there was nothing to prove."""
    if proof is None:
        Console().print("no proof: groups of one rank share nothing. Use 2 ranks or more, and context_size above 1.")
        return
    table = Table(title="proof: one step with HSAP against plain data parallelism", title_justify="left")
    for column in ("what", "HSAP", "stock", "difference", "allowed"):
        table.add_column(column, justify="left" if column == "what" else "right")
    allowed = f"{proof.tolerance:.0e}"
    difference = abs(proof.loss_hsap - proof.loss_stock)
    table.add_row("loss", f"{proof.loss_hsap:.7f}", f"{proof.loss_stock:.7f}", f"{difference:.1e}", allowed)
    table.add_row(f"gradient of {proof.worst_parameter}, the worst", "", "", f"{proof.grad_difference:.1e}", allowed)
    leak = "0" if proof.leak == 0.0 else f"{proof.leak:.3e}"
    table.add_row(f"leak between documents ({proof.num_probed} probed)", leak, "", leak, "0")
    ring = f"{proof.ring_tokens:,.0f} by a ring"
    table.add_row("tokens whose keys a rank receives, a layer", f"{proof.received_tokens:,.0f}", ring, "", "")
    console = Console()
    console.print(table)
    console.print("[green]proof passed[/]" if proof.passed else "[bold red]proof FAILED[/]")


def compute_dtype(model: Any, arguments: Any) -> str:
    """Name of the type matrix products run in: that of mixed precision, or else of the weights."""
    mixed = "bfloat16" if arguments.bf16 else "float16" if arguments.fp16 else str(model.dtype)
    return mixed.removeprefix("torch.")


def kernel_name(wanted: str, model: Any, arguments: Any) -> str:
    """The kernel that computes this model's attention."""
    return choose_kernel(*_kernel_needs(wanted, model, arguments)).name


def _kernel_needs(wanted: str, model: Any, arguments: Any) -> tuple[str, Scores, int, int, str, str]:
    config = causal_model(model).config
    head_dim, value_dim = (width or config.hidden_size // config.num_attention_heads for width in head_dims(config))
    scores = Scores(head_dim**-0.5, None, getattr(config, "attn_logit_softcapping", None))
    return wanted, scores, head_dim, value_dim, compute_dtype(model, arguments), arguments.device.type


def _kernel(recipe: Recipe, handle: HsapHandle, model: Any, arguments: Any) -> dict[str, str]:
    """Lines of the banner: which kernel, and why none that would come before it."""
    if handle.mesh is None:
        return {"kernel": f"{causal_model(model).config._attn_implementation} (stock)"}
    needs = _kernel_needs(recipe.hsap.kernel, model, arguments)
    wanted, *_, dtype, device_type = needs
    lines = {"kernel": f"{choose_kernel(*needs).name} ({wanted}) on {device_type} in {dtype}"}
    _, passed_over = find_kernel(*needs)
    return lines | ({"passed over": "\n".join(passed_over)} if passed_over else {})
