"""The command `problems`."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from chainwright._registry import register
from chainwright.cli._command import ConfigOptions, Values
from chainwright.cli._problems import PROBLEM_SET, problem_source
from chainwright.cli._shared import out, print_table, say

if TYPE_CHECKING:
    from chainwright.tasks import Problem
    from chainwright.tasks.problem_sets import ProblemSet

_N_BAD, _MOST_VALUES, _LONGEST = 10, 20, 1200
_OPTIONS = ConfigOptions(PROBLEM_SET.place, *PROBLEM_SET.names[1:], flags=PROBLEM_SET.flags)


@register("command", "problems")
def problems(
    source: Annotated[
        str, typer.Argument(help="A JSONL, JSON, CSV, TSV or Parquet file, a folder, or a Hub data set.")
    ],
    n: Annotated[int | None, typer.Option("-n", help="Number of problems (default: all).")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Draw a random sample (default: the first).")] = None,
    n_shown: Annotated[int, typer.Option("--examples", help="Problems to print.")] = 2,
    options: Values = _OPTIONS,
) -> None:
    """Show what is read from a problem set: its kind, fields, checker, labels, and records that cannot be used."""
    wanted = problem_source({"source": source, **options}, n=n, seed=seed)
    assert wanted is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the notes are printed below
        read = wanted.replace(skip_bad=True).load()
    _print_summary(source, read)
    if read.bad_records:
        _print_bad(read, skips=wanted.skip_bad)
    print_table("Labels", list(_labels(read.problems)))
    for i, problem in enumerate(read.problems[:n_shown], 1):
        _print_problem(i, problem)


def _print_summary(source: str, read: ProblemSet) -> None:
    checkers = Counter(problem.checker for problem in read.problems)
    named = ", ".join(name if len(checkers) == 1 else f"{name} ({count})" for name, count in checkers.most_common())
    say(f"{source}: {len(read.problems):,} problems from {read.n_records:,} records, called {read.name!r}.")
    say(f"Kind: {read.kind}. Fields: {', '.join(read.fields)}. Checker: {named}.")
    if read.unread:
        say(f"Fields that are not read: {', '.join(read.unread)}.")
    n_solved = sum(bool(problem.chain) for problem in read.problems)
    say(f"Worked solutions: {n_solved:,}." if n_solved else "There are no worked solutions.")
    for note in read.notes:
        say(note)


def _print_bad(read: ProblemSet, *, skips: bool) -> None:
    more = len(read.bad_records) - _N_BAD
    rows = [{"record": bad.place, "what is wrong": bad.reason} for bad in read.bad_records[:_N_BAD]]
    print_table(f"Records that cannot be used ({len(read.bad_records)})", rows)
    if more > 0:
        say(f"... and {more} more.")
    say("They are left out." if skips else "Other commands refuse the set for them; leave them out with --skip-bad.")


def _labels(problems: list[Problem]) -> Iterator[dict[str, object]]:
    """Yield how often each value of a label occurs; of labels with many values only their number."""
    for name in dict.fromkeys(name for problem in problems for name in problem.labels):
        counts = Counter(problem.labels[name] for problem in problems if name in problem.labels)
        if len(counts) > _MOST_VALUES:
            yield {"label": name, "values": f"{len(counts):,} different values, such as {next(iter(counts))!r}"}
        else:
            yield {"label": name, "values": ", ".join(f"{value} ({count:,})" for value, count in counts.most_common())}


def _print_problem(i: int, problem: Problem) -> None:
    out.rule(f"problem {i}")
    say(_shortened(problem.prompt))
    if problem.chain:
        say(f"\nWorked solution:\n{_shortened(problem.chain)}")
    say(f"\nRight answer: {problem.answer}")


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ... ({len(text) - _LONGEST:,} more characters)"
