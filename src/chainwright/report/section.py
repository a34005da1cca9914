"""What a section of the report is, and what it is made from.

A section is a function that takes a `Material` and returns a `Section`, or None where it has nothing to say, registered
by `@register("section", "<name>")`. Its template lies beside its module under the module's name (`stages.py`,
`stages.html`) and gets `Section.words`; a script (`stages.js`) and styles (`stages.css`) go into the page with it.
`docs/report.md` shows a whole one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import plotly.graph_objects as go
import plotly.io as pio

from chainwright._finding import Finding
from chainwright.scoring import TokenScores
from chainwright.traces import Trace

F = TypeVar("F", bound=Finding)
Table = Mapping[str, Any]


@dataclass(frozen=True)
class Origin:
    """The study that findings come from, as the report presents it.

    Attributes:
        kind: The kind of study, such as "diagnosis".
        is_diagnosis: Whether it is a diagnosis, whose summary heads the page.
        model: What the model was called.
        facts: Short facts on the model, the settings and the versions.
        config: All settings, as plain values.
        file: A file to save before `again` is typed, or "".
        again: What to type to make the study again.
        skipped: What was not computed, and why.
        notes: What was noticed when problems or traces were read.
        written_by: Who wrote the traces, if they are of files: the names there, maybe none; None if the model did.
        searched_heads: Whether heads were looked for.
    """

    kind: str
    is_diagnosis: bool = False
    model: str = ""
    facts: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    file: str = ""
    again: str = ""
    skipped: Sequence[str] = ()
    notes: Sequence[str] = ()
    written_by: Sequence[str] | None = None
    searched_heads: bool = False


@dataclass(frozen=True)
class Material:
    """Everything that a report is made from.

    Attributes:
        findings: What was measured.
        traces: The traces that findings refer to by number; empty in a report without traces.
        scores: Token scores of each trace; None without.
        token_strs: The text of each token of each trace. Without a tokenizer a few tokens hold the whole text.
        has_tokens: Whether `token_strs` are the texts of single tokens.
        origin: The study that the findings come from; None for findings of none.
        title: The title of the report; "" for a default.
    """

    findings: Sequence[Finding]
    traces: Sequence[Trace] = ()
    scores: Sequence[TokenScores] | None = None
    token_strs: Sequence[Sequence[str]] = ()
    has_tokens: bool = True
    origin: Origin | None = None
    title: str = ""

    def of(self, kind: type[F]) -> list[F]:
        """Return the findings of one kind."""
        return [finding for finding in self.findings if isinstance(finding, kind)]

    @property
    def model(self) -> str:
        """Return what the model is called: as in the study, or as the findings say, or "the model"."""
        known = [self.origin.model if self.origin else "", *(f.provenance.get("model", "") for f in self.findings)]
        return next(filter(None, known), "the model")


@dataclass(frozen=True)
class Section:
    """One section of the page.

    Attributes:
        name: Its address on the page.
        nav: What the bar at the top calls it; a word.
        words: What its template says.
        figures: Its figures by name (see `drawn`), drawn where the template has `chart(name, ...)`. The names are those
            of the files that a reader saves, so they differ over the whole page.
        data: What its script reads as `page.section(name)`; plain values.
        order: Its place on the page; sections with a lower number come first.
        parts: Names of further scripts and styles beside its module, which go into the page after its own.
        shows: The findings that it shows. Those that no section shows get a table in a section of their own.
    """

    name: str
    nav: str
    words: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Table] = field(default_factory=dict)
    data: Any = None
    order: int = field(kw_only=True)
    parts: Sequence[str] = field(default=(), kw_only=True)
    shows: Sequence[Finding] = field(default=(), kw_only=True)


Builder = Callable[[Material], Section | None]


def drawn(
    wide: go.Figure, rows: Sequence[Mapping[str, Any]], *, narrow: go.Figure | None = None, max_width: int | None = None
) -> dict[str, Any]:
    """Return a figure as the page wants it, with the table that is saved as CSV.

    Args:
        wide: The figure for pages wide enough.
        rows: Its numbers, rows with the same keys.
        narrow: Another figure of the same for narrow pages.
        max_width: Width in pixels that it is not to exceed.
    """
    columns = list(rows[0]) if rows else []
    return {
        "variants": [plain_figure(fig) for fig in (wide, narrow) if fig is not None],
        "max_width": max_width,
        "table": {"columns": columns, "rows": [[_plain(row[name]) for name in columns] for row in rows]},
    }


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it: what is no number becomes None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plain_figure(fig: go.Figure) -> dict[str, Any]:
    """Return a figure as plain values without its template, which the page sets by theme."""
    plain: dict[str, Any] = json.loads(pio.to_json(fig, engine="json"))
    plain["layout"].pop("template", None)
    return plain
