"""Logit flow and back attention in a real browser: all is drawn and fits, and a cell says what it writes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from browser import CHROMIUM, Page, browser
from test_report_flow import back_attention_finding

from chainwright import flow_stages, load_model, logit_flow, write_report
from chainwright.diagnose import MarkedQuery, flow_contrast

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]
CHECKS = (Path(__file__).parent / "checks.js").read_text(encoding="utf-8")
_MAP = "document.querySelector('[data-figure=\"flow-map-0\"] .plot')"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, tokenizer = load_model("world", device="cpu")
    ids = tokenizer("puvu father boss", return_tensors="pt")["input_ids"][0]
    token, other = tokenizer.convert_tokens_to_ids(["zage", "tumo"])
    flow = logit_flow(model, ids, token, conflict_id=other, tokenizer=tokenizer)
    flow = replace(flow, texts={**flow.texts, str(token): "<img src=x onerror='window.evil=1'>"})
    queries = [MarkedQuery(ids, token, (1,), (2,), other)]
    stages = [flow_stages(model, queries, name=f"set; part {i}", n_traced=4) for i in range(3)]
    contrast = flow_contrast(model, {"some": queries}, ["start", "e1", "r1", "r2"], "one over the other")
    file = tmp_path_factory.mktemp("report") / "report.html"
    return write_report([flow, *stages, contrast, back_attention_finding()], file)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as running:
        yield running
        assert running.complaints == [] and running.run("window.evil === undefined")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_everything_is_drawn_and_fits(page: Page, path: Path, width: int, theme: str) -> None:
    page.open(path, width, theme)
    assert page.run("[...document.querySelectorAll('.plot')].filter((p) => p.clientWidth).every((p) => p._fullLayout)")
    assert page.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert page.run(f"(() => {{ {CHECKS}; return checks.stickingOut(); }})()") == []


def test_a_cell_says_component_token_number_and_words(page: Page, path: Path) -> None:
    page.open(path)
    page.run(f"{_MAP}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
    page.settle()
    box = page.run(f"(({{x, y, width, height}}) => [x, y, width, height])({_MAP}.querySelector('.nsewdrag')"
                   ".getBoundingClientRect())")  # fmt: skip
    at = {"x": box[0] + 0.9 * box[2], "y": box[1] + 0.9 * box[3]}
    page.ask("Input.dispatchMouseEvent", type="mouseMoved", **at)
    said = page.wait(f"{_MAP}.querySelector('.hoverlayer').textContent")
    for part in ("attention, layer 0", "position 3: boss", "nats", "writes"):
        assert part in said
