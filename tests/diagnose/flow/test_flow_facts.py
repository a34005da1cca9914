"""Which facts a model knows and how it combines two, counted from what it says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from chainwright._stats import wilson
from chainwright.diagnose.flow import facts as asking
from chainwright.diagnose.flow.facts import FactAnswers, fact_answers, known_facts, said_to
from chainwright.models import load_model
from chainwright.models.fetch import local_file
from chainwright.tasks import Problem, facts
from command_line import call
from families import tiny


class Parrot:
    """Says what a test decides, question by question."""

    def __call__(self, model: object, tokenizer: object, problems: Sequence[Problem], **_: object) -> list[str]:
        return [self.says(problem) for problem in problems]

    def says(self, problem: Problem) -> str:
        if problem.hops == 1:
            return " who knows" if problem.answer in ("Paris", "Egypt") else f" {problem.answer}."
        if problem.facts["relation"] == "language":
            return f" {problem.facts['e2']}"
        return f" {problem.answer}" if problem.facts["e2"] in ("France", "Peru") else f" {problem.facts['e1']}"


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> FactAnswers:
    monkeypatch.setattr(asking, "said_to", Parrot())
    return fact_answers(tiny("llama"), None)  # type: ignore[arg-type]


def test_shares_are_counted_by_hand(found: FactAnswers) -> None:
    rows = {(row["relation"], row["questions"]): row for row in found.rows()}
    n_countries, n_landmarks = len(facts.one_hop("capital")), len(facts.one_hop("country"))
    n_egypt = sum(p.answer == "Egypt" for p in facts.one_hop("country"))
    capitals = rows["capital", "one hop"]
    low, high = wilson(n_countries - 1, n_countries)
    assert capitals["n"] == n_countries and capitals["right"] == f"{1 - 1 / n_countries:.2f} ({low:.2f}-{high:.2f})"
    assert capitals["e2"] == "-"
    two = facts.two_hop("capital")
    in_france, in_peru = (sum(p.facts["e2"] == country for p in two) for country in ("France", "Peru"))
    every = rows["capital of the country", "two hops"]
    known = rows["capital of the country", "two hops, both facts known"]
    assert every["n"] == n_landmarks and every["right"].startswith(f"{(in_france + in_peru) / n_landmarks:.2f} (")
    assert known["n"] == n_landmarks - n_egypt - in_france, "the capital of France is not known"
    assert known["right"].startswith(f"{in_peru / known['n']:.2f} (") and known["e2"].startswith("0.00 (")
    assert rows["language of the country", "two hops"]["e2"].startswith("1.00 (")
    n_known = sum(row["are_known"] for row in found.answers if row["hops"] == 2)
    assert found.summary().endswith(f"; {in_peru} of {n_known} compositions of two of them are right.")


def test_they_are_saved_as_a_finding(found: FactAnswers, tmp_path: Path) -> None:
    again = FactAnswers.load(found.save(tmp_path / "facts"))
    assert again.rows() == found.rows() and again.to_frame().num_rows == len(found.answers)


def test_known_facts_are_those_that_are_answered_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "said_to", Parrot())
    asked = facts.one_hop("capital")
    known = known_facts(tiny("llama"), None, asked)  # type: ignore[arg-type]
    assert known == [problem for problem in asked if problem.answer != "Paris"]


def test_questions_are_continued_greedily_as_they_are() -> None:
    model, tokenizer = load_model("world", device="cpu")
    problem = Problem("facts", 1, "bado 's mother is", "", "x", ())
    (said,) = said_to(model, tokenizer, [problem])
    ids = tokenizer(problem.prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        best = int(model(input_ids=ids).logits[0, -1].argmax())
    assert said.split()[0] == tokenizer.decode([best]).strip()


@pytest.mark.real
@pytest.mark.skipif(local_file("smollm2") is None, reason="smollm2 was not fetched; run make smollm2")
def test_the_pretrained_model_knows_some(tmp_path: Path) -> None:
    code, printed = call("facts", "--quiet", "-o", tmp_path / "facts")
    assert code == 0 and "of 228 facts are known" in printed
    answers = FactAnswers.load(tmp_path / "facts").answers
    right = {(row["relation"], row["prompt"]) for row in answers if row["outcome"] == "e2" and row["hops"] == 1}
    assert ("capital", "The capital city of France is") in right and len(right) > 100
