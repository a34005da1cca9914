"""Accuracy: against hops for tasks, by label for problem sets, and the answers that could not be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chainwright import figures
from chainwright._registry import register
from chainwright.evaluation.accuracy import Accuracy, n_read
from chainwright.figures.words import counted, span_of
from chainwright.report.section import Material, Section, drawn
from chainwright.report.words import breaking_points, chance_levels, chance_note

_N_SHOWN, _N_CHARACTERS = 10, 100
_COLUMNS = {"trace": "trace", "answer": "right answer", "rule": "what was tried", "end": "end of the response"}


@register("section", "accuracy")
def section(material: Material) -> Section | None:
    """Return the section; None without an accuracy."""
    accuracy = next((each for each in material.of(Accuracy) if each.rows), None)
    if accuracy is None:
        return None
    sets = [row for row in accuracy.rows if row["hops"] == 0]
    tasks = [row for row in accuracy.rows if row["hops"] != 0]
    words: dict[str, Any] = {"breaking": breaking_points(accuracy), "each": _each(tasks), "each_set": _each(sets)}
    words |= {"n_unread": sum(int(row["n"]) - n_read(row) for row in tasks), "has_tasks": bool(tasks)}
    words |= _answers(accuracy)
    charts: dict[str, Any] = {}
    chance = {task: level for task, level in chance_levels(material.traces).items() if _is_among(task, tasks)}
    if tasks:
        wide, narrow = (figures.accuracy_by_hops(tasks, chance=chance, columns=c) for c in (4, 2))
        n_tasks = len({row["task"] for row in tasks})
        max_width = 340 * max(n_tasks, 2) if n_tasks < 4 else None
        charts["accuracy"] = drawn(wide, tasks, narrow=narrow, max_width=max_width)
    if sets:
        table = [{"label": "", "value": "", **row} for row in sets] + accuracy.by_label
        keys = ("task", "label", "value", "n", "accuracy", "low", "high", "n_unread", "n_cut_answers")
        rows = [{key: row.get(key, 0) for key in keys} for row in table]
        charts["accuracy-by-label"] = drawn(figures.accuracy_by_label(sets, accuracy.by_label), rows, max_width=760)
    words |= {"chance": chance_note(chance), "has_sets": bool(sets)}
    return Section("accuracy", "Accuracy", words, charts, order=100, shows=[accuracy])


def _is_among(task: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    return any(row["task"] == task for row in rows)


def _each(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return how many problems a point stands for."""
    counts = {int(row["n"]) for row in rows}
    return "" if not counts else counted(1, "problem") if counts == {1} else f"{span_of(counts)} problems"


def _answers(accuracy: Accuracy) -> dict[str, Any]:
    """Return what is said of answers that are neither right nor wrong."""
    rows = accuracy.rows
    return {
        "n_answers": sum(int(row["n"]) for row in rows),
        "n_unread_answers": sum(int(row.get("n_unread", 0)) for row in rows),
        "n_cut_answers": sum(int(row.get("n_cut_answers", 0)) for row in rows),
        "columns": list(_COLUMNS.values()),
        "unread": [{title: _cell(row[key]) for key, title in _COLUMNS.items()} for row in accuracy.unread[:_N_SHOWN]],
    }


def _cell(value: Any) -> Any:
    """Return a text on one line, of its end if it is long."""
    return " ".join(value.split())[-_N_CHARACTERS:] or "(nothing)" if isinstance(value, str) else value
