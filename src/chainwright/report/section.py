"""What a section of the report is, and what it is made from.

To add a section, write `sections/<name>.py` with one function that takes a `Material` and returns a `Section`, or None
where it has nothing to say; put it into `sections.SECTIONS`, at its place on the page. What it says stands in
`sections/<name>.html`, a Jinja template that gets `Section.words`; if it needs them, `sections/<name>.js` and
`sections/<name>.css` stand beside it and go into the page with it. `docs/report.md` shows one whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import plotly.graph_objects as go
import plotly.io as pio

from chainwright._finding import Finding
from chainwright.studies.diagnosis.run import Diagnosis
from chainwright.studies.manifest import Manifest

F = TypeVar("F", bound=Finding)
Table = Mapping[str, Any]


@dataclass(frozen=True)
class Material:
    """Everything that a report can be made from.

    Attributes:
        diagnosis: What a diagnosis found, if there was one.
        findings: Whatever else was measured.
        study: What the study says of itself that the findings are of, if they are of one.
    """

    diagnosis: Diagnosis | None
    findings: Sequence[Finding] = ()
    study: Manifest | None = None

    def of(self, kind: type[F]) -> list[F]:
        """Return the findings of one kind."""
        return [finding for finding in self.findings if isinstance(finding, kind)]


@dataclass(frozen=True)
class Section:
    """One section of the page.

    Attributes:
        name: Its address on the page, and the name of its files.
        nav: What the bar at the top calls it; a word.
        words: What its template says.
        figures: Its figures by name (see `drawn`), drawn where the template has `chart(name, ...)`. The names are those
            of the files that a reader saves, so they differ over the whole page.
        data: What its script reads as `page.section(name)`; plain values.
    """

    name: str
    nav: str
    words: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Table] = field(default_factory=dict)
    data: Any = None


Builder = Callable[[Material], Section | None]


def drawn(
    wide: go.Figure, rows: Sequence[Mapping[str, Any]], *, narrow: go.Figure | None = None, max_width: int | None = None
) -> dict[str, Any]:
    """Return a figure as the page wants it, with the table that is saved as CSV.

    Args:
        wide: The figure for pages wide enough.
        rows: Its numbers, one or more rows with the same keys.
        narrow: Another figure of the same for narrow pages.
        max_width: Width in pixels that it is not to exceed.
    """
    columns = list(rows[0])
    return {
        "variants": [plain_figure(fig) for fig in (wide, narrow) if fig is not None],
        "max_width": max_width,
        "table": {"columns": columns, "rows": [[row[name] for name in columns] for row in rows]},
    }


def plain_figure(fig: go.Figure) -> dict[str, Any]:
    """Return a figure as plain values without its template, which the page sets by theme."""
    plain: dict[str, Any] = json.loads(pio.to_json(fig, engine="json"))
    plain["layout"].pop("template", None)
    return plain
