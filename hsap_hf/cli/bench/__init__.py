"""`hsap bench`: measure on the machine at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hsap_hf.cli.bench.longest import longest
from hsap_hf.cli.bench.plan import plan
from hsap_hf.cli.bench.train import train
from hsap_hf.config import MOST_MESSAGES
from hsap_hf.errors import ConfigError

if TYPE_CHECKING:
    from hsap_hf.cli.bench.request import Request
    from hsap_hf.cli.bench.whole_pack import Shape

app = typer.Typer(help="Measure on the machine at hand, or predict.", no_args_is_help=True)
app.command("plan")(plan)
app.command("train")(train)
app.command("longest")(longest)


@app.command()
def attention(
    lengths: Annotated[
        str | None, typer.Option(help="Document lengths: a list, a JSON file, or a file of packs. Default: four mixes.")
    ] = None,
    tokens: Annotated[list[int] | None, typer.Option(help="Tokens of the four mixes; several times.")] = None,
    pack: Annotated[list[str] | None, typer.Option(help="Pack of the file; may be given several times.")] = None,
    context_size: Annotated[
        list[int] | None, typer.Option("--context-size", "-c", help="Slots; several times. Without --nproc.")
    ] = None,
    kernel: Annotated[
        str, typer.Option(help="auto, flash_attn_4, flash_attn_3, flash_attn_2, torch_flash, sdpa or dense.")
    ] = "auto",
    heads: Annotated[int, typer.Option(help="Query heads.")] = 32,
    kv_heads: Annotated[int, typer.Option(help="Key-value heads.")] = 8,
    head_dim: Annotated[int, typer.Option(help="Width of a head.")] = 128,
    repeats: Annotated[int, typer.Option(min=3, help="Timed repetitions, in three rounds; medians count.")] = 10,
    nproc: Annotated[
        int | None, typer.Option("--nproc", min=1, help="Measure with real collectives on N ranks: one a GPU, or CPUs.")
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="Context x ulysses, like 4x2; several times. Default: Nx1.")
    ] = None,
    slow_link: Annotated[bool, typer.Option("--slow-link", help="Ranks without NVLink: NCCL_P2P_DISABLE=1.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw efficiency into FILE.svg or FILE.png. With --nproc.")] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Folder for a profiler's trace of every way and rank. With --nproc.")
    ] = None,
    messages: Annotated[
        list[int] | None,
        typer.Option(min=1, max=MOST_MESSAGES, help="Messages in which keys of others come; several."),
    ] = None,
    beside_copies: Annotated[
        bool,
        typer.Option(
            "--beside-copies",
            help="Also the whole pack on each GPU beside small copies, from its neighbour or its own.",
        ),
    ] = False,
    zeros: Annotated[
        bool,
        typer.Option("--zeros", help="Times on zeros, on which a GPU draws far less power. Proves no result."),
    ] = False,
    baseline: Annotated[
        Path | None, typer.Option(help="Earlier --json output: exit 1 where a ratio of ours fell by more than 3 %.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list instead of a table.")] = False,
) -> None:
    """Attention, forward and backward, against the same kernel with the whole pack on one device, divided by the ranks.

    Without --nproc: every slot alone on this one device, its exchange taken as free; the time of its kernel calls alone
    stands beside it. It shows what cutting, copying, merging and uneven times cost. With --nproc N: on N ranks, which
    the command starts, beside other ways to spread the pack; every result is first compared with the one device's, and
    every byte with the plan. 1 where they differ.
    """
    from hsap_hf.cli.bench.request import Request, check_sizes, read_splits
    from hsap_hf.cli.bench.whole_pack import Shape

    shape = Shape(heads, kv_heads, head_dim, kernel)
    packs = _packs(lengths, pack, tokens)
    check_sizes(shape, packs)
    if nproc is None:
        _refuse_without_ranks(split, slow_link, plot, trace, messages, beside_copies, zeros, baseline)
        rows = _time_alone(packs, context_size, shape, repeats)
        typer.echo(json.dumps(rows)) if as_json else _table(rows)
        return
    before = [] if baseline is None else _earlier(baseline)
    if context_size:
        raise ConfigError("--context-size is for one device; with --nproc say --split CONTEXTxULYSSES.")
    request = Request(
        packs=packs,
        splits=read_splits(split, nproc),
        shape=shape,
        repeats=repeats,
        messages=messages or None,
        beside_copies=beside_copies,
        zeros=zeros,
        trace_folder=None if trace is None else str(trace.absolute()),
    )
    rows = _time_ranks(request, nproc, slow_link, plot)
    if as_json:
        typer.echo(json.dumps(rows))
    else:
        from hsap_hf.cli.bench.table import show_ranks

        show_ranks(rows)
    _judge(rows, before)


def _packs(lengths: str | None, names: list[str] | None, tokens: list[int] | None) -> dict[str, list[int]]:
    """The packs of a file or list, or the four mixes of these sizes."""
    from hsap_hf.cli.bench.mixes import mixes
    from hsap_hf.cli.lengths import read_packs

    if lengths is not None:
        if tokens:
            raise ConfigError("--tokens is the size of the four mixes; --lengths brings packs of its own. Give one.")
        return read_packs(lengths, names)
    found = {name: mix for size in tokens or [65_536] for name, mix in mixes(size).items()}
    unknown = [name for name in names or [] if name not in found]
    if unknown:
        raise ConfigError(f"--pack {unknown[0]} is not one of the mixes: {', '.join(found)}.")
    return {name: found[name] for name in names or found}


def _refuse_without_ranks(
    split: list[str] | None,
    slow_link: bool,
    plot: Path | None,
    trace: Path | None,
    messages: list[int] | None,
    beside_copies: bool,
    zeros: bool,
    baseline: Path | None,
) -> None:
    options = {"--split": split, "--slow-link": slow_link, "--plot": plot, "--trace": trace}
    options |= {"--messages": messages, "--beside-copies": beside_copies, "--zeros": zeros, "--baseline": baseline}
    given = [name for name, value in options.items() if value]
    if given:
        raise ConfigError(f"{', '.join(given)}: only with --nproc N, which measures on N ranks.")


def _time_alone(
    packs: dict[str, list[int]], context_size: list[int] | None, shape: Shape, repeats: int
) -> list[dict[str, Any]]:
    from hsap_hf.cli.bench.slot_times import time_slots

    return [
        {"pack": name, **time_slots(lengths, size, shape, repeats)}
        for name, lengths in packs.items()
        for size in context_size or [2, 8]
    ]


def _time_ranks(request: Request, nproc: int, slow_link: bool, plot: Path | None) -> list[dict[str, Any]]:
    from hsap_hf.cli.bench.request import measure

    if plot is None:
        return measure(request, nproc, slow_link=slow_link)
    from hsap_hf.cli.bench.picture import draw_efficiency
    from hsap_hf.cli.picture import new_figure

    new_figure(plot, 1, 1)  # what cannot be drawn is refused before an hour of measuring
    rows = measure(request, nproc, slow_link=slow_link)
    draw_efficiency(rows, plot)
    return rows


def _earlier(path: Path) -> list[dict[str, Any]]:
    from hsap_hf.cli.bench.table import terms

    try:
        rows = json.loads(path.read_text())
        return [row for row in rows if terms(row) and row["ratio"] is not None]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--baseline {path}: no output of `hsap bench attention --nproc N --json` ({error!r})."
        ) from None


def _judge(rows: list[dict[str, Any]], before: list[dict[str, Any]]) -> None:
    """Exit 1 with a sentence for everything that is wrong."""
    from hsap_hf.cli.bench.table import problems, regressions

    found = problems(rows) + regressions(rows, before)
    for sentence in found:
        typer.echo(sentence, err=True)
    if found:
        raise typer.Exit(1)


def _table(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from hsap_hf.cli.terminal import console

    first = rows[0]
    table = Table(title=f"{first['kernel']} on {first['device']}, {first['dtype']}; ms, median", title_justify="left")
    for column in ("pack", "slots", "ideal fwd", "slowest", "kernels", "ideal bwd", "slowest", "kernels", "ratio"):
        table.add_column(column, justify="left" if column == "pack" else "right")
    for row in rows:
        names = (f"{part}{way}_ms" for way in ("forward", "backward") for part in ("ideal_", "", "kernel_"))
        table.add_row(row["pack"], str(row["slots"]), *(f"{row[name]:.2f}" for name in names), f"{row['ratio']:.3f}")
    console().print(table)
