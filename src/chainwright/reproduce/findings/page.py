"""The page of findings: one table per paper, and below it by which rule, and what was chosen where.

It is made of the records alone, so it says nothing that no file says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from chainwright._errors import BadInput
from chainwright.reproduce.findings.catalogue import FINDINGS, PAPERS, Published
from chainwright.reproduce.findings.results import Result

_SMALL, _REAL, _OTHER = "small models", "SmolLM2", "other models"
SMALL = ("reasoner", "compass", "world", "world-e2", "laboratory")
"""Names in records of models trained here on made-up words; those of the laboratory are trained by its command."""

_HEAD = """# Findings: published, on small models, on SmolLM2

Each finding of the four papers that Chainwright implements, held against two kinds of models: small ones of about a
million parameters that were trained here (named in the cell), and SmolLM2-135M, pretrained, alone or with adapters
trained here. The papers measured models of 1.5 to 32 billion parameters, so a disagreement is about these models and
tasks, and no refutation.

This page is written by `chainwright reproduce findings` from the records in `docs/results`. Below each table stand its
commands, numbered as in the last column, the rules, and what was chosen on other data. Intervals are at 95%."""


def findings_page(results: Sequence[Result]) -> str:
    """Return the page as Markdown.

    Raises:
        BadInput: Nothing, not even a reason, is recorded for a finding on SmolLM2.
    """
    if missing := [f for f in FINDINGS if not any(r.finding == f and column(r) == _REAL for r in results)]:
        raise BadInput(
            f"There is no result on SmolLM2 for {', '.join(missing)}; measure it, or record 'not run' with the reason."
        )
    lines = [_HEAD, "", *tally(results)]
    for paper, title in PAPERS.items():
        mine = [finding for finding in FINDINGS.values() if finding.paper == paper]
        lines += ["", f"## {title}", "", *_table(mine, results), "", *_below(mine, results)]
    return "\n".join(lines) + "\n"


def column(result: Result) -> str:
    """Return the column that a result belongs to."""
    if result.model in SMALL:
        return _SMALL
    return _REAL if "smollm2" in result.model else _OTHER


def _columns(results: Sequence[Result]) -> list[str]:
    return [_SMALL, _REAL, *([_OTHER] if any(column(r) == _OTHER for r in results) else [])]


def tally(results: Sequence[Result]) -> Iterator[str]:
    """Yield a line per column: how many results got which verdict."""
    for name in _columns(results):
        verdicts = [r.verdict for r in results if column(r) == name]
        counts = ", ".join(f"{v} {verdicts.count(v)}" for v in sorted(set(verdicts)))
        yield f"- {name}: {counts or 'nothing recorded'}"


def _table(findings: Sequence[Published], results: Sequence[Result]) -> Iterator[str]:
    names, numbers = _columns(results), _numbered(findings, results)
    yield f"| finding | published | {' | '.join(names)} | verdict | command |"
    yield "|" + "---|" * (len(names) + 4)
    for finding in findings:
        mine = [result for result in results if result.finding == finding.id]
        cells = ["<br>".join(_shown(r) for r in mine if column(r) == name) for name in names]
        verdicts = [f"{r.model}: {r.verdict}" for r in mine]
        commands = sorted({numbers[r.command] for r in mine if r.command})
        cells = [
            f"{finding.statement} `{finding.id}`",
            finding.published,
            *cells,
            "<br>".join(verdicts),
            ", ".join(map(str, commands)),
        ]
        yield "| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |"


def _numbered(findings: Sequence[Published], results: Sequence[Result]) -> dict[str, int]:
    """Return the commands that measured some findings, numbered from 1 in the order in which the table needs them."""
    commands = dict.fromkeys(r.command for f in findings for r in results if r.finding == f.id and r.command)
    return {command: i for i, command in enumerate(commands, 1)}


def _shown(result: Result) -> str:
    """Return a result as a cell: model, value, interval, number and seeds."""
    if result.outcome != "measured":
        return f"{result.model}: {result.outcome}. {result.reason}"
    details = []
    if result.low is not None:
        details.append(f"{result.low:.3g} to {result.high:.3g}")
    if result.n is not None:
        details.append(f"{result.n} {result.n_what}")
    if result.seeds:
        details.append(f"seed{'s' * (len(result.seeds) > 1)} {', '.join(map(str, result.seeds))}")
    return f"{result.model}: {result.shown}" + (f" ({'; '.join(details)})" if details else "")


def _below(findings: Sequence[Published], results: Sequence[Result]) -> Iterator[str]:
    """Yield the numbered commands, the rule of each finding, then what was chosen where and the notes."""
    yield "Commands:"
    yield ""
    for command, i in _numbered(findings, results).items():
        yield f"{i}. `{command}`"
    yield ""
    yield "What is measured, and when it agrees:"
    yield ""
    for finding in findings:
        yield f"- `{finding.id}`: {finding.value} It {finding.rule.words}."
    said = [r for f in findings for r in results if r.finding == f.id and (r.chosen_on or r.note)]
    if said:
        yield ""
        yield "What was chosen where, and notes:"
        yield ""
    for result in said:
        yield f"- `{result.finding}`, {result.model}: {' '.join(filter(None, [result.chosen_on, result.note]))}"
