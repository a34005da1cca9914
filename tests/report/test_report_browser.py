"""The report in a real browser: a reader clicks, presses keys, saves files; nothing fails, sticks out or is fetched."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Page, browser
from report_examples import EVIL, full, make_diagnosis, page_of

from chainwright._stats import wilson
from chainwright.studies.diagnosis.run import Diagnosis

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]
WIDE, NARROW = 1280, 400
CHECKS = (Path(__file__).parent / "checks.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def diagnosis() -> Diagnosis:
    return make_diagnosis({"parity": (2, 4), "objc": (3, 5)}, extra=EVIL + "日本 ", model="<b>toy</b>")


@pytest.fixture(scope="module")
def path(diagnosis: Diagnosis, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(page_of(full(diagnosis)), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def page(running: Page) -> Iterator[Page]:
    """A page that must not complain, ask for anything, or run what stands in a model's text."""
    running.complaints.clear()
    running.requests.clear()
    yield running
    assert running.complaints == []
    assert running.run("document.getElementById('script-error').hidden")
    assert running.run("window.evil === undefined")
    assert [url for url in running.requests if not url.startswith(("file:", "data:", "blob:"))] == []


def check(page: Page, call: str) -> Any:
    """Return what one of the page checks says."""
    return page.run(f"(() => {{ {CHECKS}; return checks.{call}; }})()")


