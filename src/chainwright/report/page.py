"""The HTML report: one file with styles, scripts, Plotly and all data in it.

1. Every section (`sections`) says in Python everything that is words and draws its figures.
2. Its template lays the words out; figures and other data go into the page as JSON.
3. The page's scripts draw them in the reader's theme and width, and answer clicks and keys.

The same material gives the same bytes. Nothing is loaded from elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from chainwright._errors import BadInput
from chainwright._files import atomic_file
from chainwright._finding import Finding
from chainwright._tables import cell, numeric_columns
from chainwright.figures import template, words
from chainwright.report.section import Material, Section
from chainwright.report.sections import SECTIONS
from chainwright.studies.diagnosis.run import Diagnosis
from chainwright.studies.manifest import Manifest


def write_report(
    diagnosis: Diagnosis | None, path: Path, *, findings: Sequence[Finding] = (), study: Manifest | None = None
) -> Path:
    """Write a report as one HTML file that opens offline, and return its path.

    Args:
        diagnosis: What `run_diagnosis` or `open_diagnosis` returned; None for a report of findings alone.
        path: The file to write; one that is there is replaced when the new one is complete.
        findings: More findings. Those that no section knows are left out.
        study: What `study.json` says of the study that the findings are of; None if they are of none.

    Raises:
        BadInput: Nothing was given that a report can show, the disk is full, or the place cannot be written.
    """
    page = render(diagnosis, findings=findings, study=study)
    with atomic_file(Path(path)) as draft:
        draft.write_text(page, encoding="utf-8", newline="\n")
    return Path(path)


def render(diagnosis: Diagnosis | None, *, findings: Sequence[Finding] = (), study: Manifest | None = None) -> str:
    """Return the report as a string."""
    material = Material(diagnosis, (*(diagnosis.findings if diagnosis else ()), *findings), study)
    sections = [section for build in SECTIONS if (section := build(material)) is not None]
    if {section.name for section in sections} <= {"study"}:
        kinds = ", ".join(sorted({type(f).__name__ for f in findings})) or "nothing"
        raise BadInput(f"A report needs a diagnosis or a finding that it has a section for; got {kinds}.")
    environment = _environment()
    return environment.get_template("page.html").render(
        title=_title(diagnosis, study),
        style=Markup(_all("page", sections, "css")),  # ours, not a reader's: nothing in it needs escaping
        scripts=[Markup(get_plotlyjs()), Markup(_all("page", sections, "js"))],
        data=as_json(_data(sections)),
        sections=[{"name": s.name, "nav": s.nav, "html": _html(environment, s)} for s in sections],
    )


def _title(diagnosis: Diagnosis | None, study: Manifest | None) -> str:
    if diagnosis is not None:
        return f"diagnosis of {diagnosis.config.model}"
    return "report" if study is None else f"{study.kind} with {study.model.get('model', 'no model')}"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "percent": words.percent,
        "counted": words.counted,
        "head": words.head_name,
        "cell": cell,
        "numeric": numeric_columns,
    }
    return environment


def _html(environment: jinja2.Environment, section: Section) -> Markup:
    return Markup(environment.get_template(f"sections/{section.name}.html").render(section.words))


def as_json(value: Any) -> Markup:
    """Return a value as JSON that can stand inside a script element, whatever text is in it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _data(sections: Sequence[Section]) -> dict[str, Any]:
    """Return everything that the page's scripts draw."""
    figures = [item for section in sections for item in section.figures.items()]
    assert len({name for name, _ in figures}) == len(figures), "two figures of the page have the same name"
    return {
        "themes": {ground: template(ground).to_plotly_json() for ground in ("light", "dark")},
        "figures": dict(figures),
        "sections": {section.name: section.data for section in sections if section.data is not None},
    }


def _all(first: str, sections: Sequence[Section], kind: str) -> str:
    """Return the page's file of a kind, and those of its sections that have one, one after another."""
    found = [files("chainwright.report") / "sections" / f"{section.name}.{kind}" for section in sections]
    return "\n".join([_read(f"{first}.{kind}"), *(f.read_text(encoding="utf-8") for f in found if f.is_file())])


def _read(name: str) -> str:
    return (files("chainwright.report") / name).read_text(encoding="utf-8")
