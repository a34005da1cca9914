"""The command `study show`."""

from __future__ import annotations

from chainwright._registry import register
from chainwright.cli._options import Folder
from chainwright.cli._studies import print_study


@register("command", "study.show")
def show(folder: Folder) -> None:
    """Show what a study found: its summary, accuracy, findings and files."""
    print_study(folder)
