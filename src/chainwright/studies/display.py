"""The progress of a study on the error stream: two bars on a terminal, and one line per finished unit."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console

from chainwright._progress import progress_rows
from chainwright.studies import timing
from chainwright.studies.plan import Watch


class Display(Watch):
    """Shows how many units are done, the time left and how far the current unit is; used in a `with` block."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        # no estimate from the speed so far: units differ too much, and `finished` is given a better one
        self._bars = progress_rows(self._console, remaining=False)
        self._all = self._bars.add_task("units", total=None, note="")
        self._unit = self._bars.add_task("", total=None, visible=False, note="")
        self._n_done, self._n_units = 0, 0

    def __enter__(self) -> Display:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def listed(self, n_done: int, n_units: int) -> None:
        """Show how many units there are, and that some were finished before."""
        if n_done > self._n_done:
            self._say(f"{n_done} of {n_units} units were finished before")
        self._n_done, self._n_units = n_done, n_units
        self._bars.update(self._all, completed=n_done, total=n_units)

    def started(self, title: str) -> None:
        """Start the bar of a unit."""
        self._bars.reset(self._unit, total=None, description=title, visible=True)

    def ticked(self, done: int, total: int) -> None:
        """Move the bar of the current unit."""
        self._bars.update(self._unit, completed=done, total=total)

    def finished(self, title: str, seconds: float, skipped: str | None, left: float | None) -> None:
        """Print a line for the unit, and show the time left."""
        self._n_done += 1
        rest = "" if left is None or self._n_done == self._n_units else f", about {timing.words(left)} left"
        what = timing.words(seconds) if skipped is None else f"skipped: {skipped}"
        self._say(f"[{self._n_done}/{self._n_units}] {title} ({what}{rest})")
        self._bars.update(self._all, completed=self._n_done, note=rest.removeprefix(", "))

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
