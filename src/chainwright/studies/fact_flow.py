"""What `chainwright flow` measures of real facts: the stages of answers that a pretrained model knows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chainwright._errors import BadInput
from chainwright._finding import Finding
from chainwright._progress import progress_bar
from chainwright.diagnose.flow.attribution import logit_flow
from chainwright.diagnose.flow.facts import known_facts, said_to
from chainwright.diagnose.flow.prompts import flow_prompt, marks_of
from chainwright.diagnose.flow.stages import MarkedQuery, flow_stages
from chainwright.models.placement import input_device
from chainwright.tasks import Problem, facts

FACT_TASKS = ("facts", "two-hop-facts")
_MARKS = {1: ("entity", "relation"), 2: ("landmark", "second relation")}
_KEYS = {1: ("e1", "r1"), 2: ("e1", "r2")}


def fact_flow(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: str, *, n: int, seed: int, progress: bool
) -> list[Finding]:
    """Return one flow, and the stages of at most `n` answers of each kind.

    With one hop the kinds are the relations, over facts that the model answers right. With two they are right and wrong
    answers, over compositions of two facts that it knows; the right answer is followed in both, with e2 as its rival.
    Marked are the entity and the relation, and with two hops the landmark and the second relation.

    Args:
        model: A pretrained decoder.
        tokenizer: Its tokenizer.
        task: "facts" or "two-hop-facts".
        n: Answers of each kind.
        seed: Decides which.
        progress: Show the progress.

    Raises:
        BadInput: `n` is below 1, or the model knows none of the facts.
    """
    if n < 1:
        raise BadInput(f"-n must be at least 1 answer of each kind; got {n}.")
    kinds = (_one_hop if task == "facts" else _two_hop)(model, tokenizer, progress)
    groups: dict[str, list[MarkedQuery]] = {}
    for kind, problems in kinds.items():
        Random(f"flow/{seed}").shuffle(problems)
        if queries := _queries(model, tokenizer, problems, n):
            groups[f"{task}; {kind}"] = queries
    if not groups:
        raise BadInput(
            "The model knows none of these facts, so no answer can be followed; `chainwright facts` asks all."
        )
    first = next(iter(groups.values()))[0]
    found: list[Finding] = [
        logit_flow(
            model, first.input_ids, first.token_id, conflict_id=first.conflict_id, tokenizer=tokenizer, norm="frozen"
        )
    ]
    with progress_bar("following answers", len(groups), shown=progress) as bar:
        for name, queries in groups.items():
            found.append(flow_stages(model, queries, name=name, marks=_MARKS[1 if task == "facts" else 2]))
            bar.advance()
    return found


def _one_hop(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, progress: bool) -> dict[str, list[Problem]]:
    """Return the known facts of each relation."""
    return {
        f"known {relation}": known_facts(model, tokenizer, facts.one_hop(relation), progress=progress)
        for relation in facts.relations()
    }


def _two_hop(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, progress: bool) -> dict[str, list[Problem]]:
    """Return the compositions of known facts, by whether the model answers them right."""
    known = {
        (relation, problem.facts["e1"].casefold())
        for relation, problems in _one_hop(model, tokenizer, progress).items()
        for problem in problems
    }
    every = [problem for relation in facts.second_relations() for problem in facts.two_hop(relation)]
    asked = [problem for problem in every if all(fact in known for fact in _named(problem))]
    kinds: dict[str, list[Problem]] = {"answered right": [], "answered wrong, the right answer": []}
    for problem, text in zip(asked, said_to(model, tokenizer, asked, progress=progress) if asked else [], strict=True):
        right, wrong = kinds.values()
        (right if facts.is_right(problem, text) else wrong).append(problem)
    return kinds


def _named(problem: Problem) -> Iterable[tuple[str, str]]:
    e1, e2 = problem.facts["e1"].casefold(), problem.facts["e2"].casefold()
    return ("known country", e1), (f"known {problem.facts['relation']}", e2)


def _queries(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], n: int
) -> list[MarkedQuery]:
    """Return at most `n` questions with their marks, without those whose answer begins with an article."""
    device, queries = input_device(model), []
    for problem in [problem for problem in problems if not problem.answer.startswith("the ")][:n]:
        rival = problem.facts["e2"] if problem.hops == 2 else None
        try:
            prompt = flow_prompt(tokenizer, problem.prompt, problem.answer, against=rival, span="first")
        except BadInput:  # the names begin alike, as those of Mexico and Mexico City
            prompt = flow_prompt(tokenizer, problem.prompt, problem.answer, span="first")
        first, second = (marks_of(tokenizer, prompt, key, problem.facts[key]) for key in _KEYS[problem.hops])
        ids = prompt.input_ids.to(device)
        queries.append(MarkedQuery(ids, prompt.target_ids[0], first, second, prompt.conflict_id))
    return queries
