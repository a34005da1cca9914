"""The `chainwright` command: reads arguments, calls the package, prints. No logic of its own.

Exit codes: 0 done, 2 bad input (one sentence says what to do), 130 interrupted.
"""

from __future__ import annotations

import typer

from chainwright.cli import (
    back,
    comparing,
    decoding,
    diagnosing,
    fitting,
    flowing,
    iterating,
    looking,
    reproducing,
    stepping,
    studying,
    training,
)

app = typer.Typer(
    name="chainwright",
    help="Find out why an open language model's chain of thought breaks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(looking.models)
app.command(name="tasks")(looking.tasks_command)
app.command()(decoding.generate)
app.command()(decoding.evaluate)
app.command()(comparing.compare)
app.command()(diagnosing.diagnose)
app.command()(diagnosing.report)
app.command()(diagnosing.demo)
app.command()(flowing.flow)

study_app = typer.Typer(help="Run, follow and compare studies.", no_args_is_help=True)
study_app.command()(studying.run)
study_app.command()(studying.status)
study_app.command()(studying.show)
study_app.command()(studying.diff)
app.add_typer(study_app, name="study")

train_app = typer.Typer(help="Train the small models that come with Chainwright.", no_args_is_help=True)
train_app.command()(training.reasoner)
train_app.command()(training.iteration)
train_app.command()(training.world)
train_app.command()(training.arithmetic)
train_app.command()(training.compass)
app.add_typer(train_app, name="train")

fit_app = typer.Typer(help="Fit repairs.", no_args_is_help=True)
fit_app.command()(fitting.tcr)
fit_app.command()(fitting.back_attention)
app.add_typer(fit_app, name="fit")


@fit_app.callback()
def _fit() -> None:
    """Fit repairs."""


reproduce_app = typer.Typer(help="Reproduce the experiments of a paper.", no_args_is_help=True)
reproduce_app.command()(iterating.iteration_heads)
reproduce_app.command()(back.back_attention)
reproduce_app.command()(reproducing.tcr)
reproduce_app.command()(stepping.stepflow)
app.add_typer(reproduce_app, name="reproduce")


def main() -> None:
    """Run the command line."""
    app()
