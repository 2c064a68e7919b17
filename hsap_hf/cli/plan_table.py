"""The table of `hsap plan`: slots, bytes beside other ways to share a pack, predicted time and memory, advice."""

from __future__ import annotations

from typing import Any

from hsap_hf.planner import Plan
from hsap_hf.planner.cost import ideal_seconds, key_bytes, layer_seconds, memory_bytes, step_seconds, ulysses_bytes
from hsap_hf.planner.machine import Machine
from hsap_hf.planner.model import Model
from hsap_hf.planner.recommend import recommend, slots_per_node


def show_plan(plan: Plan, shown: dict[str, Any], model: Model, machine: Machine) -> None:
    """Print the plan; `shown` is its JSON object."""
    from rich.markup import escape
    from rich.table import Table

    from hsap_hf.cli.terminal import console

    ulysses_size = shown["ulysses_size"]
    model.kv_heads_per_rank(ulysses_size)  # refuses sizes that do not divide the heads before anything is printed
    load = plan.load(slots_per_node(ulysses_size, machine))
    table = Table(
        title=f"{len(plan.lengths):,} documents, {sum(plan.lengths):,} tokens; {model.name} on {machine.name}",
        title_justify="left",
    )
    for column in ("slot", "pieces", "tokens", "work", "fetched", "sent"):
        table.add_column(column, justify="right")
    traffic = load.traffic
    for slot, (tokens, work) in enumerate(zip(load.tokens, load.work, strict=True)):
        numbers = (slot, len(plan.slots[slot]), tokens, work, traffic.fetched[slot], traffic.sent[slot])
        table.add_row(*(f"{number:,}" for number in numbers))
    page = console()
    page.print(table)
    lines = [_level(shown), *_bytes(plan, load.traffic.fetched, ulysses_size, model)]
    lines += [_predicted(load, model, machine, plan.context_size * ulysses_size, ulysses_size)]
    lines += _advice(plan, ulysses_size, model, machine)
    page.print(escape("\n".join([*lines, f"planned in {shown['plan_milliseconds']:.2f} ms"])), highlight=False)


def _level(shown: dict[str, Any]) -> str:
    return (
        f"work imbalance {shown['work_imbalance']:.4f}, token imbalance {shown['token_imbalance']:.4f} (max / mean); "
        f"{shown['cut_documents']} documents cut"
    )


def _bytes(plan: Plan, fetched: Any, ulysses_size: int, model: Model) -> list[str]:
    """What a rank receives in one layer's forward, in MiB, here and with the usual ways to share a pack."""
    total, ranks = sum(plan.lengths), plan.context_size * ulysses_size
    slot_tokens = total / plan.context_size
    size = key_bytes(model, ulysses_size)
    trade = ulysses_bytes(slot_tokens, ulysses_size, model)
    mean, most = (keys * size + trade for keys in (sum(fetched) / plan.context_size, max(fetched)))
    ring = total * (ranks - 1) / ranks * key_bytes(model)
    if model.num_query_heads % ranks:
        ulysses = f"Ulysses alone impossible ({ranks} does not divide {model.num_query_heads} heads)"
    else:
        ulysses = f"Ulysses alone {ulysses_bytes(total, ranks, model) / 2**20:,.1f}"
    return [
        f"a rank receives in a layer's forward: {mean / 2**20:,.1f} MiB on average, {most / 2**20:,.1f} at most; "
        f"ring or all-gather {ring / 2**20:,.1f}, {ulysses}"
    ]


def _predicted(load: Any, model: Model, machine: Machine, num_ranks: int, ulysses_size: int) -> str:
    seconds = layer_seconds(load, model, machine, ulysses_size)
    ideal = ideal_seconds(load.tokens, load.work, model, machine) / ulysses_size
    step = step_seconds(load, model, machine, ulysses_size)
    memory = memory_bytes(load, model, num_ranks, ulysses_size)
    over = "" if memory <= machine.memory_bytes else f", more than its {machine.memory_bytes / 1e9:.0f}"
    efficiency = ideal / seconds if seconds else 1.0
    return (
        f"predicted: layer {1e3 * seconds:,.2f} ms ({efficiency:.3f} of ideal), step {1e3 * step:,.1f} ms, "
        f"{memory / 1e9:,.1f} GB a rank{over} (FSDP2 over {num_ranks} ranks, Adam, activation checkpointing, whole "
        f"logits)"
    )


def _advice(plan: Plan, ulysses_size: int, model: Model, machine: Machine) -> list[str]:
    ranks = plan.context_size * ulysses_size
    choices = recommend(plan.lengths, ranks, model, machine)
    best, *others = choices
    lines = [
        f"recommended for {ranks} ranks: --context-size {best.context_size} --ulysses-size {best.ulysses_size}, "
        f"{1e3 * best.layer_seconds:,.2f} ms a layer: {best.reason}"
    ]
    lines += [
        f"  {other.context_size} x {other.ulysses_size}: {1e3 * other.layer_seconds:,.2f} ms: {other.reason}"
        for other in others
    ]
    refused = [u for u in (2, 4, 8) if ranks % u == 0 and model.num_query_heads % u]
    if refused:
        sizes = " and ".join(map(str, refused))
        lines.append(f"  ulysses_size {sizes}: impossible, {model.num_query_heads} query heads")
    return lines