def overflow(page: Page) -> float:
    return float(page.run("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_everything_is_drawn_and_fits(page: Page, path: Path, width: int, theme: str) -> None:
    page.open(path, width, theme)
    assert page.run("[...document.querySelectorAll('.plot')].filter((p) => p.clientWidth).every((p) => p._fullLayout)")
    assert page.run("document.querySelectorAll('.js-plotly-plot').length") == 4 + 7 + 1, "the hidden pair waits"
    assert overflow(page) <= 0
    assert check(page, "stickingOut()") == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_from_its_ground(page: Page, path: Path, theme: str) -> None:
    """At least 4.5 to 1 everywhere (WCAG AA), also where a token is shaded in full."""
    page.open(path, WIDE, theme)
    shaded = ".step:not(.in-question) .t"
    page.run(f"document.querySelectorAll('{shaded}').forEach((token) => token.style.setProperty('--u', 1))")
    assert check(page, "faint()") == []


def test_a_click_on_a_head_shows_its_role_and_evidence(page: Page, path: Path, diagnosis: Diagnosis) -> None:
    page.open(path, WIDE)
    best = diagnosis.roles[0].best_head
    assert page.text("#head-inspector h3") == f"Layer {best[0]}, head {best[1]}"
    page.click('[data-map="kept"] .plot')  # the middle of two layers and three heads
    assert page.text("#head-inspector h3") in ("Layer 0, head 1", "Layer 1, head 1")
    check(page, "clickHead(0, 1)")
    assert page.text("#head-inspector h3") == "Layer 0, head 1"
    assert page.text("#head-inspector .role") == "answer-writing, erroneous-processing"
    found = page.text("#head-inspector")
    low, high = wilson(1, 3)
    assert f"fixes 1 of 3 (33%; 95% interval {100 * low:.0f}\u2013{high:.0%})" in found
    assert page.run("document.querySelectorAll('#head-inspector .part').length") == 2, "held out, and the others"
    outlines = "[...document.querySelectorAll('[data-map] .plot')].map((p) => p.layout.shapes[0].x0 + 0.5)"
    assert page.run(outlines) == [1] * 7
    assert page.text("#head-status").startswith("Layer 0, head 1 answer-writing, erroneous-processing; fixes 1 of 3")
    assert page.run("document.querySelector('#head-status').getAttribute('role')") == "status"


def test_keys_move_from_head_to_head(page: Page, path: Path) -> None:
    page.open(path, WIDE)
    page.click('.pair:not([hidden]) button.head[data-head="1,1"]')
    page.focus('[data-map="kept"] .plot')
    seen = []
    for key in ("ArrowLeft", "ArrowDown", "ArrowDown", "ArrowRight", "ArrowUp"):
        page.press(key)
        seen.append(page.text("#head-inspector h3"))
    wanted = [(1, 0), (0, 0), (0, 0), (0, 1), (1, 1)]
    assert seen == [f"Layer {layer}, head {head}" for layer, head in wanted]
    pressed = "[...document.querySelectorAll('.pair:not([hidden]) [aria-pressed=true]')].map((b) => b.dataset.head)"
    assert set(page.run(pressed)) == {"1,1"}


def test_a_trace_that_a_head_would_fix_opens_at_its_error(page: Page, path: Path, diagnosis: Diagnosis) -> None:
    for width in (WIDE, NARROW):
        page.open(path, width)
        check(page, "clickHead(0, 0)")
        link = page.text(".inspector .contexts a")
        page.click(".inspector .contexts a")
        number = int(link.split()[1])
        error = diagnosis.traces[number].first_error
        assert error is not None and error.got is not None
        assert f"{link}," in page.text(".card header")
        assert page.text(".t.now").strip() == error.got
        assert page.text("#token h3").startswith(f"“{page.text('.t.now')}”")
        box = json.loads(page.run("JSON.stringify(document.querySelector('.t.now').getBoundingClientRect())"))
        panel = json.loads(page.run("JSON.stringify(document.getElementById('token').getBoundingClientRect())"))
        assert 0 < box["top"] and box["bottom"] < (900 if width == WIDE else panel["top"])
        assert page.run("document.activeElement.className") == "steps"


def test_a_first_error_shows_alternatives_and_what_is_said_without_heads(page: Page, path: Path) -> None:
    page.open(path, WIDE)
    assert page.text(".bad") == "chain wrong"
    assert "First error: name recall" in page.text(".callout")
    assert "The model gave the expected “<b>other</b>” 12.5%" in page.text(".callout")
    listed = page.run("[...document.querySelectorAll('.others li')].map((e) => e.textContent)")
    assert listed[0].endswith("70.0%written") and listed[1] == "“<b>other</b>”12.5%expected"
    rows = page.run("[...document.querySelectorAll('.without tr')].map((e) => e.textContent)")
    assert rows == [
        "withoutsaysright one",
        "none“wrong” 70.0%25.0%",
        "L1H1“right” 70.0% fixed61.0%",
        "L0H1“wrong” 70.0%2.0%",
    ]
    page.click(".without a")
    assert page.text("#head-inspector h3") == "Layer 1, head 1"


def test_keys_walk_from_token_to_token(page: Page, path: Path) -> None:
    page.open(path, WIDE)
    start = int(page.run("document.querySelector('.t.now').dataset.at"))
    page.focus(".steps")
    for key, step in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1)):
        page.press(key)
        assert int(page.run("document.querySelector('.t.now').dataset.at")) == start + step
    page.click(".in-question .t")
    assert "Part of the question" in page.text("#token")
    page.run("document.querySelector('.card header button').click()")
    assert int(page.run("document.querySelector('.t.now').dataset.at")) == start


def test_pointing_at_a_token_says_its_numbers(page: Page, path: Path) -> None:
    page.open(path, WIDE)
    page.click(".t.now")
    assert "log-probability" in page.text("#tip") and "entropy" in page.text("#tip")
    assert page.run("!document.getElementById('tip').hidden")


def test_other_traces_and_other_shades(page: Page, path: Path) -> None:
    page.open(path, WIDE)
    first = page.text(".card header")
    page.click("#next")
    assert page.text(".card header") != first
    page.click("#previous")
    assert page.text(".card header") == first
    page.click("#previous")
    assert page.text(".card header") == first
    labels = page.run("[...document.querySelectorAll('#group option')].map((o) => o.textContent)")
    assert labels == [f"{t}: {k}" for t in ("Parity-NL", "ObjC") for k in ("name recall ◆ (3)", "no error (5)")]
    check(page, "choose('group', 3)")
    assert "ObjC" in page.text(".card header b") and "chain right" in page.text(".card header")
    before = page.run("[...document.querySelectorAll('.t')].map((e) => e.style.getPropertyValue('--u')).join()")
    page.click('input[value="lost"]')
    assert page.run("[...document.querySelectorAll('.t')].map((e) => e.style.getPropertyValue('--u')).join()") != before
    assert "3 nats" in page.text("#scale-high")


