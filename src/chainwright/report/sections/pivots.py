"""Pivots: where responses lose their chance to end right, each with its value along the tokens and its other tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from chainwright import figures
from chainwright._registry import register
from chainwright.diagnose.pivots.completers import in_words
from chainwright.diagnose.pivots.finding import STATUS_WORDS, Pivots
from chainwright.report.readings import with_spaces
from chainwright.report.section import Material, Section, drawn

_MOST_SHOWN = 6
_LONGEST_SIDE = 400  # characters of the response that are shown on each side of a pivot


@register("section", "pivots")
def section(material: Material) -> Section | None:
    """Return the section; None without a search for pivots."""
    found = material.of(Pivots)
    if not found:
        return None
    charts: dict[str, Any] = {}
    words = {"searches": [_search(k, one, charts) for k, one in enumerate(found)]}
    return Section("pivots", "Pivots", words, charts, order=350, shows=found)


def _search(k: int, found: Pivots, charts: dict[str, Any]) -> dict[str, Any]:
    """Draw the figures of one search and return what the template says of it."""
    counts = Counter(row["status"] for row in found.rows)
    first = [pivot for pivot in found.pivots if pivot["is_first_error"]]
    ordered = sorted(first, key=lambda p: (p["end"] - p["position"] > 1, not p["is_certain"], p["trace"]))
    shown = [_shown(f"pivot-{k}-{n}", pivot, found, charts) for n, pivot in enumerate(ordered[:_MOST_SHOWN])]
    return {
        "counts": [{"responses": n, "outcome": STATUS_WORDS[status]} for status, n in counts.most_common()],
        "selection": [{"problems": n, "why": why} for why, n in found.selection.items() if n],
        "n_responses": len(found.rows),
        "n_continuations": found.n_continuations,
        "completer": in_words(found.config),
        "is_exact": found.config.get("sampling") is None,
        "drop": found.config.get("drop"),
        "error_rate": found.config.get("error_rate"),
        "n_cut": sum(row["n_cut"] for row in found.rows),
        "n_unread": sum(row["n_unread"] for row in found.rows),
        "n_first": len(first),
        "made_good": [_line(pivot) for pivot in found.pivots if not pivot["is_first_error"]],
        "shown": shown,
        "rest": [_line(pivot) for pivot in ordered[_MOST_SHOWN:]],
    }


def _shown(name: str, pivot: Mapping[str, Any], found: Pivots, charts: dict[str, Any]) -> dict[str, Any]:
    i = pivot["trace"]
    curve, marks = found.curve(i), found.marks(i)
    narrow = figures.value_along(curve, marks, is_narrow=True)
    charts[name] = drawn(figures.value_along(curve, marks), [_row(row) for row in curve], narrow=narrow)
    before, written, after = _around(found, pivot)
    return {
        **_line(pivot),
        "chart": name,
        "before_text": before,
        "written": written,
        "after_text": after,
        "alternatives": [_alternative(each, pivot) for each in pivot["alternatives"]],
        "n_continuations": found.rows[i]["n_continuations"],
    }


def _around(found: Pivots, pivot: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the text of the response before a pivot, at it, and after it, cut to what is near."""
    ids, start = found.ids_of(pivot["trace"]), int(found.response_start[pivot["trace"]])
    texts = with_spaces(
        [found.token_strs.get(str(token), "") for token in ids[start:]], found.responses[pivot["trace"]]
    )
    first, last = pivot["position"] - start, pivot["end"] - start
    before, written, after = ("".join(part) for part in (texts[:first], texts[first:last], texts[last:]))
    before = before if len(before) <= _LONGEST_SIDE else f"… {before[-_LONGEST_SIDE:]}"
    after = after if len(after) <= _LONGEST_SIDE else f"{after[:_LONGEST_SIDE]} …"
    return before, written, after


def _line(pivot: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "trace": pivot["trace"],
        "position": pivot["position"],
        "n_tokens": pivot["end"] - pivot["position"],
        "step": pivot["step"],
        "token": pivot["token"],
        "is_certain": pivot["is_certain"],
        "before": _share(pivot["before"]),
        "after": _share(pivot["after"]),
        "back": pivot["back"],
    }


def _alternative(each: Mapping[str, Any], pivot: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "token": repr(each["token"]),
        "p": each["p"],
        "value": _share(each),
        "is_expected": each["token_id"] == pivot["expected_id"],
    }


def _share(value: Mapping[str, Any]) -> str:
    if value["value"] is None:
        return "unknown"
    spent = f", {value['n_right']} of {value['n']}" if value["n"] else ""
    return f"{value['value']:.2f} ({value['low']:.2f}-{value['high']:.2f}{spent})"


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"tokens": row["position"], "last token": row["token"], "value": row["value"], "low": row["low"],
            "high": row["high"], "continuations": row["n"]}  # fmt: skip
