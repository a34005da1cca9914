"""What the commands share besides their options: the consoles, what is printed often, and how a mistake is told."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from chainwright import tasks
from chainwright._errors import ChainwrightError, ChainwrightWarning
from chainwright.studies import Watch

if TYPE_CHECKING:
    from chainwright.evaluation.accuracy import Accuracy
    from chainwright.models import LoadedModel
    from chainwright.repair.base import Repair
    from chainwright.studies import Study

out = Console()
err = Console(stderr=True)

Command = TypeVar("Command", bound=Callable[..., None])


def clear_errors(command: Command) -> Command:
    """Print a user's mistake as one sentence with exit code 2, and an interruption as one with 130."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            with _plain_warnings():
                command(*args, **kwargs)
        except ChainwrightError as error:
            err.print(f"[bold red]error:[/] {plain(str(error))}", highlight=False, soft_wrap=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            err.print(
                "Interrupted. What was finished with --out is on disk; the same command (train: with --resume) "
                "goes on from there.",
                soft_wrap=True,
            )
            raise typer.Exit(130) from error

    return run  # type: ignore[return-value]


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print our own warnings as one sentence; leave those of libraries as they are."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
            if issubclass(category, ChainwrightWarning):
                err.print(f"[bold yellow]warning:[/] {plain(str(message))}", highlight=False, soft_wrap=True)
            else:
                others(message, category, *rest, **named)

        warnings.showwarning = show
        yield


def plain(text: str) -> str:
    return text.replace("[", r"\[")


class Lines(Watch):
    """Prints a line for each unit of a study."""

    def finished(self, title: str, seconds: float, skipped: str | None, left: float | None) -> None:
        rest = "" if left is None else f", about {left:.0f} s left"
        err.print(f"{title}: {skipped or f'{seconds:.1f} s'}{rest}", markup=False, highlight=False, soft_wrap=True)


def print_findings(study: Study) -> None:
    """Write tables and report of a finished study into its folder, print the tables, and say where both are."""
    from chainwright.report.study import TABLES, write_study_report, write_tables

    for line in write_tables(study):
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    path = write_study_report(study.folder)
    out.print(f"Tables: {study.folder / TABLES}\nReport: {path}", soft_wrap=True, highlight=False)


def load(name: str, device: str | None, dtype: str | None, revision: str | None, remote_code: bool) -> LoadedModel:
    from chainwright.models import load_model

    return load_model(name, device=device, dtype=dtype, revision=revision, trust_remote_code=remote_code)


def load_repair(name: str | None) -> Repair | None:
    from chainwright.repair.base import Repair

    return None if name is None else Repair.from_pretrained(name)


def print_cost(repair: Repair | None) -> None:
    if repair is not None:
        out.print(f"Repair: {repair.cost.summary()}", highlight=False, soft_wrap=True)


def print_accuracy(accuracy: Accuracy) -> None:
    columns = ("task", "hops", "n", "answers right", "95% interval", "chains right", "95% interval")
    table = Table(*columns, title="Accuracy")
    for row in accuracy.rows:
        table.add_row(
            tasks.title(row["task"]) if row["task"] in tasks.known() else row["task"],
            "-" if row["hops"] is None else str(row["hops"]),
            str(row["n"]),
            f"{row['accuracy']:.2f}",
            f"{row['low']:.2f}-{row['high']:.2f}",
            "-" if row["exact"] is None else f"{row['exact']:.2f}",
            "-" if row["exact"] is None else f"{row['exact_low']:.2f}-{row['exact_high']:.2f}",
        )
    out.print(table)
