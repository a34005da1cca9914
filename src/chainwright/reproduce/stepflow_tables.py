"""The tables of a finished study of StepFlow, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from chainwright import tasks
from chainwright._files import read_json
from chainwright.evaluation import Comparison, compare
from chainwright.repair._card import table
from chainwright.repair.stepflow import StepFlow
from chainwright.reproduce.stepflow import ReproduceStepFlow, mended_errors
from chainwright.studies import Results


def study_lines(plan: ReproduceStepFlow, done: Results) -> Iterator[str]:
    """Yield every table, line by line."""
    found = Comparison.load(done["comparison"] / "comparison")
    n = found.overall(found.baseline)["n"]
    yield from _titled(f"All {n} problems, beside '{found.baseline}'", [_way(plan, found, way) for way in plan.ways])
    yield from _titled("Answers right by task", _by_task(plan, found))
    plain = plan.traces(done, plan.ways[0])
    for way in ("both", "tuned"):
        yield from _titled(f"First errors: {way}", mended_errors(plain, plan.traces(done, way)))
    control = plan.control_traces(done)
    names = list(control)
    row = compare(control).overall(names[1])
    yield from _titled(
        f"Positive control: lock-in planted in layer {plan.asked.control_layer}, CLF with "
        f"{plan.asked.control_hops} hops, {row['n']} problems",
        [_control_row(compare(control).overall(name)) for name in names],
    )
    tuned = StepFlow.from_pretrained(done["repair"] / "repair")
    layers = read_json(done["maps"] / "layers.json")
    yield f"Tuned: {tuned.settings()}. {tuned.origin.note}"
    yield f"Layers by one diagnosis pass: bridge {layers['bridge']}, momentum {layers['momentum']}."
    for name in ("lock_in", "decay_share"):
        yield f"Mean {name} by layer: {', '.join(f'{value:.3f}' for value in layers[name])}."


def _titled(title: str, rows: list[dict[str, Any]]) -> Iterator[str]:
    yield from (f"### {title}", "", *(table(rows) if rows else ["None."]), "")


def _way(plan: ReproduceStepFlow, found: Comparison, way: str) -> dict[str, Any]:
    row = found.overall(way)
    return {
        "way": way,
        "decodings": plan.n_decodings(way),
        "answers right": f"{row['accuracy']:.3f}",
        "gain": f"{row['gain']:+.3f}",
        "95%": f"{row['gain_low']:+.3f} to {row['gain_high']:+.3f}",
        "chains right": f"{row['exact']:.3f}",
        "chains gain": f"{row['exact_gain']:+.3f}",
        "chains 95%": f"{row['exact_gain_low']:+.3f} to {row['exact_gain_high']:+.3f}",
        "mended": row["n_mended"],
        "broken": row["n_broken"],
    }


def _by_task(plan: ReproduceStepFlow, found: Comparison) -> list[dict[str, Any]]:
    rows = []
    for way in plan.ways:
        here: Mapping[str, float] = {
            row["task"]: row["accuracy"]
            for row in found.rows
            if row["name"] == way and row["hops"] is None and row["task"] != "all"
        }
        rows.append({"way": way, **{tasks.title(task): f"{value:.3f}" for task, value in here.items()}})
    return rows


def _control_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "way": row["name"],
        "chains right": f"{row['exact']:.3f}",
        "gain": f"{row['exact_gain']:+.3f}",
        "95%": f"{row['exact_gain_low']:+.3f} to {row['exact_gain_high']:+.3f}",
        "mended": row["n_mended"],
        "broken": row["n_broken"],
    }
