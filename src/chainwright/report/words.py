"""Sentences of the report: where chains break, how sure the numbers are, and how to make them again."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from chainwright import tasks
from chainwright._stats import wilson
from chainwright.diagnose.heads.roles import HeadCheck, RoleFinding
from chainwright.evaluation.accuracy import Accuracy
from chainwright.figures.accuracy import HIGH_CHANCE
from chainwright.figures.words import between, counted, head_name, listed, percent, share_of, span_of, title_of
from chainwright.studies.diagnosis.run import DiagnoseConfig, Diagnosis
from chainwright.tasks.cells import choose_cells
from chainwright.traces import Trace

_NO_SHORT_FORM = ("model", "hops", "rendering")
_AS_OPTIONS = ("n", "seeds", "n_contexts", "repair", "temperature", "max_new_tokens", "batch_size", "dtype", "revision")


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
    """Return from which hop count on fewer than half of the chains are right, task by task."""
    broken: dict[str, int] = {}
    for row in sorted(accuracy.rows, key=lambda r: -int(r["hops"])):
        if row["exact"] is not None and row["exact"] < 0.5:
            broken[row["task"]] = int(row["hops"])
    order = dict.fromkeys(str(row["task"]) for row in accuracy.rows)
    named = [f"{title_of(task)} {broken[task]}" for task in order if task in broken]
    if not named:
        return "At every hop count asked, at least half of the chains are right."
    rest = len(order) - len(named)
    never = f"; {counted(rest, 'task')} never fell that far" if rest else ""
    return f"Fewest hops asked at which less than half of the chains are right: {', '.join(named)}{never}."


def certainty(diagnosis: Diagnosis) -> list[str]:
    """Return in sentences how far the numbers of a diagnosis can be trusted."""
    rows = diagnosis.accuracy.rows
    n_wrong = sum(row["n"] for row in diagnosis.errors.by_task)
    middle = min(int(row["n"]) for row in rows)
    interval = wilson(middle // 2, middle)
    said = [
        f"{counted(len(diagnosis.traces), 'trace')} in {counted(len(rows), 'cell')} (one task at one hop count), "
        f"{span_of(int(r['n']) for r in rows)} problems each; {counted(n_wrong, 'chain')} went wrong.",
        f"With {counted(middle, 'problem')} in a cell, a measured {percent(middle // 2 / middle)} is compatible with "
        f"{between(*interval)} (95% Wilson interval).",
    ]
    n_cut = sum(int(row["n_cut"]) for row in rows)
    if n_cut:
        said.append(f"{counted(n_cut, 'response')} met the token limit, and may count as wrong for that reason alone.")
    return said + _checks_trust(diagnosis.roles)


def _checks_trust(roles: list[RoleFinding]) -> list[str]:
    checks = [found.check for found in roles if found.check is not None]
    if not checks:
        return []
    best = max(checks, key=lambda c: c.corrected + c.kept)
    n_fixed = round(best.corrected * best.n_erroneous)
    low, high = wilson(n_fixed, best.n_erroneous)
    contexts = span_of(c.n_erroneous for c in checks)
    among = f" It is also the best of {len(checks)} that were checked, so luck favours it." if len(checks) > 1 else ""
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


def command(config: DiagnoseConfig) -> str:
    """Return what to type to make the diagnosis again: a shell command, or Python where no command can say it."""
    usual = (
        choose_cells(",".join(config.hops), None, config.rendering) if set(config.hops) <= set(tasks.names()) else {}
    )
    asked = {task: tuple(hops) for task, hops in config.hops.items()}
    plain = {name: field.default for name, field in DiagnoseConfig.model_fields.items()}
    changed = {name: getattr(config, name) for name, value in plain.items() if getattr(config, name) != value}
    same_hops = len(set(asked.values())) == 1
    if (
        (asked != usual and not same_hops)
        or len(config.seeds) > 1
        or any(name not in (*_NO_SHORT_FORM, *_AS_OPTIONS) for name in changed)
    ):
        return _python(config)
    words = ["chainwright", "diagnose", "--model", config.model, "--task", _tasks_option(asked)]
    if asked != usual:
        words += ["--hops", ",".join(map(str, next(iter(asked.values()))))]
    words += ["-n", str(config.n), "--rendering", config.rendering]
    if "seeds" in changed:
        words += ["--seed", str(config.seeds[0])]
    for name in _AS_OPTIONS[2:]:
        if name in changed:
            words += [f"--{name.replace('_', '-')}", str(changed[name])]
    return shlex.join(words)


def _tasks_option(asked: Mapping[str, Any]) -> str:
    return "all" if list(asked) == tasks.names() else ",".join(asked)


def _python(config: DiagnoseConfig) -> str:
    plain = {name: field.default for name, field in DiagnoseConfig.model_fields.items()}
    record = {name: value for name, value in config.record().items() if getattr(config, name) != plain[name]}
    settings = "\n".join(f"    {name}={value!r}," for name, value in record.items())
    return (
        "from chainwright import DiagnoseConfig, load_model, run_diagnosis\n"
        f"config = DiagnoseConfig(\n{settings}\n)\n"
        "run_diagnosis(*load_model(config.model), config, 'runs/diagnosis')"
    )
