"""Steps: the step maps of some traces with all their layers, and right against wrong traces by depth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from chainwright import figures
from chainwright._registry import register
from chainwright.diagnose.steps.comparison import StepGroups
from chainwright.diagnose.steps.saliency import StepSaliency
from chainwright.figures.words import title_of
from chainwright.report.readings import outcome_label, with_spaces
from chainwright.report.section import Material, Section, drawn
from chainwright.traces import Trace

_MOST = 12
_MAX_BYTES = 1_500_000
_LONGEST_TEXT = 280


@register("section", "steps")
def section(material: Material) -> Section | None:
    """Return the section; None without step maps or a comparison of some."""
    maps, groups = material.of(StepSaliency), material.of(StepGroups)[:1]
    if not maps and not groups:
        return None
    shown = map_data(_chosen(maps, material), material)
    words: dict[str, Any] = {
        "n_shown": len(shown),
        "n_maps": len(maps),
        "has_traces": any(one["trace"] is not None for one in shown),
        "compares": material.origin is not None and material.origin.is_diagnosis,
        "is_open": not any(trace.problem is not None and trace.problem.slots for trace in material.traces),
        "thinned": any(len(one["layers"]) < one["n_layers"] for one in shown),
        "decades": figures.DECADES,
    }
    drawings = {}
    for found in groups:
        rows = found.curves()
        words |= {"n_pairs": len(found.right), "n_unmatched": found.n_unmatched, "summary": found.summary()}
        words |= {"by_length": found.matched_on == "length", "max_ratio": found.config.get("max_ratio")}
        words["max_distance"] = found.config.get("max_distance")
        drawings["step-curves"] = drawn(found.plot(), rows, narrow=found.plot(columns=1))
    return Section("steps", "Steps", words, drawings, shown or None, order=600, shows=[*maps, *groups])


def _chosen(maps: Sequence[StepSaliency], material: Material) -> list[StepSaliency]:
    """Return at most 12 maps, by turns of a wrong trace and a right one, cell by cell."""
    queues: dict[Any, list[StepSaliency]] = {}
    wrong_first = sorted(maps, key=lambda one: not _is_wrong(one, material))
    for one in wrong_first:
        queues.setdefault(_kind(one, material), []).append(one)
    order = [one for turn in range(len(maps)) for queue in queues.values() for one in queue[turn : turn + 1]]
    return order[:_MOST]


def _is_wrong(one: StepSaliency, material: Material) -> bool:
    trace = _trace(one, material)
    return trace is not None and (trace.first_error is not None or trace.outcome == "wrong")


def _trace(one: StepSaliency, material: Material) -> Trace | None:
    """Return the trace that a map is of; None in a report without it."""
    i = one.config.get("trace")
    return material.traces[i] if isinstance(i, int) and 0 <= i < len(material.traces) else None


def _kind(one: StepSaliency, material: Material) -> Any:
    trace = _trace(one, material)
    if trace is None or trace.problem is None:
        return None
    return trace.problem.task, trace.problem.hops, trace.outcome if not trace.problem.slots else trace.is_exact is True


def map_data(maps: Sequence[StepSaliency], material: Material, max_bytes: int = _MAX_BYTES) -> list[Any]:
    """Return plain values of maps for the page, each within its share of a number of bytes.

    A map with too many layers keeps some at even distances; one too large even with a single layer is not shown.
    """
    found = []
    for i, one in enumerate(maps):
        data = _one(one, i, material)
        size = len(json.dumps(data["values"], separators=(",", ":")))
        n_kept = min(len(one.map), len(one.map) * (max_bytes // len(maps)) // size)
        if n_kept:
            kept = sorted({round(k * (len(one.map) - 1) / max(1, n_kept - 1)) for k in range(n_kept)})
            found.append({**data, "layers": kept, "values": [data["values"][layer] for layer in kept]})
    return found


def _one(one: StepSaliency, i: int, material: Material) -> dict[str, Any]:
    """Return a map as its lower triangles, in hundredths of a decade, 100 `DECADES` for its largest entry."""
    n = len(one.steps)
    logs = (100 * figures.log_map(one.map)).tolist()
    return {
        "label": f"map {i}",
        "trace": None,
        "texts": None,
        "error": None,
        "n_layers": len(one.map),
        "top": float(one.map.max()),
        "starts": [start for start, _ in one.steps],
        "segments": one.segments,
        "borders": figures.segment_borders(one.segments),
        "values": [[round(square[row][k]) for row in range(n) for k in range(row + 1)] for square in logs],
        **_of_trace(one, material),
    }


def _of_trace(one: StepSaliency, material: Material) -> dict[str, Any]:
    """Return what the trace of a map says: its name, the text of each step, and the step of its first error."""
    trace = _trace(one, material)
    if trace is None:
        return {}
    i = one.config["trace"]
    spaced = with_spaces(material.token_strs[i], (trace.prompt or "") + (trace.response or ""))
    hops = "" if trace.problem is None or not trace.problem.hops else f", {trace.problem.hops} hops"
    what = "" if trace.problem is None else f", {title_of(trace.problem.task)}{hops}"
    wrong = trace.first_error
    known = outcome_label(trace) if trace.problem is None or not trace.problem.slots else "right"
    at = trace.first_error_position
    in_trace = at is not None and at < len(trace)
    texts = [_cut("".join(spaced[start:end]).strip()) for start, end in one.steps]
    return {
        "label": f"trace {i}{what}: {known if wrong is None else wrong.error_type}",
        "trace": i,
        "texts": texts if material.has_tokens else None,
        "error": one.step_of(at) if at is not None and in_trace else None,
    }


def _cut(text: str) -> str:
    """Return the end of a text that is too long: that of a question is what differs."""
    return text if len(text) <= _LONGEST_TEXT else "\u2026" + text[-_LONGEST_TEXT:]
