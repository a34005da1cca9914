"""The progress of a study as lines, one per unit."""

from __future__ import annotations

from chainwright.cli._shared import err
from chainwright.studies import Watch


class Lines(Watch):
    """Prints a line for each finished unit of a study."""

    def finished(self, title: str, seconds: float, skipped: str | None, left: float | None) -> None:
        """Print the unit's title with its seconds, or why it was skipped, and an estimate of what is left."""
        rest = "" if left is None else f", about {left:.0f} s left"
        err.print(f"{title}: {skipped or f'{seconds:.1f} s'}{rest}", markup=False, highlight=False, soft_wrap=True)
