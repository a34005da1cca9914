"""Run the notebooks and store what they show: python website/run_notebooks.py [NAME ...].

Figures are stored as Plotly's JSON, which notebooks and the site draw, and not with a copy of its script each.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parent.parent / "docs" / "notebooks"


def run(notebook: Path) -> Any:
    """Return a notebook with the outputs of a fresh run; an error in a cell is raised."""
    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype"
    cells = nbformat.read(notebook, as_version=4)
    NotebookClient(
        cells, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOKS)}}
    ).execute()
    for cell in cells.cells:
        cell.metadata.pop("execution", None)
        if "outputs" in cell:  # warnings and progress name this machine
            cell.outputs = [o for o in cell.outputs if not (o.output_type == "stream" and o.name == "stderr")]
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if len(data) > 1:
                data.pop("text/plain", None)  # what is shown is the figure, or the table
    return cells


def printed(notebook: Any) -> list[str]:
    """Return what each code cell printed, but for cells tagged "varies"."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [
        "".join(o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stdout")
        for cell in code
        if "varies" not in cell.metadata.get("tags", ())
    ]


if __name__ == "__main__":
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        if len(sys.argv) == 1 or any(name in path.name for name in sys.argv[1:]):
            nbformat.write(run(path), path)
            print(f"Ran {path.name}, {path.stat().st_size // 1024} KiB")
