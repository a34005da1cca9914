"""The HTML report: one file with styles, scripts, Plotly and all data in it.

1. Every registered section says in Python everything that is words and draws its figures.
2. Its template lays the words out; figures and other data go into the page as JSON.
3. The page's scripts draw them in the reader's theme and width, and answer clicks and keys.

The same material gives the same bytes. Nothing is loaded from elsewhere.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from chainwright import _registry
from chainwright._errors import BadInput
from chainwright._files import atomic_file
from chainwright._finding import Finding
from chainwright._tables import cell, numeric_columns
from chainwright.figures import template, words
from chainwright.report import others
from chainwright.report.gather import gather
from chainwright.report.section import Builder, Material, Origin, Section
from chainwright.scoring import TokenScores
from chainwright.traces import Trace
from chainwright.traces.offsets import Tokenizer


class _Built(NamedTuple):
    """A section with the function that made it, beside which its files lie."""

    section: Section
    builder: Builder


def write_report(
    findings: Sequence[Finding] | Finding,
    path: str | Path,
    *,
    traces: Sequence[Trace] = (),
    scores: Sequence[TokenScores] | None = None,
    tokenizer: Tokenizer | None = None,
    title: str | None = None,
    study: Origin | None = None,
) -> Path:
    """Write a report as one HTML file that opens offline, and return its path.

    Every finding is shown: in the section for its kind, or else with its summary, its figure and its table.

    Args:
        findings: What instruments returned, one or several; or a `Diagnosis`, which brings its own traces.
        path: The file to write; an existing one is replaced when the new one is complete.
        traces: The traces that the findings were made from, in the order in which they were passed there. With them
            the report has a reader of traces, and what findings say of a token links into it.
        scores: `score` of each trace, by which the reader shades tokens.
        tokenizer: The tokenizer of the traces. Without it the reader shows their text, but not token by token.
        title: The title of the page.
        study: The study that the findings come from (see `write_study_report`).

    Raises:
        BadInput: There is no finding, something else was passed, the disk is full, or the place cannot be written.
    """
    material = gather(findings, traces=traces, scores=scores, tokenizer=tokenizer, title=title, origin=study)
    page = render(material)
    with atomic_file(Path(path)) as draft:
        draft.write_text(page, encoding="utf-8", newline="\n")
    return Path(path)


def render(material: Material) -> str:
    """Return the report as a string."""
    built = _build(material)
    sections = [item.section for item in built]
    environment = _environment()
    return environment.get_template("page.html").render(
        title=_title(material),
        style=Markup(_all("page", built, "css")),  # ours, not a reader's: nothing in it needs escaping
        scripts=[Markup(get_plotlyjs()), Markup(_all("page", built, "js"))],
        data=as_json(_data(sections)),
        sections=[{"name": b.section.name, "nav": b.section.nav, "html": _html(environment, b)} for b in built],
        contents=others.contents(material),
    )


def _build(material: Material) -> list[_Built]:
    """Return the sections in their order; findings that none of them shows get one together."""
    builders: list[Builder] = list(_registry.load_all("section").values())
    built = [_Built(section, build) for build in builders if (section := build(material)) is not None]
    shown = {id(finding) for item in built for finding in item.section.shows}
    rest = [finding for finding in material.findings if id(finding) not in shown]
    if (section := others.section(replace(material, findings=rest))) is not None:
        built.append(_Built(section, others.section))
    return sorted(built, key=lambda item: (item.section.order, item.section.name))


def _title(material: Material) -> str:
    if material.title or material.origin is None:
        return material.title or "report"
    origin = material.origin
    return f"{origin.kind} {'of' if origin.is_diagnosis else 'with'} {origin.model or 'no model'}"


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


def _html(environment: jinja2.Environment, item: _Built) -> Markup:
    beside = _beside(item.builder, "html")
    if not beside.is_file():
        raise BadInput(f"The report section {item.section.name!r} has no template; write {beside}.")
    return Markup(environment.from_string(beside.read_text(encoding="utf-8")).render(item.section.words))


def _beside(builder: Builder, kind: str, part: str = "") -> Traversable:
    """Return the file of a kind that belongs to a section: beside its module, with the module's name or a part's."""
    package, _, name = builder.__module__.rpartition(".")
    # a module outside any package has no resources that `files` could find
    folder = files(package) if package else Path(str(sys.modules[name].__file__)).parent
    return folder / f"{part or name}.{kind}"


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


def _all(first: str, built: Sequence[_Built], kind: str) -> str:
    """Return the page's file of a kind, and those of its sections that have one, one after another."""
    beside = [_beside(item.builder, kind, part) for item in built for part in ("", *item.section.parts)]
    return "\n".join([_read(f"{first}.{kind}"), *(f.read_text(encoding="utf-8") for f in beside if f.is_file())])


def _read(name: str) -> str:
    return (files("chainwright.report") / name).read_text(encoding="utf-8")
