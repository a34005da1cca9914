"""Notebooks as pages: text, code, and the outputs that are stored with them; figures stay interactive.

Plotly's script is copied from the installed package, so that a page needs nothing from the network.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import plotly

NOTEBOOKS = Path(__file__).parent.parent / "docs" / "notebooks"
_PLOTLY = "application/vnd.plotly.v1+json"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def files() -> list[Path]:
    """Return the notebooks, in order."""
    return sorted(NOTEBOOKS.glob("*.ipynb"))


def plotly_script() -> str:
    """Return Plotly's script from the installed package."""
    return (Path(plotly.__file__).parent / "package_data" / "plotly.min.js").read_text(encoding="utf-8")


def page(notebook: Path) -> str:
    """Return a notebook as Markdown."""
    cells = nbformat.read(notebook, as_version=4).cells
    parts = [part for cell in cells for part in _cell(cell)]
    note = f"*This page is the notebook `docs/notebooks/{notebook.name}`, as it was run last.*"
    scripts = '<script src="../assets/plotly.min.js"></script>\n<script src="../assets/figures.js"></script>'
    title, _, rest = "\n\n".join(parts).partition("\n")
    return f"{title}\n\n{note}\n{rest}\n\n{scripts}\n"


def _cell(cell: Any) -> list[str]:
    if cell.cell_type == "markdown":
        return [cell.source]
    return [_fence("python", cell.source), *(_output(output) for output in cell.outputs)]


def _output(output: Any) -> str:
    if output.output_type == "stream":
        return _fence("text", _COLOURS.sub("", output.text))
    data = output.get("data", {})
    if _PLOTLY in data:
        figure = json.dumps(data[_PLOTLY]).replace("<", "\\u003c")
        return f'<div class="figure"><script type="application/json">{figure}</script></div>'
    if "text/html" in data:
        return f'<div class="output">\n{_one_block(data["text/html"])}\n</div>'
    return _fence("text", data.get("text/plain", ""))


def _one_block(text: str) -> str:
    """Return HTML without empty lines, at which Markdown would end the block."""
    return "\n".join(line for line in text.splitlines() if line.strip())


def _fence(language: str, text: str) -> str:
    return f"````{language}\n{text.rstrip()}\n````"
