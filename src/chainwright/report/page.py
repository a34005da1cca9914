"""The HTML report of a diagnosis: one file with styles, scripts, Plotly and all data in it.

1. Python says everything that is words (`words`), draws the figures (`figures`) and picks the traces (`readings`).
2. A template lays the words out; figures and traces go into the page as JSON.
3. The page's scripts draw them in the reader's theme and width, and answer clicks and keys.

The same diagnosis gives the same bytes. Nothing is loaded from elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import plotly.graph_objects as go
import plotly.io as pio
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from chainwright._files import atomic_file
from chainwright.diagnose import RoleFinding
from chainwright.report import figures, words
from chainwright.report.readings import pick_traces, reader_data
from chainwright.report.theme import template
from chainwright.study import Diagnosis

SCRIPTS = ("figures.js", "heads.js", "traces.js")
ROLES = {
    "erroneous_processing": "Erroneous-processing: the wrong token lives on them",
    "correct_processing": "Correct-processing: the right token lives on them",
    "answer_writing": "Answer-writing: they write the token that is said",
    "basic": "Basic: without them hardly anything is left, right or wrong",
}


class MapGroup(NamedTuple):
    """Head maps that answer one question."""

    title: str
    reading: str
    maps: tuple[str, ...]


MAP_GROUPS = (
    MapGroup(
        "Which heads write the answer?",
        "Directly, by what they add to the residual stream. Dots: the answer-writing heads. Both maps share a scale; "
        "what pushes against the token by more than \u22121 has the colour of \u22121.",
        ("writing_correct", "writing_erroneous"),
    ),
    MapGroup(
        "Which heads do the predictions lean on?",
        "Probability lost or won when the head is silenced, by whatever way. Dots: the correct-processing heads, the "
        "erroneous-processing heads, the best head. The two effects share a scale.",
        ("effect_correct", "effect_erroneous", "rectification"),
    ),
    MapGroup(
        "Which head, silenced, would mend more than it breaks?",
        "High in both maps is what to look for. Dot: the best head, the one with the highest sum.",
        ("corrected", "kept"),
    ),
)


def write_report(diagnosis: Diagnosis, path: Path) -> Path:
    """Write the report of a diagnosis as one HTML file that opens offline, and return its path.

    Args:
        diagnosis: What `run_diagnosis` or `open_diagnosis` returned.
        path: The file to write; one that is there is replaced when the new one is complete.

    Raises:
        BadInput: The disk is full or the place cannot be written.
    """
    page = render(diagnosis)
    with atomic_file(Path(path)) as draft:
        draft.write_text(page, encoding="utf-8", newline="\n")
    return Path(path)


def render(diagnosis: Diagnosis) -> str:
    """Return the report as a string."""
    loader = jinja2.FunctionLoader(_read)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"percent": words.percent, "counted": words.counted, "head": words.head_name}
    scripts = [get_plotlyjs(), *(_read(name) for name in SCRIPTS)]
    return environment.get_template("report.html").render(
        style=Markup(_read("report.css")),  # ours, not a reader's: nothing in it needs escaping
        scripts=[Markup(script) for script in scripts],
        data=as_json(_data(diagnosis)),
        **_words(diagnosis),
    )


def as_json(value: Any) -> Markup:
    """Return a value as JSON that can stand inside a script element, whatever text is in it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _read(name: str) -> str:
    return (files("chainwright.report") / name).read_text(encoding="utf-8")


