"""`hsap bench plan`: our placement beside stand-ins for others, predicted; planning itself is timed."""

from __future__ import annotations

import json
import statistics
import time
from typing import Annotated, Any

import typer

from hsap_hf.cli.lengths import read_packs
from hsap_hf.cli.shapes import read_machine, read_model
from hsap_hf.planner import compile_plan, fetches, sends
from hsap_hf.planner.recommend import recommend
from hsap_hf.planner.simulate import simulate

_COLUMNS = (
    ("work_imbalance", "work max/mean", ".2f"),
    ("token_imbalance", "tokens max/mean", ".2f"),
    ("fetched", "fetched", ".2f"),
    ("fetched_max", "fetched max", ".2f"),
    ("sent_max", "sent max", ".2f"),
    ("between_nodes", "between nodes", ".2f"),
    ("layer_ms", "layer ms", ",.2f"),
    ("efficiency", "efficiency", ".3f"),
    ("plan_ms", "plan ms", ".2f"),
)
_REPEATS = 9


def plan(
    lengths: Annotated[str, typer.Option(help="Document lengths: a list, a JSON file, or a file of packs.")],
    pack: Annotated[list[str] | None, typer.Option(help="Pack of the file; several times. Default: all.")] = None,
    context_size: Annotated[
        list[int] | None, typer.Option("--context-size", "-c", help="Slots; several times.")
    ] = None,
    copies: Annotated[int, typer.Option(min=1, help="Take every pack so many times, as one larger pack.")] = 1,
    model: Annotated[str, typer.Option(help="Shape to predict for: a name, a folder or a hub name.")] = "llama-3-8b",
    machine: Annotated[str, typer.Option(help="Machine to predict for: a name, or a file of the doctor's.")] = "h100",
    ranks_per_node: Annotated[int | None, typer.Option(min=1, help="Default: the machine's; 1: network only.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list instead of a table.")] = False,
) -> None:
    """Balance, traffic and predicted layer time (forward and backward) of placements. Predicted, not measured.

    Fetched and sent keys are in units of a slot's mean tokens, efficiency is the time with equal work and free
    exchange over the predicted time. Placements are compared as if all attention hid their keys. "hsap_hf runs 8 x 4"
    is what our engine makes of the recommended split, 8 slots of 4 Ulysses ranks: only attention that needs none of
    the keys hides them there. "plan ms" is measured: processor time of a plan, its fingerprint and one slot's fetches
    and sends, the median of 9.
    """
    shape, target = read_model(model), read_machine(machine)
    packs = {name: found * copies for name, found in read_packs(lengths, pack).items()}
    node = target.node_ranks if ranks_per_node is None else ranks_per_node
    rows: list[dict[str, Any]] = []
    for name, documents in packs.items():
        for size in context_size or [2, 8, 32]:
            found = [
                one._asdict() | {"plan_ms": None} for one in simulate({name: documents}, [size], shape, target, node)
            ]
            found[0]["plan_ms"] = _plan_ms(documents, size, node)
            best = recommend(documents, size, shape, target)[0]
            if ranks_per_node is None:
                ideal_ms = found[0]["layer_ms"] * found[0]["efficiency"]
                ms = 1e3 * best.layer_seconds
                split = f"hsap_hf runs {best.context_size} x {best.ulysses_size}"
                found.insert(1, dict.fromkeys(found[0]) | {"pack": name, "context_size": size, "placement": split})
                found[1] |= {"layer_ms": ms, "efficiency": ideal_ms / ms}
            rows += found
    if as_json:
        typer.echo(json.dumps(rows))
    else:
        _table(rows, f"{shape.name} on {target.name}, {node} ranks a node: predicted, not measured")


def _plan_ms(lengths: list[int], context_size: int, ranks_per_node: int) -> float:
    times = []
    for turn in range(_REPEATS):
        begun = time.process_time()
        plan = compile_plan(lengths, context_size, ranks_per_node=ranks_per_node)
        fetches(plan, turn % context_size)
        sends(plan, turn % context_size)
        assert plan.fingerprint
        times.append(1e3 * (time.process_time() - begun))
    return statistics.median(times)


def _table(rows: list[dict[str, Any]], title: str) -> None:
    from rich.table import Table

    from hsap_hf.cli.terminal import console

    table = Table(title=title, title_justify="left")
    for column in ("pack", "slots", "placement", *(heading for _, heading, _ in _COLUMNS)):
        table.add_column(column, justify="left" if column in ("pack", "placement") else "right")
    for row in rows:
        figures = ("" if row[name] is None else format(row[name], form) for name, _, form in _COLUMNS)
        table.add_row(row["pack"], str(row["context_size"]), row["placement"], *figures)
    console().print(table)
