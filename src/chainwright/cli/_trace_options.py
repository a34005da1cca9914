"""Trace files on the command line of a study: which files, and how they are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from chainwright._config import Config
from chainwright._errors import BadInput
from chainwright.cli._command import ConfigOptions, Values

if TYPE_CHECKING:
    from chainwright.traces.source import TraceSource


class TraceOptions(Config):
    """How trace files are read; see `TraceSource`."""

    trace_format: str = Field(default="auto", description="Format of the trace files; 'auto' recognises it.")
    trace_field: tuple[str, ...] | None = Field(
        default=None, description="Name of a field that is not recognised, such as response=text; may be repeated."
    )
    written_by: tuple[str, ...] | None = Field(
        default=None, description="Take only the traces that this model wrote; may be repeated (default: all)."
    )
    trust_labels: bool = Field(
        default=False, description="Use the files' own judgements where they have some, in place of ours."
    )


TRACES = ConfigOptions("chainwright.cli._trace_options:TraceOptions", *TraceOptions.model_fields)


def trace_source(
    files: Sequence[Path],
    values: Values,
    *,
    n: int | None,
    checker: str | None,
    skip_bad: bool,
    chat_template: bool = True,
    markers: Sequence[str] | None = None,
) -> TraceSource | None:
    """Return the source that `--traces` and the options of `TRACES` name; None without `--traces`.

    Raises:
        BadInput: Another of these options is used without `--traces`, or one does not fit.
    """
    from chainwright.traces.source import TraceSource

    used = [name for name, value in values.items() if value not in ([], TraceOptions.model_fields[name].default)]
    if not files:
        if used:
            raise BadInput(f"--{used[0].replace('_', '-')} is about trace files; name some with --traces.")
        return None
    return TraceSource(
        files=tuple(map(str, files)),
        format=values["trace_format"],
        fields=_fields(values["trace_field"] or ()),
        writers=tuple(values["written_by"]) if values["written_by"] else None,
        trust_labels=values["trust_labels"],
        n=n,
        checker=checker,
        skip_bad=skip_bad,
        chat_template=chat_template,
        markers=markers,
    )


def _fields(texts: Sequence[str]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for text in texts:
        role, equals, name = text.partition("=")
        if not equals:
            raise BadInput(f"--trace-field takes PART=FIELD, such as response=text; got {text!r}.")
        fields[role] = name
    return fields
