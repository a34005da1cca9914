"""Comparisons and flips in a real browser: two ways are chosen, a problem opens, and nothing sticks out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Page, browser
from report_examples import EVIL, page_of

from chainwright.evaluation.comparison import compare
from chainwright.evaluation.flips import flips
from chainwright.models.load import load_model
from outcomes import outcome, ten_problems, two_ways

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]
CHECKS = (Path(__file__).parent / "checks.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ways = {**two_ways(), EVIL: [outcome(p, True) for p in ten_problems()]}
    ways |= {f"way {i}": ways["none"] for i in range(8)}
    moved = flips(ways, load_model("reasoner").tokenizer, flagged={"repair": [[0, 3]] * 10})
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(page_of([compare(ways), moved]), encoding="utf-8")
    return file


@pytest.fixture
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page
        assert page.complaints == [] and page.run("window.evil === undefined")
        assert page.run("document.getElementById('script-error').hidden")


def check(page: Page, call: str) -> Any:
    return page.run(f"(() => {{ {CHECKS}; return checks.{call}; }})()")


def test_it_fits_wide_and_narrow_pages_in_both_themes(page: Page, path: Path) -> None:
    for width in (1280, 400):
        for theme in ("light", "dark"):
            page.open(path, width, theme)
            assert page.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
            for call in ("stickingOut()", "unnamed()", "faint()"):
                assert check(page, call) == [], f"{width} {theme} {call}"
            assert page.run("document.querySelectorAll('.js-plotly-plot').length") == 3


def test_two_ways_are_chosen_and_a_problem_opens_side_by_side(page: Page, path: Path) -> None:
    page.open(path)
    assert page.text("#flip-fixed-title") == "Fixed: 3" and page.text("#flip-broken-title") == "Broken: 1"
    assert page.run("document.querySelectorAll('.flip-text .differs').length") == 2, "marked in both chains"
    assert page.text(".flip-text .wrong").strip() in ("web/", "lib/")
    assert page.run("document.querySelectorAll('.flip-column:last-child .flagged').length") == 2
    page.click("#flip-broken button")
    assert page.run("document.querySelector('#flip-broken button').getAttribute('aria-pressed')") == "true"
    assert page.run("document.querySelectorAll('[aria-pressed=true]').length") == 1
    assert "chain right" in page.text(".flip-column h4") and "chain wrong" in page.text(".flip-column:last-child h4")
    page.run("checks_to = document.getElementById('flip-to'); checks_to.value = 3; "
             "checks_to.dispatchEvent(new Event('change'))")  # fmt: skip
    assert page.text("#flip-fixed-title") == "Fixed: 0" and page.text("#flip").strip() == ""
    assert page.text("#flip-fixed").strip() == "none"
