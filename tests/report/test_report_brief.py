"""The first screen: what was asked, how many were right, where it breaks, what helps, and how sure, in plain words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from report_examples import make_diagnosis, make_roles, page_of, tokenizer, with_findings

from chainwright import Finding, compare, knockout_effects
from chainwright._tables import Tables
from chainwright.diagnose.flow.facts import FactAnswers
from chainwright.evaluation.accuracy import Accuracy
from chainwright.report.brief import ASKED, BREAKS, FOUND, HELPS, RIGHT, SURE, brief
from chainwright.report.gather import gather
from chainwright.traces import Trace
from families import random_ids, tiny

JARGON = re.compile(r"\b(entropy|nats|hops?|slots?|tokens? limit|logits?|Wilson|bootstrap|cells?|traces?)\b", re.I)


def lines(*findings: Finding, **options: object) -> dict[str, str]:
    return {line.question: f"{line.lead} {line.more}".strip() for line in brief(gather(findings, **options))}  # type: ignore[arg-type]


def test_a_diagnosis_answers_every_question_in_plain_words() -> None:
    diagnosis = make_diagnosis({"parity": (2, 4), "objc": (3, 5)})
    ways = {"model alone": diagnosis.traces, "fixed": _right(diagnosis.traces)}
    gain = replace(compare(ways), costs={"fixed": {"flagged": "2.5%", "extra tokens": "0.4", "unheard of": 3}})
    said = {line.question: f"{line.lead} {line.more}" for line in brief(gather(with_findings(diagnosis, gain)))}
    assert list(said) == [ASKED, RIGHT, BREAKS, HELPS, SURE]
    assert said[ASKED].startswith(
        "16 problems of Parity-NL and ObjC, which take 2 to 5 steps of reasoning each, were put"
    )
    assert said[RIGHT].startswith("10 of 16 (62%) have no mistake in any step.")
    assert "100% are without a mistake at the fewest steps asked (2-3), 25% at the most (4-5)" in said[BREAKS]
    assert "remembered wrongly: 6 of 6 mistakes" in said[BREAKS]
    assert "fixed helps: 16 right instead of 10 of 16; 6 put right, 0 spoilt." in said[HELPS]
    assert "it looked again at 2.5% of the tokens, for each token written it read 0.4 more and" in said[HELPS]
    assert "16 problems are few" in said[SURE]
    for question, text in said.items():
        assert not JARGON.search(text), (question, text)


def _right(traces: Sequence[Trace]) -> list[Trace]:
    """Return traces of the same problems that say the gold chains."""
    problems = [trace.problem for trace in traces if trace.problem is not None]
    tok = tokenizer([problem.chain for problem in problems])
    return [Trace.from_text(tok, each.prompt, each.chain, style="plain", problem=each) for each in problems]


def test_problem_sets_count_answers_that_are_neither_right_nor_wrong() -> None:
    row = {"task": "sums", "hops": 0, "n": 40, "accuracy": 0.5, "low": 0.35, "high": 0.65, "exact": None}
    row |= {"exact_low": None, "exact_high": None, "n_read": 0, "n_cut": 1, "n_unread": 3, "n_cut_answers": 1}
    parts = [{**row, "label": "level", "value": v, "n": 20, "accuracy": a} for v, a in (("easy", 0.8), ("hard", 0.2))]
    said = lines(Accuracy(rows=[row], by_label=parts))
    assert said[RIGHT] == (
        "20 of 40 answers (50%) are right. 3 could not be understood by the checker. 1 was cut off before an answer."
    )
    assert said[BREAKS] == "Of the parts of sums, level hard has the smallest share right: 4 of 20 (20%)."
    assert said[HELPS] == "No repair was tried."
    assert "35% to 65%" in said[SURE] and "few" not in said[SURE]


def test_a_comparison_alone_names_the_ways_and_what_they_gain() -> None:
    traces = make_diagnosis({"parity": (2, 4)}).traces
    said = lines(compare({"none": traces, "tcr": traces}))
    assert said[ASKED] == (
        "The same 8 problems, which take 2 to 4 steps of reasoning each, were answered in 2 ways: no repair and tcr."
    )
    assert said[RIGHT] == "Share without a mistake in any step: no repair 62% and tcr 62%."
    assert "tcr makes no difference that can be told from chance: 5 right instead of 5 of 8" in said[HELPS]
    assert "responses are as long as before" in said[HELPS]
    assert "the share right with no repair would most likely be" in said[SURE]
    again = compare({"none": traces, "voted": traces, "tuned": traces})
    again.costs.update({"voted": {"decodings": 4}, "tuned": {"decodings": 1}})
    said = lines(again)
    assert said[HELPS].count("each answer took") == 1 and "each answer took 4 decodings" in said[HELPS]


def test_facts_are_counted_by_what_they_combine() -> None:
    rows = [
        {
            "relation": "capital",
            "hops": hops,
            "prompt": "",
            "answer": "",
            "said": "",
            "outcome": outcome,
            "are_known": True,
        }
        for hops, outcome in ((1, "e2"), (1, "other"), (2, "e3"), (2, "e2"), (2, "e2"))
    ]
    said = lines(FactAnswers(answers=rows))
    assert said[RIGHT] == "Right: 1 of 2 single facts and 1 of 3 questions that combine two facts."


@pytest.mark.parametrize("kind", ["tables", "effects", "roles"])
def test_what_judges_nothing_says_what_it_found(kind: str) -> None:
    effects = knockout_effects(tiny("llama"), random_ids(2, 5), torch.tensor([1, 2]))
    finding = {"tables": Tables(title="T", tables={"a": []}), "effects": effects, "roles": make_roles(2, 2)}[kind]
    said = lines(finding)
    assert RIGHT not in said and SURE not in said
    assert ASKED in said
    assert (FOUND in said) == bool(finding.summary())


def test_the_first_screen_stands_first_on_the_page() -> None:
    page = page_of(make_diagnosis({"parity": (2, 4)}))
    assert 0 < page.index("<h1>") < page.index('<dl class="brief">') < page.index("In figures")
    assert page.index(RIGHT) < page.index("95% interval")


def test_traces_that_nothing_judged_are_only_counted() -> None:
    traces = make_diagnosis({"parity": (2, 4)}).traces[:2]
    said = lines(make_roles(2, 2), traces=traces)
    assert said[ASKED].startswith("2 responses of the model were examined.")
