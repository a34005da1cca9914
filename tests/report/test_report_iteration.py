"""The section of iteration heads in a real browser: its slider shows one checkpoint at a time, in both widths."""

from pathlib import Path

import pytest
import torch
from browser import CHROMIUM, browser

from chainwright.diagnose import Emergence
from chainwright.report import write_report

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]


def emergence() -> Emergence:
    n, n_tokens = 3, 9
    maps = torch.zeros(3, 1, 2, 1, n_tokens, n_tokens)
    for c in range(3):
        maps[c, 0, :, 0] = torch.eye(n_tokens) * (1 - c / 2)
        maps[c, 0, 0, 0, 5:8, 4] = c / 2
        maps[c, 0, 1, 0, [4, 5, 6], [1, 2, 3]] = c / 2
    measures = torch.zeros(3, 1, 1, 2, 3, 2, 1)
    measures[:, 0, 0, 0, :, 0, 0] = measures[:, 0, 0, 1, :, 1, 0] = torch.tensor([0.0, 0.5, 1.0])[:, None]
    return Emergence(
        steps=torch.tensor([0, 50, 100]),
        loss=torch.tensor([float("nan"), 1.0, 0.1]),
        tasks=["copy"],
        lengths=[n],
        accuracy=torch.tensor([0.0, 0.4, 1.0])[:, None, None],
        token_accuracy=torch.tensor([0.5, 0.7, 1.0])[:, None, None],
        measures=measures,
        maps=maps,
        n_sequences=torch.tensor([[2]]),
    )


SHOWN = """
[...document.querySelector('[data-figure="circuit-maps"] .plot').data.entries()].filter(([i, t]) => t.visible !== false)
  .map(([i, t]) => i).join()
"""


@pytest.mark.parametrize("width", [1200, 420])
def test_the_slider_moves_over_checkpoints(tmp_path: Path, width: int) -> None:
    path = write_report([emergence()], tmp_path / "report.html")
    with browser(tmp_path / "home") as page:
        page.open(path, width)
        page.settle()
        assert page.run(SHOWN) == "4,5", "the last checkpoint first"
        page.run("document.querySelector('.slider-container').scrollIntoView({ block: 'center' })")
        left, top = page.run(
            "(r => [r.left, r.top + r.height / 2])(document.querySelector('.slider-rail-touch-rect')"
            ".getBoundingClientRect())"
        )
        page.click_at(left + 2, top)
        page.wait(f"({SHOWN.strip()}) === '0,1'")
        assert page.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        assert page.complaints == []
