"""Progress bars: drawn on the error stream, only if it is a terminal, and erased when the work is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


@dataclass(frozen=True)
class Bar:
    """One progress bar, as `progress_bar` yields it."""

    rows: Progress
    task: TaskID

    def advance(self, n: int = 1) -> None:
        """Count `n` more as done."""
        self.rows.advance(self.task, n)

    def move_to(self, completed: int, note: str = "") -> None:
        """Set how much is done, with a note at the end of the line, such as "loss 0.123"."""
        self.rows.update(self.task, completed=completed, note=note)


@contextmanager
def progress_bar(title: str, total: int | None, *, shown: bool = True, completed: int = 0) -> Iterator[Bar]:
    """Show one bar while the block runs.

    Args:
        title: What is done, such as "generating".
        total: How much there is to do; None if unknown.
        shown: False draws nothing, like an error stream that is no terminal.
        completed: How much of it an earlier run has done.
    """
    with progress_rows(shown=shown) as rows:
        yield Bar(rows, rows.add_task(title, total=total, completed=completed, note=""))


def progress_rows(console: Console | None = None, *, shown: bool = True, remaining: bool = True) -> Progress:
    """Return a display for several bars; each task needs the field `note`, the text at the end of its line.

    Args:
        console: Where to draw instead of the error stream.
        shown: False draws nothing.
        remaining: Whether to estimate the time left from the speed so far; otherwise only the time spent is shown.
    """
    console = console or Console(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        *([TimeRemainingColumn()] if remaining else []),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        transient=True,
        disable=not (shown and console.is_terminal),
    )
