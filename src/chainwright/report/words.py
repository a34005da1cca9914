"""Sentences of the report: where chains break, and how sure the numbers are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from chainwright._stats import wilson
from chainwright.diagnose.facts import BestHeads, Facts
from chainwright.diagnose.heads.roles import HeadCheck
from chainwright.evaluation.accuracy import Accuracy
from chainwright.figures.accuracy import HIGH_CHANCE
from chainwright.figures.words import between, counted, head_name, listed, percent, share_of, span_of, title_of
from chainwright.report.section import Material
from chainwright.traces import Trace


def chance_levels(traces: Iterable[Trace]) -> dict[str, float]:
    """Return the share of problems of each task that one fixed answer, the most frequent gold one, gets right."""
    answers: dict[str, Counter[str]] = {}
    for trace in traces:
        if trace.problem is not None:
            answers.setdefault(trace.problem.task, Counter())[trace.problem.answer] += 1
    return {task: max(counts.values()) / counts.total() for task, counts in answers.items()}


def chance_note(chance: Mapping[str, float]) -> str:
    """Return a warning about tasks whose final answers are easily guessed, or "" when there is none."""
    high = [
        f"{percent(share)} of the {title_of(task)} problems" for task, share in chance.items() if share >= HIGH_CHANCE
    ]
    if not high:
        return ""
    return (
        f"Final answers can be guessed: always giving the most frequent one would be right in {listed(high)} "
        "(dotted line). There, go by whole chains."
    )


def breaking_points(accuracy: Accuracy) -> str:
    """Return from which hop count on fewer than half of the chains are right, task by task; "" if no chain is known."""
    broken: dict[str, int] = {}
    known = [row for row in accuracy.rows if row["hops"] is not None and row["exact"] is not None]
    if not known:
        return ""
    for row in sorted(known, key=lambda r: -int(r["hops"])):
        if row["exact"] < 0.5:
            broken[row["task"]] = int(row["hops"])
    order = dict.fromkeys(str(row["task"]) for row in known)
    named = [f"{title_of(task)} {broken[task]}" for task in order if task in broken]
    if not named:
        return "At every hop count asked, at least half of the chains are right."
    rest = len(order) - len(named)
    never = f"; {counted(rest, 'task')} never fell below half" if rest else ""
    return f"Fewest hops asked at which less than half of the chains are right: {', '.join(named)}{never}."


def certainty(facts: Facts, material: Material) -> list[str]:
    """Return in sentences how far the numbers of accuracy and heads can be trusted; none without them."""
    accuracy = next((each for each in material.of(Accuracy) if each.rows), None)
    heads = [] if facts.heads is None else _checks_trust(facts.heads)
    if accuracy is None:
        return heads
    if not any(row["hops"] for row in accuracy.rows):
        return [*_sets_certainty(accuracy, material), *heads]
    rows = accuracy.rows
    middle = min(int(row["n"]) for row in rows)
    interval = wilson(middle // 2, middle)
    errors = "" if facts.kinds is None else f"; {counted(facts.kinds.n, 'chain')} went wrong"
    lines = [
        f"{counted(sum(int(row['n']) for row in rows), 'trace')} in {counted(len(rows), 'cell')} (one task at one hop "
        f"count), {span_of(int(r['n']) for r in rows)} problems each{errors}.",
        f"With {counted(middle, 'problem')} in a cell, a measured {percent(middle // 2 / middle)} is compatible with "
        f"{between(*interval)} (95% Wilson interval).",
    ]
    n_cut = sum(int(row["n_cut"]) for row in rows)
    if n_cut:
        lines.append(f"{counted(n_cut, 'response')} met the token limit, and may be not right for that reason alone.")
    return lines + heads


def _sets_certainty(accuracy: Accuracy, material: Material) -> list[str]:
    """Return how far an accuracy of problem sets can be trusted."""
    n = sum(int(row["n"]) for row in accuracy.rows)
    problems = {trace.info.get("problem", i) for i, trace in enumerate(material.traces)}
    low, high = wilson(n // 2, n)
    lines = [
        f"With {counted(n, 'response')}, a measured {percent(n // 2 / n)} is compatible with {between(low, high)} "
        "(95% Wilson interval)."
    ]
    if material.traces and len(problems) < n:
        lines.append(
            f"They answer {counted(len(problems), 'problem')}, and responses to one problem are alike, so that the "
            "interval is wider than that."
        )
    n_cut = sum(int(row["n_cut"]) for row in accuracy.rows)
    if n_cut:
        lines.append(f"{counted(n_cut, 'response')} met the token limit.")
    return lines


def _checks_trust(heads: BestHeads) -> list[str]:
    if heads.best is None or heads.best.check is None:
        return []
    best, checks = heads.best.check, heads.checks
    n_fixed = round(best.corrected * best.n_erroneous)
    low, high = wilson(n_fixed, best.n_erroneous)
    contexts = span_of(check.n_erroneous for check in checks)
    among = f" It is also the best of {len(checks)} that were checked, which flatters it." if len(checks) > 1 else ""
    return [
        f"Heads were checked on {contexts} failing contexts held out for each error type. For the head named above, "
        f"{n_fixed} of {best.n_erroneous} is compatible with {between(low, high)}.{among}"
    ]


def check_sentence(check: HeadCheck | None) -> str:
    """Return what silencing the best head did on contexts that it was not chosen on."""
    if check is None:
        return "Not checked: there were too few contexts to hold some out, so the shares above are optimistic."
    return (
        f"Held out: without {head_name(check.head)} the right token comes first in "
        f"{share_of(round(check.corrected * check.n_erroneous), check.n_erroneous, 'failing contexts')} and stays "
        f"first in {share_of(round(check.kept * check.n_correct), check.n_correct, 'right ones')}."
    )
