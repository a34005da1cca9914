"""What a model says to questions about real facts: which facts it knows, and what becomes of two of them in a row.

1. Every question is continued greedily; a fact is known if the response begins with its answer.
2. A two-hop question combines two facts; its response begins with e3 (right), e2 (the first hop's answer), e1 (the
   entity of the question) or something else. Shares have Wilson intervals.
3. The compositions of two facts that the model knows one by one are counted on their own: only there is a wrong answer
   a failure to combine. (Two-hop questions as in "Back Attention", arXiv 2502.10835.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from torch import nn
from transformers import PreTrainedTokenizerBase

from chainwright._finding import Finding
from chainwright._registry import register
from chainwright._stats import wilson
from chainwright.decode.run import generate
from chainwright.models.anatomy import anatomy
from chainwright.models.load import provenance
from chainwright.tasks import Problem, facts

_N_TOKENS = 8  # more than any answer has


@register("finding", "FactAnswers")
@dataclass(frozen=True, kw_only=True)
class FactAnswers(Finding):
    """What a model said to questions about real facts.

    Attributes:
        answers: A row for each question: relation, hops, prompt, answer, said, outcome, and whether both facts of a
            two-hop question are known (always true for one hop).
    """

    answers: list[dict[str, Any]]

    def rows(self) -> list[dict[str, Any]]:
        """Return the share of each outcome, with its interval, by relation; two hops over all and over known facts."""
        out = []
        for relation in dict.fromkeys(row["relation"] for row in self.answers if row["hops"] == 1):
            chosen = self._chosen(1, relation, known=False)
            out.append(_row(relation, "one hop", chosen, {"right": "e2", "e1": "e1", "other": "other"}))
        for relation in dict.fromkeys(row["relation"] for row in self.answers if row["hops"] == 2):
            for what, known in (("two hops", False), ("two hops, both facts known", True)):
                chosen = self._chosen(2, relation, known=known)
                if chosen:
                    columns = {"right": "e3", "e2": "e2", "e1": "e1", "other": "other"}
                    out.append(_row(f"{relation} of the country", what, chosen, columns))
        return out

    def _chosen(self, hops: int, relation: str, *, known: bool) -> list[dict[str, Any]]:
        return [
            row
            for row in self.answers
            if row["hops"] == hops and row["relation"] == relation and (row["are_known"] or not known)
        ]

    def to_frame(self) -> pa.Table:
        """Return a row for each question."""
        return pa.Table.from_pylist(self.answers)

    def summary(self) -> str:
        """Return how many facts are known and how many compositions of known facts are right."""
        one = [row for row in self.answers if row["hops"] == 1]
        two = [row for row in self.answers if row["hops"] == 2 and row["are_known"]]
        n_known, n_right = sum(row["outcome"] == "e2" for row in one), sum(row["outcome"] == "e3" for row in two)
        return (
            f"{n_known} of {len(one)} facts are known; {n_right} of {len(two)} compositions of two of them are right."
        )


def _row(relation: str, what: str, chosen: Sequence[dict[str, Any]], columns: dict[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = {"relation": relation, "questions": what, "n": len(chosen)}
    row |= dict.fromkeys(("right", "e2", "e1", "other"), "-")
    for column, outcome in columns.items():
        n = sum(one["outcome"] == outcome for one in chosen)
        interval = wilson(n, len(chosen))
        row[column] = f"{n / len(chosen):.2f} ({interval.low:.2f}-{interval.high:.2f})"
    return row


def said_to(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], *, progress: bool = False
) -> list[str]:
    """Return how a model continues each question greedily, by a few tokens."""
    prompts = [problem.prompt for problem in problems]
    traces = generate(model, tokenizer, prompts, raw=True, max_new_tokens=_N_TOKENS, progress=progress)
    return [trace.response or "" for trace in traces]


def known_facts(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], *, progress: bool = False
) -> list[Problem]:
    """Return the questions that a model answers right.

    Args:
        model: A Transformers decoder.
        tokenizer: Its tokenizer.
        problems: From `tasks.facts.one_hop` or `two_hop`.
        progress: Show the progress of the generation.
    """
    said = said_to(model, tokenizer, problems, progress=progress)
    return [problem for problem, text in zip(problems, said, strict=True) if facts.is_right(problem, text)]


def fact_answers(model: nn.Module, tokenizer: PreTrainedTokenizerBase, *, progress: bool = False) -> FactAnswers:
    """Ask every question about real facts, with one hop and with two.

    Args:
        model: A Transformers decoder.
        tokenizer: Its tokenizer.
        progress: Show the progress of the generation.
    """
    asked = [problem for relation in facts.relations() for problem in facts.one_hop(relation)]
    asked += [problem for relation in facts.second_relations() for problem in facts.two_hop(relation)]
    said = said_to(model, tokenizer, asked, progress=progress)
    known = {
        (problem.facts["relation"], problem.facts["e1"].casefold())
        for problem, text in zip(asked, said, strict=True)
        if problem.hops == 1 and facts.is_right(problem, text)
    }
    answers = [
        {
            "relation": problem.facts["relation"],
            "hops": problem.hops,
            "prompt": problem.prompt,
            "answer": problem.answer,
            "said": text.strip(),
            "outcome": facts.outcome(problem, text),
            "are_known": all(fact in known for fact in _facts_of(problem)),
        }
        for problem, text in zip(asked, said, strict=True)
    ]
    return FactAnswers(answers=answers, provenance=provenance(anatomy(model).model))


def _facts_of(problem: Problem) -> list[tuple[str, str]]:
    """Return the facts that a two-hop question combines, as (relation, entity); none of a one-hop question."""
    if problem.hops == 1:
        return []
    e1, e2 = problem.facts["e1"].casefold(), problem.facts["e2"].casefold()
    return [("country", e1), (problem.facts["relation"], e2)]
