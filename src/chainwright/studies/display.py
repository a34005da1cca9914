"""How a run gets on, on the error stream: two bars where somebody can watch them, otherwise a line a unit."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from chainwright.studies import timing
from chainwright.studies.plan import Watch


class Display(Watch):
    """Shows units done and time left, and how far the present unit is; to be used in a `with` block."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
        )
        self._bars = Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        self._all = self._bars.add_task("units", total=None, left="")
        self._unit = self._bars.add_task("", total=None, visible=False, left="")
        self._n_done, self._n_units = 0, 0

    def __enter__(self) -> Display:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def listed(self, n_done: int, n_units: int) -> None:
        """Show how many units there are."""
        if n_done > self._n_done:
            self._say(f"{n_done} of {n_units} units are finished already")
        self._n_done, self._n_units = n_done, n_units
        self._bars.update(self._all, completed=n_done, total=n_units)

    def started(self, title: str) -> None:
        """Show a new unit."""
        self._bars.reset(self._unit, total=None, description=title, visible=True)

    def ticked(self, done: int, total: int) -> None:
        """Show how far it is."""
        self._bars.update(self._unit, completed=done, total=total)

    def finished(self, title: str, seconds: float, skipped: str | None, left: float | None) -> None:
        """Write a line for it, and show the time left."""
        self._n_done += 1
        rest = "" if left is None or self._n_done == self._n_units else f", about {timing.words(left)} left"
        what = timing.words(seconds) if skipped is None else f"skipped: {skipped}"
        self._say(f"[{self._n_done}/{self._n_units}] {title} ({what}{rest})")
        self._bars.update(self._all, completed=self._n_done, left=rest.removeprefix(", "))

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
