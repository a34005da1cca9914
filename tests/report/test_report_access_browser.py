"""The report for every reader: axe-core finds nothing, traces can be searched, and paper cuts nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from browser import CHROMIUM, Page, browser
from report_examples import full, make_diagnosis, make_roles, page_of, with_findings

from chainwright import Finding, compare, evaluate, knockout_effects
from chainwright._tables import Tables
from chainwright.diagnose.flow.facts import FactAnswers
from chainwright.studies.diagnosis.run import Diagnosis
from families import random_ids, tiny

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]
AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
_RUN_AXE = """axe.run().then((found) => JSON.stringify(found.violations.map(
  (one) => `${one.id}: ${one.help}: ${one.nodes.slice(0, 4).map((node) => node.html.slice(0, 200)).join(" | ")}`)))"""
_CUT = """[...document.querySelectorAll("main *")].filter((e) => {
  const style = getComputedStyle(e);
  const isCut = style.overflowY !== "visible" && e.scrollHeight > e.clientHeight + 2;
  return e.clientHeight && e.id !== "head-status" && isCut && !e.closest("svg, .js-plotly-plot, .plot");
}).map((e) => e.outerHTML.slice(0, 100))"""


@pytest.fixture(scope="module")
def diagnosis() -> Diagnosis:
    made = full(make_diagnosis({"parity": (2, 4), "objc": (3, 5)}))
    ways = {"model alone": made.traces, "again": made.traces}
    return with_findings(made, compare(ways))


@pytest.fixture(scope="module")
def path(diagnosis: Diagnosis, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(page_of(diagnosis), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def page(running: Page) -> Iterator[Page]:
    running.complaints.clear()
    yield running
    running.ask("Emulation.setEmulatedMedia", media="")
    assert running.complaints == []


def kinds(diagnosis: Diagnosis) -> dict[str, Sequence[Finding]]:
    """Return findings whose reports look differently."""
    traces = diagnosis.traces
    table = Tables(title="A table", tables={"rows": [{"name": "a", "n": 1}], "none": []})
    facts = [{"relation": "capital", "hops": 1, "outcome": "e2", "are_known": True}]
    effects = knockout_effects(tiny("llama"), random_ids(2, 5), torch.tensor([1, 2]))
    return {
        "diagnosis": diagnosis,
        "comparison": [compare({"a": traces, "b": traces})],
        "others": [table, effects, FactAnswers(answers=facts), make_roles(2, 2), evaluate(traces)],
    }


@pytest.mark.skipif(not AXE.exists(), reason="needs axe-core; `make test-browser` installs it")
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("kind", ["diagnosis", "comparison", "others"])
def test_axe_finds_nothing(page: Page, diagnosis: Diagnosis, tmp_path: Path, kind: str, width: int, theme: str) -> None:
    file = tmp_path / "report.html"
    file.write_text(page_of(kinds(diagnosis)[kind]), encoding="utf-8")
    page.open(file, width, theme)
    page.run(f"{AXE.read_text(encoding='utf-8')};1")
    assert json.loads(page.run(_RUN_AXE)) == []
    if kind == "diagnosis":
        page.click("#search-open")
        page.type("a")
        page.press("Enter")
        assert json.loads(page.run(_RUN_AXE)) == []


def test_search_counts_and_jumps_by_keys_alone(page: Page, path: Path, diagnosis: Diagnosis) -> None:
    texts = ["".join(texts).lower() for texts in diagnosis.token_strs]
    n, held = sum(text.count("rosa") for text in texts), sum("rosa" in text for text in texts)
    page.open(path)
    page.press("/")
    assert page.run("document.activeElement.id") == "search-for"
    page.type("ROSA")
    said = page.wait("document.getElementById('search-status').textContent")
    assert said == f"{n} matches in {held} traces"
    seen = []
    for k in range(n):
        page.press("Enter")
        assert page.text("#search-status").startswith(f"{k + 1} of {n} ")
        found = page.run("[...document.querySelectorAll('.t.found')].map((e) => e.textContent).join('')")
        assert "rosa" in found.lower()
        seen.append(
            (
                page.run("document.getElementById('trace').value"),
                page.run("document.querySelector('.t.found').dataset.at"),
            )
        )
        box = json.loads(page.run("JSON.stringify(document.querySelector('.t.found').getBoundingClientRect())"))
        top = page.run("document.querySelector('.top').getBoundingClientRect().bottom")
        assert top <= box["top"] and box["bottom"] < 900
    assert len(set(seen)) == n, "each match once"
    page.press("Enter")
    assert page.text("#search-status").startswith(f"1 of {n} "), "from the last to the first"
    page.click("#search-previous")
    assert page.text("#search-status").startswith(f"{n} of {n} ")
    page.focus("#search-for")
    page.press("Escape")
    assert page.run("document.getElementById('search').hidden")
    assert page.run("document.activeElement.id") == "search-open"
    assert page.run("document.querySelectorAll('.t.hit, .t.found').length") == 0


def test_search_says_when_there_is_nothing(page: Page, path: Path) -> None:
    page.open(path, 400)
    page.click("#search-open")
    page.type("<b>never</b>")
    assert page.wait("document.getElementById('search-status').textContent") == "Not found"
    assert page.run("document.getElementById('search-next').disabled")
    assert page.run("document.documentElement.scrollWidth") <= 400
    page.press("Enter")
    assert page.text("#search-status") == "Not found"


def test_a_report_without_traces_has_no_search(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(page_of([Tables(title="A", tables={"rows": [{"a": 1}]})]), encoding="utf-8")
    page.open(file)
    page.press("/")
    assert page.run("document.getElementById('search').hidden && document.getElementById('search-open').hidden")


def test_paper_has_no_controls_and_cuts_nothing(page: Page, path: Path, tmp_path: Path) -> None:
    page.open(path, 1280, "dark")
    width = "document.querySelector('[data-figure=accuracy] .plot').clientWidth"
    before = page.run(width)
    page.print_media(True)
    shown = "[...document.querySelectorAll('.top, .tools, .chooser, button')].filter((e) => e.getClientRects().length)"
    heads = ".roles button, .pair button.head"
    assert page.run(f"{shown}.filter((e) => !e.matches('{heads}')).length") == 0
    assert page.run(f"[...document.querySelectorAll('{heads}')].some((e) => e.getClientRects().length)"), (
        "names of heads"
    )
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.run("[...document.querySelectorAll('details')].every((e) => e.open)")
    assert page.run(width) <= 680
    assert page.run(_CUT) == []
    page.print_media(False)
    assert page.run(width) == before
    assert not page.run("[...document.querySelectorAll('details')].every((e) => e.open)")
    page.print_to(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
