"""The notebooks run from top to bottom, print what is stored with them, and stay small."""

from __future__ import annotations

from pathlib import Path

import pytest

from chainwright.models.fetch import local_file

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
notebook_pages = pytest.importorskip("notebook_pages")
run_notebooks = pytest.importorskip("run_notebooks")

NOTEBOOKS = notebook_pages.files()
_REAL = "2-a-real-language-model.ipynb"


def _marks(notebook: Path) -> list[pytest.MarkDecorator]:
    if notebook.name != _REAL:
        return []
    return [pytest.mark.real, pytest.mark.skipif(local_file("smollm2") is None, reason="run make smollm2")]


@pytest.mark.parametrize("notebook", [pytest.param(n, id=n.stem, marks=_marks(n)) for n in NOTEBOOKS])
def test_it_runs_and_prints_what_is_stored(notebook: Path) -> None:
    stored = nbformat.read(notebook, as_version=4)
    again = run_notebooks.run(notebook)
    assert run_notebooks.printed(again) == run_notebooks.printed(stored), "run python website/run_notebooks.py"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_its_outputs_are_there_small_and_need_no_network(notebook: Path) -> None:
    text = notebook.read_text(encoding="utf-8")
    assert len(text) < 200_000
    cells = [cell for cell in nbformat.reads(text, as_version=4).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells) and any(cell.outputs for cell in cells)
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
    assert "/work/" not in text and "/home/" not in text and "<script" not in text


def test_a_page_shows_text_code_and_what_came_out() -> None:
    (first,) = (n for n in NOTEBOOKS if n.name.startswith("1-"))
    page = notebook_pages.page(first)
    assert page.startswith("# Find why a chain breaks\n") and "````python\n" in page and "````text\n" in page
    assert '<div class="figure"><script type="application/json">' in page and '<div class="output">' in page
    assert "http://" not in page and "https://" not in page


def test_there_is_one_for_each_way_in() -> None:
    index = (notebook_pages.NOTEBOOKS / "index.md").read_text(encoding="utf-8")
    assert len(NOTEBOOKS) == 4 and all(f"({notebook.name})" in index for notebook in NOTEBOOKS)
