"""The built site in a browser: it fits wide and narrow windows in both themes, draws figures, and fetches nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Page, browser

SITE = Path(__file__).parents[2] / "build" / "site"
PAGES = (
    "index",
    "get-started",
    "guides/own-model",
    "methods/tcr",
    "results/tcr",
    "findings",
    "api/chainwright.diagnose",
    "notebooks/1-why-a-chain-breaks",
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
    pytest.mark.skipif(not (SITE / "index.html").exists(), reason="needs the site that `make docs` builds"),
]


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_the_window(window: Page, name: str, width: int, theme: str) -> None:
    window.complaints.clear()
    window.requests.clear()
    window.open(SITE / f"{name}.html", width=width, theme=theme)
    assert window.run("document.documentElement.scrollWidth") <= width
    scheme = window.run("document.body.dataset.mdColorScheme")
    assert scheme == {"light": "default", "dark": "slate"}[theme]
    assert all(address.startswith(("file:", "data:", "blob:")) for address in window.requests)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_figures_of_a_notebook_are_drawn_in_the_colours_of_the_page(window: Page, theme: str) -> None:
    window.open(SITE / "notebooks" / "1-why-a-chain-breaks.html", theme=theme)
    assert window.wait("document.querySelectorAll('.figure .main-svg').length") >= 2
    size, ink = window.run(
        "(() => { const t = document.querySelector('.figure text'); const c = getComputedStyle(t).fill;"
        " return [document.querySelector('.figure .main-svg').getBoundingClientRect().width, c] })()"
    )
    light = sum(int(part) for part in ink[ink.index("(") + 1 :].rstrip(")").split(",")[:3]) / 3
    assert size > 300 and (light > 128) == (theme == "dark"), (size, ink)
