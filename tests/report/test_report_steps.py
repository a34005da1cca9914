"""The section of steps in a real browser: its slider, its map, and the way from a cell to the trace."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from browser import CHROMIUM, Page, browser
from report_examples import EVIL, make_diagnosis, with_findings

from chainwright.diagnose import StepSaliency
from chainwright.diagnose.steps.saliency import segments_of
from chainwright.report import write_report
from chainwright.studies.diagnosis.run import Diagnosis

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]
SHOWN = "document.querySelector('#step-map .plot').data[0].z"
PANEL = "#step-pair"


def made(diagnosis: Diagnosis, i: int, n_layers: int = 3) -> StepSaliency:
    trace = diagnosis.traces[i]
    n = len(trace.steps)
    values = torch.rand(n_layers, n, n, generator=torch.Generator().manual_seed(i)).tril()
    return StepSaliency(
        map=values,
        steps=[list(step) for step in trace.steps],
        segments=segments_of(trace),
        loss=1.0,
        config={"trace": i, "pairs": "all"},
    )


@pytest.fixture(scope="module")
def diagnosis() -> Diagnosis:
    return make_diagnosis({"parity": (2, 4)}, extra=EVIL)


@pytest.fixture(scope="module")
def path(diagnosis: Diagnosis, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("steps") / "report.html"
    maps = [made(diagnosis, i) for i in range(len(diagnosis.traces))]
    return write_report(with_findings(diagnosis, *maps), file)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with browser(tmp_path / "home") as running:
        yield running
        assert running.complaints == []
        assert running.run("window.evil === undefined")
        assert running.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@pytest.mark.parametrize("width", [1280, 400])
def test_the_slider_goes_through_the_layers(page: Page, path: Path, diagnosis: Diagnosis, width: int) -> None:
    page.open(path, width)
    chosen = int(page.run("page.section('steps')[0].trace"))
    values = made(diagnosis, chosen).map
    for layer in (0, 1, 2):
        assert page.text(PANEL + " h3").startswith(f"Layer {layer}: ")
        shown = float(page.run(f"{SHOWN}[2][1]"))
        assert shown == pytest.approx(4 + float((values[layer, 2, 1] / values.max()).log10()), abs=0.006)
        page.focus("#step-layer")
        page.press("ArrowRight")
    assert page.text("#step-layer-said").startswith("2 of 0")
    assert page.run(f"{SHOWN}[1][2] === null"), "nothing above the diagonal"


def test_keys_choose_a_pair_and_its_links_lead_to_the_trace(page: Page, path: Path, diagnosis: Diagnosis) -> None:
    page.open(path)
    chosen = int(page.run("page.section('steps')[0].trace"))
    steps = diagnosis.traces[chosen].steps
    page.focus("#step-map .plot")
    for _ in steps:
        page.press("ArrowUp")
    page.press("ArrowDown")
    page.press("ArrowDown")
    page.press("ArrowRight")
    assert page.text(PANEL + " h3") == "Layer 0: step 2 drawing on step 1"
    assert page.run(f"document.querySelectorAll('{PANEL} .said').length") == 2
    page.click(PANEL + " a")
    address = f"#trace-{chosen}-{steps[2].start}"
    assert page.run("location.hash") == address
    assert page.run("document.getElementById('trace').selectedOptions[0].textContent").startswith(f"{chosen},")
    assert page.wait("document.getElementById('token').textContent").find(f"token {steps[2].start}") >= 0


def test_a_click_on_a_cell_goes_to_its_step(page: Page, path: Path, diagnosis: Diagnosis) -> None:
    page.open(path)
    chosen = int(page.run("page.section('steps')[0].trace"))
    page.run("document.querySelector('#step-map .plot').scrollIntoView({block: 'center', behavior: 'instant'})")
    page.settle()
    x, y = page.run(
        "(() => { const plot = document.querySelector('#step-map .plot'), f = plot._fullLayout, "
        "r = plot.getBoundingClientRect(); return [r.left + f.xaxis._offset + f.xaxis.d2p(0), "
        "r.top + f.yaxis._offset + f.yaxis.d2p(3)] })()"
    )
    page.click_at(x, y)
    page.wait("location.hash !== ''")
    assert page.run("location.hash") == f"#trace-{chosen}-{diagnosis.traces[chosen].steps[3].start}"
    assert page.text(PANEL + " h3") == "Layer 0: step 3 drawing on question"


def test_maps_without_traces_have_no_links(page: Page, diagnosis: Diagnosis, tmp_path: Path) -> None:
    page.open(write_report([made(diagnosis, 0)], tmp_path / "bare.html"))
    assert page.run(f"document.querySelectorAll('{PANEL} a').length") == 0
    assert page.text("#step-trace option") == "map 0"
