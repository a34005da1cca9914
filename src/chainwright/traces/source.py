"""Where traces come from and how they are read: the settings, which need no PyTorch, and `read_traces`."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, model_validator

from chainwright._config import Config, MustBe
from chainwright._errors import BadInput, TraceNotes
from chainwright.markers.known import as_markers
from chainwright.traces._entries import check_fields
from chainwright.traces._formats import check_format
from chainwright.traces.segments import check_style

if TYPE_CHECKING:
    from chainwright.tasks.base import Problem
    from chainwright.traces.offsets import Tokenizer
    from chainwright.traces.reading import TraceSet
    from chainwright.traces.trace import Trace


class TraceSource(Config):
    """Where traces come from and how they are read.

    Raises:
        BadInput: An unknown format, style or field, or markers that are no pair.
    """

    files: Annotated[Sequence[str], Field(min_length=1), MustBe("a list of trace files, at least one")]
    format: str = Field(default="auto", description="Format of the records: auto recognises it.")
    fields: Mapping[str, str] = Field(
        default={}, description="Which field holds what, such as response=text; default: the common names."
    )
    writers: Sequence[str] | None = Field(
        default=None, description="Models whose responses are taken, where a file has several (default: all)."
    )
    checker: str | None = Field(
        default=None, description="Checker that judges answers which stand in the trace file (default: by the answer)."
    )
    n: Annotated[int, Field(ge=1)] | None = Field(default=None, description="Questions to take (default: all).")
    chat_template: bool = Field(
        default=True, description="Whether a bare question goes through the chat template of the model that reads it."
    )
    style: str = Field(default="auto", description="Style of the thinking: auto, think, harmony or plain.")
    markers: Sequence[str] | None = Field(default=None, description="The pair of markers around the thinking.")
    trust_labels: bool = Field(
        default=False, description="Use the file's own judgements where it has some, in place of ours."
    )
    skip_bad: bool = Field(default=False, description="Skip and count records that cannot be read.")

    @model_validator(mode="after")
    def _is_known(self) -> Self:
        check_format(self.format)
        check_fields(self.fields)
        if self.style != "auto":
            check_style(self.style)
        if self.markers is not None:
            as_markers(tuple(self.markers))
        return self

    def load(self, tokenizer: Tokenizer | None = None, problems: Sequence[Problem] | None = None) -> TraceSet:
        """Return the traces of the files, with all that is to be said of them.

        Args:
            tokenizer: The tokenizer of the model that is to read the traces; files of our own need none.
            problems: The problems that they answer; without any, answers in the files make some.

        Raises:
            BadInput: A file cannot be opened or is of no known kind, there is no tokenizer for texts, no trace, or no
                model of a name in `writers`.
            BadTrace: Records cannot be read and `skip_bad` is off, or a file is damaged.
        """
        from chainwright.traces._joining import ProblemIndex
        from chainwright.traces.reading import Run

        return Run(self, tokenizer, None if problems is None else ProblemIndex(problems)).result()

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of every file by its path.

        Raises:
            BadInput: A file cannot be opened.
        """
        return {name: _sha256(Path(name)) for name in self.files}


def read_traces(
    paths: str | Path | Sequence[str | Path],
    tokenizer: Tokenizer | None = None,
    *,
    problems: Sequence[Problem] | None = None,
    **settings: Any,
) -> list[Trace]:
    """Return the traces of one or several files, whatever wrote them.

    Read are the Parquet files of `write_traces`, and JSON lines, JSON, Parquet or CSV of: question and response under
    their common names; messages and ShareGPT conversations; requests and responses of OpenAI-like servers, batch files,
    vLLM and text-generation servers; logs of inspect and lm-eval; solutions of several models with judgements.

    Args:
        paths: The file or files.
        tokenizer: The tokenizer of the model that the traces will be shown to. Files of `write_traces` have token ids
            and need none; where one is passed and the ids are not its own, their texts are tokenised again.
        problems: The problems that the traces answer, found by id, else by the text of the question; their checkers
            judge the responses.
        settings: Those of `TraceSource`, such as `format`, `fields`, `writers`, `checker`, `skip_bad`.

    Warns:
        TraceNotes: What was noticed, one sentence each: skipped records, judgements that contradict each other, ...
        UnreadFields: Some records have fields that are not read.
        UnknownMarkers: A response has a tag that looks like a marker of thinking and is none that is known.

    Raises:
        BadInput: As for `TraceSource.load`.
        BadTrace: As for `TraceSource.load`.
    """
    names = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if (
        tokenizer is None
        and problems is None
        and not settings
        and len(names) == 1
        and Path(names[0]).suffix == ".parquet"
    ):
        from chainwright.traces.store import read_traces as read_parquet

        return read_parquet(names[0])
    found = TraceSource(files=tuple(map(str, names)), **settings).load(tokenizer, problems)
    for note in found.notes:
        warnings.warn(note, TraceNotes, stacklevel=2)
    return found.traces


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadInput(f"Cannot read {path}: {error.strerror or error}; name a file of traces.") from error
