"""The command line: `hsap train | plan | verify | doctor | bench | launch`. 0 good, 1 failed, 2 bad configuration."""

from __future__ import annotations

import sys

import typer

from hsap_hf.cli import bench, doctor, plan, train
from hsap_hf.errors import ConfigError, HsapError, PlanError

app = typer.Typer(
    help="Train Hugging Face models on packs of long and short documents, exactly, over many ranks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("train")(train.train)
app.command("verify")(train.verify)
app.command(
    "launch",
    options_metavar="--config_file FILE SCRIPT ...",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(train.launch)
app.command("plan")(plan.plan)
app.command("doctor")(doctor.doctor)
app.add_typer(bench.app, name="bench")


def main() -> None:
    """Run the command; an error of ours is one text on stderr, without a traceback."""
    try:
        app()
    except HsapError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2 if isinstance(error, ConfigError | PlanError) else 1)
