"""What findings, traces, problems and repairs show of themselves in a notebook: enough, escaped, and small."""

from __future__ import annotations

import re

import pyarrow as pa

from chainwright import Finding, Repair, StepFlow, evaluate, first_errors, generate, load_model, tasks
from chainwright._tables import Tables
from chainwright.tasks import Problem


class _Wide(Finding):
    def summary(self) -> str:
        return "a <b> & c\nsecond line"

    def to_frame(self) -> pa.Table:
        return pa.table({f"c<{i}>": [float(i) / 3] * 30 for i in range(20)})


def test_a_finding_shows_its_summary_and_the_beginning_of_its_table() -> None:
    page = _Wide()._repr_html_()
    assert "a &lt;b&gt; &amp; c\nsecond line" in page and "<b>" not in page
    assert page.count("<tr>") == 1 + 8 and page.count("<th>") == 12
    assert "22 more rows and 8 more columns" in page
    assert "<td>0.333</td>" in page


def test_an_empty_table_and_missing_values() -> None:
    assert "<table>" not in Tables(title="none", tables={})._repr_html_()
    page = Tables(title="one", tables={"t": [{"a": None, "b": "x" * 100}]})._repr_html_()
    assert "<td>-</td>" in page and "…</td>" in page and "x" * 61 not in page


def test_a_wrong_trace_marks_its_first_error() -> None:
    model, tokenizer = load_model("reasoner")
    traces = generate(model, tokenizer, tasks.sample("clf", 14, 6), progress=False)
    wrong = next(trace for trace in traces if trace.first_error is not None and trace.first_error.got)
    error = wrong.first_error
    assert error is not None
    marked = re.search(r"<mark [^>]*>(.*?)</mark>", wrong._repr_html_(), re.DOTALL)
    assert marked is not None and marked[1] == (wrong.response or "")[error.start : error.end]
    assert error.error_type in wrong._repr_html_()
    for finding in (evaluate(traces), first_errors(traces)):
        assert len(finding._repr_html_()) < 20_000 and "<table>" in finding._repr_html_()


def test_problems_and_repairs() -> None:
    problem = Problem("mine", 0, "Is 1 < 2?", chain="", answer="yes", slots=())
    assert "Is 1 &lt; 2?" in problem._repr_html_() and "mine; answer: yes" in problem._repr_html_()
    page = Repair.from_pretrained("tcr-reasoner")._repr_html_()
    assert "Repair: tcr" in page and "<table>" in page
    assert "Repair: stepflow" in StepFlow()._repr_html_()
