"""`hsap bench longest`: the longest document that trains, found by training ever longer ones."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer

from hsap_hf.cli.bench.train import TOO_LARGE_NOTE, AsJson, ModelOption, RecipeAndOverrides, Run, read_run
from hsap_hf.errors import ConfigError, HsapError

_WARMUP_TOKENS = 4096
_BY_LINE = 6
"""Lengths after which a line that did not lead there is given up."""


def longest(
    arguments: RecipeAndOverrides = None,
    nproc: Annotated[
        list[int] | None, typer.Option("--nproc", min=1, help="Ranks that share it; several times. Default: 1 and 2.")
    ] = None,
    model: ModelOption = None,
    start: Annotated[int, typer.Option(min=1, help="Tokens of the first document tried.")] = 8192,
    stop: Annotated[int, typer.Option(help="Tokens of the longest document tried.")] = 8_388_608,
    precision: Annotated[float, typer.Option(help="How far below the limit is near enough: a fraction.")] = 0.03,
    as_json: AsJson = False,
) -> None:
    """The longest single document that trains with this recipe, on so many ranks: Trainer steps until memory ends.

    Every length is tried in ranks of its own, so that one that does not fit spoils nothing; two that fit tell where
    memory will end. On CPUs memory has no sharp end: there, set hsap.max_tokens_per_rank.
    """
    if not 0 < precision < 1 or stop < start:
        raise ConfigError(f"--precision {precision}: needs more than 0, less than 1; --stop {stop}: at least --start.")
    rows: list[dict[str, Any]] = []
    tokens_a_rank, slope = 0, math.nan
    for ranks in nproc or [1, 2]:
        run = read_run(arguments, model, ranks, slow_link=False)
        tried: dict[int, dict[str, Any]] = {}
        search = partial(find_longest, partial(_share, run, tried), precision=precision, slope=slope / ranks)
        near = min(stop, int(tokens_a_rank * ranks * (1 - 0.4 * precision)))
        tokens = (search(near, stop) or search(start, near - 1)) if near > start else search(start, stop)
        if tokens is None:
            raise ConfigError(f"{ranks} ranks: a document of {start:,} tokens does not fit. Give a smaller --start.")
        rows.append({"ranks": ranks, "tokens": tokens, "tried": sorted(tried), **_kept(tried[tokens])})
        tokens_a_rank = tokens // ranks
        slope = ranks * _slope({length: _share_of(row) for length, row in tried.items()})
    for row in rows:
        row["of_first"] = row["tokens"] / rows[0]["tokens"]
    typer.echo(json.dumps(rows)) if as_json else _table(rows)


def find_longest(
    use: Callable[[int], float | None], start: int, stop: int, precision: float, slope: float = math.nan
) -> int | None:
    """A length up to `stop` that fits, within `precision` of one that does not; None where `start` does not fit.

    use: the share of the memory that a length takes, None where it does not fit. It grows along a line, so two lengths
    tell where to look, or one and a `slope` known from elsewhere; NaN where it is not known, and then lengths are
    doubled and halved.
    """
    shares: dict[int, float | None] = {}
    length, good, bad = start, 0, stop + 1
    while True:
        share = shares[length] = use(length)
        if share is None:
            bad = length
            if bad == start:
                return None
        else:
            good = length
        if bad - good <= max(1, precision * good):
            return good
        length = _next_length(shares, slope, good, bad, stop, precision)


def _next_length(
    shares: dict[int, float | None], slope: float, good: int, bad: int, stop: int, precision: float
) -> int:
    """Twice the last, then the middle; where shares lie on a line, a little below and then above the end of memory."""
    halving = min(2 * good, stop) if bad > stop else (good + bad) // 2
    if len(shares) > _BY_LINE:
        return halving
    own = _slope(shares)
    limit = good + (1 - (shares[good] or math.nan)) / (slope if math.isnan(own) else own)
    for guess in (limit * (1 - 0.4 * precision), limit * (1 + 0.4 * precision)):
        if guess > good * (1 + 0.1 * precision) and good < int(guess) < bad:
            return int(guess)
    return halving


def _slope(shares: dict[int, float | None]) -> float:
    """Share of the memory a token takes, by the two longest that fit; NaN where that is not known, or not above 0."""
    known = sorted((length, share) for length, share in shares.items() if share is not None)
    if len(known) < 2:
        return math.nan
    (one, share), (other, more) = known[-2:]
    return (more - share) / (other - one) if more > share else math.nan


def _share(run: Run, tried: dict[int, dict[str, Any]], length: int) -> float | None:
    """Train a step of one document of so many tokens, after one of a short one that makes the optimizer's state."""
    warmup = {"warmup": 1, "warmup_lengths": [min(length, _WARMUP_TOKENS)]}
    row = tried[length] = run.measure((run.ranks, 1), [length], steps=1, profile=False, **warmup)
    if row["note"] not in (None, TOO_LARGE_NOTE):
        raise HsapError(f"{run.ranks} ranks, {length:,} tokens: {row['note']}.")
    figures = row["note"] or f"{row['step_ms']:,.1f} ms a step" + _said_memory(row)
    typer.echo(f"{run.ranks} ranks, {length:,} tokens: {figures}", err=True)
    return _share_of(row)


def _share_of(row: dict[str, Any]) -> float | None:
    """The share of the memory that a row's step took; None where it did not fit, NaN where it is not known."""
    if row["note"] is not None:
        return None
    return math.nan if row["peak_gib"] is None else row["peak_gib"] / row["room_gib"]


def _said_memory(row: dict[str, Any]) -> str:
    return "" if row["peak_gib"] is None else f", {row['peak_gib']:.1f} of {row['room_gib']:.1f} GiB"


def _kept(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("device", "dtype", "weights", "peak_gib", "step_ms", "tokens_per_second")}


def _table(rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.table import Table

    from hsap_hf.cli.terminal import console

    first = rows[0]
    title = f"longest document on {first['device']}, {first['dtype']}, {first['weights']:,} weights"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("ranks", "tokens", "of the first", "GiB", "ms a step", "tokens/s"):
        table.add_column(column, justify="right")
    for row in rows:
        gib = "-" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}"
        speeds = f"{row['step_ms']:,.1f}", f"{row['tokens_per_second']:,.0f}"
        table.add_row(str(row["ranks"]), f"{row['tokens']:,}", f"{row['of_first']:.2f}", gib, *speeds)
    console().print(table)
