"""Reports of findings alone: any of them, one or many, with traces or without; and sections from outside."""

import html
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from report_examples import EVIL, make_diagnosis, make_roles, page_of, tokenizer

from chainwright import Finding, Trace, evaluate, first_errors, knockout_effects, tasks, write_report
from chainwright import _registry as registry
from chainwright.diagnose import KnockoutEffects
from chainwright.report import others
from families import random_ids, tiny


def sections(page: str) -> list[str]:
    return re.findall(r'<section id="([a-z_]+)">', page)


@pytest.fixture(scope="module")
def traces() -> list[Trace]:
    return make_diagnosis({"parity": (2, 4)}).traces


def effects() -> KnockoutEffects:
    return knockout_effects(tiny("llama"), random_ids(2, 5), torch.tensor([1, 2]))


def test_first_errors_and_accuracy_make_a_report(traces: list[Trace], tmp_path: Path) -> None:
    path = write_report([first_errors(traces), evaluate(traces)], tmp_path / "a.html")
    page = path.read_text(encoding="utf-8")
    assert sections(page) == ["found", "accuracy", "errors", "limits"]
    assert "the model got 5 of 8 whole chains" in page and "a recall error: 3 of 3 wrong chains" in page
    assert "Heads:" not in page and "silenc" not in page, "no heads were looked for"
    assert "This report shows 2 findings: error table and accuracy." in page


def test_one_finding_is_enough(tmp_path: Path) -> None:
    found = effects()
    page = write_report(found, str(tmp_path / "a.html"), title="Knocked <out>").read_text(encoding="utf-8")
    assert sections(page) == ["found", "others"]
    assert "<title>Chainwright: Knocked &lt;out&gt;</title>" in page and "<h1>Knocked &lt;out&gt;</h1>" in page
    assert found.summary().splitlines()[0] in html.unescape(page) and 'data-figure="finding-0"' in page


def test_what_no_section_shows_is_shown_all_the_same(traces: list[Trace]) -> None:
    """Two accuracies: the section takes one, the other gets its table."""
    page = page_of([evaluate(traces), evaluate(traces[:2]), effects()])
    assert sections(page) == ["found", "accuracy", "others"]
    assert page.count('data-figure="finding-') == 2 and "<h3>Accuracy</h3>" in page and "<h3>Knockout effects" in page


def test_bare_head_roles_have_their_maps() -> None:
    page = page_of([make_roles(2, 2), make_roles(2, 2, seed=1)])
    assert sections(page) == ["found", "heads", "limits"] and "Failing and right contexts, set 2" in page


class Odd(Finding):
    """A finding of somebody else, without a figure and with what JSON cannot hold."""

    def summary(self) -> str:
        return EVIL

    def to_frame(self) -> pa.Table:
        return pa.table({"n": [float("nan")] + [1.0] * 150, "what": [EVIL] * 151})


def test_a_finding_of_somebody_else_is_shown_by_its_table() -> None:
    page = page_of(Odd())
    assert EVIL not in page and EVIL in html.unescape(page) and "finding-0" not in page
    assert "The first 100 rows" in page and others.title_of(Odd()) == "Odd"


def test_traces_are_read_with_a_tokenizer_and_without(traces: list[Trace]) -> None:
    diagnosis = make_diagnosis({"parity": (2, 4)})
    accuracy = evaluate(traces)
    plain = page_of(accuracy, traces=traces)
    assert sections(plain) == ["found", "accuracy", "traces"] and "cut only at the first error" in plain
    asked = [trace.problem for trace in traces if trace.problem is not None]
    tok = tokenizer([text for problem in asked for text in (problem.prompt, problem.chain)])
    again = [Trace.from_text(tok, p.prompt, p.chain, problem=p) for p in asked]
    assert "No scores were passed" in page_of(evaluate(again), traces=again, tokenizer=tok)
    scored = page_of(accuracy, traces=traces, scores=diagnosis.scores, tokenizer=tok)
    assert "There are no alternatives" in scored


def test_traces_without_a_problem_can_be_read_too(traces: list[Trace]) -> None:
    (problem,) = tasks.sample("parity", 3, 1)
    tok = tokenizer([problem.prompt, problem.chain])
    stray = Trace.from_text(tok, problem.prompt, problem.chain)
    page = page_of(evaluate(traces), traces=[*traces, stray])
    assert "Traces without a problem" in page and "All 9 traces" in page


def test_traces_judged_elsewhere_are_no_proof_of_sound_chains() -> None:
    tok = tokenizer(["Why? because"])
    judged = [Trace.from_text(tok, "Why?", " because", is_correct=i == 0) for i in range(3)]
    page = page_of([evaluate(judged), first_errors(judged)], traces=judged, tokenizer=tok)
    assert "2 wrong answers have no located first error" in page and "No first error could be located." in page
    assert "2 answers went wrong, but no first error could be located." in page
    assert "The chains of 3 traces are unknown" in page and "broke</h1>" not in page and "All 3 traces" in page


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A section in a package of its own, with its template and styles beside it."""
    room = tmp_path / "odd_plugin"
    room.mkdir()
    (room / "__init__.py").write_text("")
    (room / "stages.py").write_text(
        "from chainwright.report.section import Section\n"
        "def section(material):\n"
        "    found = [f for f in material.findings if type(f).__name__ == 'Odd']\n"
        "    return Section('stages', 'Stages', {'n': len(found)}, order=50, shows=found) if found else None\n"
    )
    (room / "stages.html").write_text("<h2>{{ n }} odd</h2>")
    (room / "stages.css").write_text(".odd { color: red; }")
    monkeypatch.syspath_prepend(str(tmp_path))
    known: dict[tuple[str, str], Any] = dict(registry._live)
    from odd_plugin.stages import section  # type: ignore[import-not-found]

    monkeypatch.setitem(registry._live, ("section", "odd"), section)
    yield
    registry._live.clear()
    registry._live.update(known)
    for name in ("odd_plugin", "odd_plugin.stages"):
        sys.modules.pop(name, None)


def test_a_section_can_live_in_another_package(plugin: None, traces: list[Trace]) -> None:
    page = page_of([evaluate(traces), Odd()])
    assert sections(page) == ["found", "stages", "accuracy"]
    assert "<h2>1 odd</h2>" in page and ".odd { color: red; }" in page
    assert sections(page_of(evaluate(traces))) == ["found", "accuracy"]


def test_every_section_is_registered_with_its_template() -> None:
    names = registry.names("section")
    assert {"found", "study", "accuracy", "errors", "heads", "back_attention", "limits"} <= set(names)
