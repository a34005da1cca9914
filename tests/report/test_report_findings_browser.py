"""Reports of findings alone in a real browser: all is drawn and fits, and traces can be read without a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from browser import CHROMIUM, Page, browser
from report_examples import make_diagnosis, make_roles

from chainwright import evaluate, first_errors, knockout_effects, write_report
from chainwright.evaluation.accuracy import Accuracy
from families import random_ids, tiny

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]
CHECKS = (Path(__file__).parent / "checks.js").read_text(encoding="utf-8")


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with browser(tmp_path / "home") as running:
        yield running
        assert running.complaints == []


def test_findings_and_traces_without_scores_or_tokenizer(page: Page, tmp_path: Path) -> None:
    traces = make_diagnosis({"parity": (2, 4)}).traces
    effects = knockout_effects(tiny("llama"), random_ids(2, 5), torch.tensor([1, 2]))
    findings = [first_errors(traces), evaluate(traces), effects, Accuracy(rows=[]), make_roles(2, 2)]
    path = write_report(findings, tmp_path / "report.html", traces=traces)
    for width in (1280, 400):
        page.open(path, width)
        drawn = "[...document.querySelectorAll('.plot')].filter((p) => p.clientWidth).every((p) => p._fullLayout)"
        assert page.run(drawn)
        assert page.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    wrong = next(trace for trace in traces if trace.first_error is not None)
    assert wrong.first_error is not None
    assert page.text("#reader .t.wrong").strip() == wrong.first_error.got
    assert "Not scored." in page.text("#token")
    assert (wrong.response or "").strip().splitlines()[0] in page.text("#reader")
