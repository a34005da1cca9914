"""What commands share besides their options: the consoles, tables and lines that several print, and how errors end."""

from __future__ import annotations

import functools
import gc
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from chainwright._errors import ChainwrightError, ChainwrightWarning

if TYPE_CHECKING:
    from chainwright.evaluation.accuracy import Accuracy
    from chainwright.repair.base import Repair
    from chainwright.repair.run import Cost

out = Console()
err = Console(stderr=True)

Command = TypeVar("Command", bound=Callable[..., None])


def clear_errors(command: Command) -> Command:
    """Return a command that ends on a user's mistake with one sentence and exit code 2, on an interruption with 130."""

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
                "Interrupted. Finished work under --out is saved; run the same command again to resume "
                "(train: add --resume).",
                soft_wrap=True,
            )
            raise typer.Exit(130) from error

    return run  # type: ignore[return-value]


@contextmanager
def uncollected() -> Iterator[None]:
    """Import without collecting garbage: Transformers makes a million objects that stay, and looking takes a second."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print warnings of this package as one sentence; leave those of libraries as they are."""
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
    """Return a text that rich prints as it is, its square brackets included."""
    return text.replace("[", r"\[")


def say(text: str) -> None:
    """Print a text as it is: no markup, no colours, and lines as long as they are."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def print_table(title: str | None, rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows as a table whose columns are the keys of the first one; nothing is printed without rows."""
    if not rows:
        return
    table = Table(*(plain(name) for name in rows[0]), title=title and plain(title))
    for row in rows:
        table.add_row(*(plain(str(row.get(name, ""))) for name in rows[0]))
    out.print(table)


def load_repair(name: str | None) -> Repair | None:
    from chainwright.repair.base import Repair

    return None if name is None else Repair.from_pretrained(name)


def load_repairs(names: Sequence[str]) -> Repair | None:
    """Return the repairs to decode with, several as one that decodes with all of them."""
    from chainwright.repair.composed import Composed

    loaded = [repair for name in names if (repair := load_repair(name)) is not None]
    return Composed(loaded) if len(loaded) > 1 else next(iter(loaded), None)


def print_cost(cost: Cost | None) -> None:
    if cost is not None:
        say(f"Repair: {cost.summary()}")


def print_accuracy(accuracy: Accuracy) -> None:
    from chainwright import tasks

    columns = ["task", "hops", "n", "answers right", "95% interval"]
    chains = ["chains right", "95% interval"] if any(row["exact"] is not None for row in accuracy.rows) else []
    apart = [name for name in ("n_unread", "n_cut_answers") if any(row.get(name) for row in accuracy.rows)]
    names = {"n_unread": "not read", "n_cut_answers": "cut"}
    table = Table(*columns, *chains, *(names[name] for name in apart), title="Accuracy")
    for row in accuracy.rows:
        exact = "-" if row["exact"] is None else f"{row['exact']:.2f}"
        interval = "-" if row["exact"] is None else f"{row['exact_low']:.2f}-{row['exact_high']:.2f}"
        table.add_row(
            plain(tasks.title(row["task"]) if row["task"] in tasks.known() else row["task"]),
            str(row["hops"] or "-"),
            str(row["n"]),
            f"{row['accuracy']:.2f}",
            f"{row['low']:.2f}-{row['high']:.2f}",
            *((exact, interval) if chains else ()),
            *(str(row.get(name, 0)) for name in apart),
        )
    out.print(table)
    _print_labels(accuracy, apart, names)
    if accuracy.unread:
        rules = dict.fromkeys(row["rule"] for row in accuracy.unread)
        say(f"An answer that is not read counts neither as right nor as wrong. What was tried: {'; '.join(rules)}.")


def _print_labels(accuracy: Accuracy, apart: Sequence[str], names: Mapping[str, str]) -> None:
    """Print accuracy by the labels of the problems, a table per set and label."""
    for task, label in dict.fromkeys((row["task"], row["label"]) for row in accuracy.by_label):
        rows = [row for row in accuracy.by_label if (row["task"], row["label"]) == (task, label)]
        print_table(
            f"{task} by {label}",
            [
                {
                    label: row["value"],
                    "n": row["n"],
                    "answers right": f"{row['accuracy']:.2f}",
                    "95% interval": f"{row['low']:.2f}-{row['high']:.2f}",
                    **{names[name]: row[name] for name in apart},
                }
                for row in rows
            ],
        )