def _words(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return everything that the template says in words."""
    chance = words.chance_levels(diagnosis.traces)
    return {
        "model": diagnosis.config.model,
        "facts": _facts(diagnosis),
        "summary": [line.split(": ", 1) for line in diagnosis.summary()],
        "certainty": words.certainty(diagnosis),
        "breaking": words.breaking_points(diagnosis.accuracy),
        "chance": words.chance_note(chance),
        "n_errors": sum(row["n"] for row in diagnosis.errors.by_task),
        "key_share": diagnosis.errors.config.get("key_share", 0.3),
        "n_entropies": len(diagnosis.errors.entropy),
        "roles": [_role_words(found) for found in diagnosis.roles],
        "maps": figures.MAPS,
        "map_groups": MAP_GROUPS,
        "n_groups": len(pick_traces(diagnosis)),
        "skipped": diagnosis.skipped,
        "command": words.command(diagnosis.config),
        "config": json.dumps(diagnosis.config.record(), indent=2, ensure_ascii=False),
    }


def _facts(diagnosis: Diagnosis) -> list[str]:
    source, config = diagnosis.provenance, diagnosis.config
    shown = [source.get(key, "") for key in ("model_type", "shape", "dtype")]
    versions = [f"{name} {source[name]}" for name in ("chainwright", "torch", "transformers") if name in source]
    revision = f"revision {source['revision']}" if source.get("revision") else ""
    drawn = "greedy" if config.temperature == 0 else f"temperature {config.temperature:g}"
    asked = f"{words.counted(config.n, 'problem')} a cell, {config.rendering} rendering, {drawn}, seed {config.seed}"
    return [part for part in (revision, *shown, asked, *versions) if part]


def _role_words(found: RoleFinding) -> dict[str, Any]:
    best = found.roles.best_head
    return {
        "label": _label(found),
        "sets": f"{words.counted(found.roles.n_erroneous, 'failing context')} and "
        f"{words.counted(found.roles.n_correct, 'right one')} matched in kind of slot and hop",
        "heads": [(label, getattr(found.roles, name)) for name, label in ROLES.items()],
        "best": best,
        "corrected": float(found.roles.corrected[best]),
        "kept": float(found.roles.kept[best]),
        "check": words.check_sentence(found.check),
    }


def _label(found: RoleFinding) -> str:
    return f"{words.title_of(found.task)}: {found.error_type}"


def _data(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return everything that the page's scripts draw."""
    return {
        "themes": {ground: template(ground).to_plotly_json() for ground in ("light", "dark")},
        "figures": _figures(diagnosis),
        "heads": [_head_data(found) for found in diagnosis.roles],
        "reader": reader_data(diagnosis, pick_traces(diagnosis)),
    }


def _figures(diagnosis: Diagnosis) -> dict[str, Any]:
    accuracy, errors = diagnosis.accuracy, diagnosis.errors
    chance = words.chance_levels(diagnosis.traces)
    hops: dict[str, list[int]] = {}
    for row in accuracy.rows:
        hops.setdefault(row["task"], []).append(row["hops"])
    drawn = {
        "accuracy": _record(
            [figures.accuracy_by_hops(accuracy, chance=chance, columns=c) for c in (4, 2)], accuracy.rows, len(hops)
        )
    }
    if errors.by_task:
        drawn["error-types"] = _record(
            [figures.error_types(errors), figures.error_types(errors, room=0.9)], errors.by_task
        )
        by_hops = [figures.errors_by_hops(errors, hops=hops, columns=c) for c in (4, 2)]
        drawn["errors-by-hops"] = _record(by_hops, errors.rows, len(hops))
    if errors.entropy:
        drawn["entropy"] = _record([figures.entropy_by_slot(errors)], errors.entropy)
    return drawn


def _record(drawn: Sequence[go.Figure], rows: Sequence[Mapping[str, Any]], n_panels: int = 4) -> dict[str, Any]:
    """Return a figure for wide pages, and another for narrow ones if there is one, with its table."""
    columns = list(rows[0])
    return {
        "variants": [plain_figure(fig) for fig in drawn],
        "max_width": 340 * max(n_panels, 2) if n_panels < 4 else None,
        "table": {"columns": columns, "rows": [[row[name] for name in columns] for row in rows]},
    }


def _head_data(found: RoleFinding) -> dict[str, Any]:
    return {
        "label": _label(found),
        "best": list(found.roles.best_head),
        "maps": {name: plain_figure(figures.head_map(found, name)) for name in figures.MAPS},
    }


def plain_figure(fig: go.Figure) -> dict[str, Any]:
    """Return a figure as plain values without its template, which the page sets by theme."""
    plain: dict[str, Any] = json.loads(pio.to_json(fig, engine="json"))
    del plain["layout"]["template"]
    return plain