def test_another_error_type_shows_other_maps(page: Page, path: Path) -> None:
    page.open(path, WIDE)
    z = "JSON.stringify(document.querySelector('[data-map=kept] .plot').data[0].z)"
    before = page.run(z)
    check(page, "choose('pair', 1)")
    assert page.run(z) != before
    assert page.text(".pair:not([hidden]) h3") == "ObjC: name recall"
    page.settle()
    assert page.run("document.querySelector('.pair:not([hidden]) .plot')._fullLayout !== undefined")
    assert overflow(page) <= 0


def test_the_theme_follows_the_system_the_address_and_the_button(page: Page, path: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light, dark = "rgb(246, 247, 249)", "rgb(20, 23, 28)"
    for theme, query, shown in (
        ("light", "", light),
        ("dark", "", dark),
        ("dark", "?theme=light", light),
        ("light", "#dark", dark),
    ):
        page.open(path, WIDE, theme, query)
        assert page.run(ground) == shown, (theme, query)
    figure = "document.querySelector('[data-figure=accuracy] .plot').layout.template.layout.paper_bgcolor"
    before = page.run(figure)
    assert page.run("document.getElementById('theme').getAttribute('aria-label')") == "Light theme"
    page.click("#theme")
    assert page.run(ground) == light
    assert page.run(figure) != before


def test_figures_are_saved_as_csv_png_and_svg(page: Page, path: Path, tmp_path: Path, diagnosis: Diagnosis) -> None:
    page.open(path, WIDE)
    page.save_downloads_to(tmp_path)
    wanted = [
        "accuracy.csv",
        "accuracy.png",
        "accuracy.svg",
        "heads-Parity-NL-name-recall-kept.csv",
        "heads-Parity-NL-name-recall-kept.png",
    ]
    for n in (1, 2, 3):
        page.click(f'[data-figure="accuracy"] .tools button:nth-child({n})')
    for n in (1, 2):
        page.click(f'[data-map="kept"] .tools button:nth-child({n})')
    page.click(".card .tools button:last-child")
    page.wait_for_files(tmp_path, [*wanted])
    rows = list(csv.DictReader((tmp_path / "accuracy.csv").open(encoding="utf-8")))
    assert [int(row["n"]) for row in rows] == [row["n"] for row in diagnosis.accuracy.rows]
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "accuracy.svg").read_text(encoding="utf-8")
    heads = list(csv.DictReader((tmp_path / wanted[3]).open(encoding="utf-8")))
    assert float(heads[4]["kept"]) == pytest.approx(float(diagnosis.roles[0].kept[1, 1]), abs=1e-4)
    (trace,) = tmp_path.glob("trace-*.csv")
    read = list(csv.DictReader(trace.open(encoding="utf-8")))
    assert EVIL in "".join(row["token"] for row in read)


def test_all_can_be_reached_with_the_keyboard_in_the_order_of_the_page(page: Page, path: Path) -> None:
    page.open(path, WIDE)
    page.press("Tab")
    assert page.run("document.activeElement.className") == "skip"
    seen = ["skip"]
    while seen[-1] != "BODY" and len(seen) < 200:
        page.press("Tab")
        here = check(page, "focused()")
        seen.append(here["name"])
        assert here["outline"] != "none" or here["name"] == "BODY", here
    order = [seen.index(name) for name in ("theme", "pair", "plot js-plotly-plot", "group", "trace", "next", "steps")]
    assert order == sorted(order)
    assert check(page, "unnamed()") == []
