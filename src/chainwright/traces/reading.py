"""Traces from anywhere: files of any engine, server or harness, read as one model's tokenizer sees them.

1. Every record of every file is recognised by its fields (`_formats`) and gives one entry per response.
2. An entry finds its problem: by the id of both, else by the text of the question; else an answer in the record makes
   one. The problem's checker judges the response.
3. Where the file has a judgement of its own too, the two are compared. Ours is used unless the file's is asked for.

Whatever is not as it should be is counted, named by its place and put into words (`TraceSet.notes`): records that
cannot be read, traces without a problem, judgements that contradict each other, token ids of another tokenizer.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from chainwright._errors import BadInput, BadTrace, UnreadFields
from chainwright.markers.known import as_markers
from chainwright.traces._building import Reading
from chainwright.traces._documents import Document, documents, is_ours
from chainwright.traces._entries import Entry, with_fields
from chainwright.traces._formats import entries_of, is_request, models_of
from chainwright.traces._joining import ProblemIndex, final_answer_of, problem_of
from chainwright.traces.offsets import Tokenizer, decode_with_markers
from chainwright.traces.store import read_traces as read_parquet
from chainwright.traces.trace import Trace

if TYPE_CHECKING:
    from chainwright.traces.source import TraceSource

_N_NAMED = 10  # bad records that an error names
_N_PLACES = 3  # places that a note names


class BadRecord(NamedTuple):
    """A record that gave no trace: its file, its place in it, and why."""

    file: str
    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place} of {self.file}: {self.reason}"


@dataclass(frozen=True)
class TraceSet:
    """Traces of files, in their order.

    Attributes:
        traces: The traces. `info` has the file ("source"), the place ("line"), and where they are known "id", "model",
            "answer", "problem" (the number of the question), "sample" and "file_label" (the file's own judgement).
        bad_records: The records that were skipped.
        notes: Sentences on what was noticed, each with its count and its first places.
        writers: The models that wrote the responses, as far as the files name them.
    """

    traces: list[Trace]
    bad_records: list[BadRecord] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    writers: list[str] = field(default_factory=list)


@dataclass
class Run:
    """One reading of files: what is found on the way is collected here."""

    source: TraceSource
    tokenizer: Tokenizer | None
    index: ProblemIndex | None
    traces: list[Trace] = field(default_factory=list)
    bad: list[BadRecord] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)
    noticed: dict[str, list[str]] = field(default_factory=dict)
    models: set[str] = field(default_factory=set)
    requests: dict[Any, Mapping[str, Any]] = field(default_factory=dict)
    seen: dict[Any, bool | None] = field(default_factory=dict)
    questions: dict[Any, int] = field(default_factory=dict)
    samples: Counter[Any] = field(default_factory=Counter)

    def result(self) -> TraceSet:
        """Read every file and return what is there, or raise what is wrong with it."""
        parts = [(Path(name), self._documents(Path(name))) for name in self.source.files]
        for path, found in parts:
            self._ours(path) if found is None else self._file(path, found)
        if self.bad and not self.source.skip_bad:
            raise _too_bad(self.bad)
        self._check_writers()
        self._warn_of_unread()
        if not self.traces:
            raise BadInput(f"{_listed(self.source.files)} {'has' if len(parts) == 1 else 'have'} no traces.")
        return TraceSet(self.traces, self.bad, self._notes(), sorted(filter(None, self.models)))

    def _documents(self, path: Path) -> list[Document] | None:
        """Return the records of a file, without requests, which are kept by id; None for a file of our own."""
        if is_ours(path) or (self.tokenizer is None and path.suffix == ".parquet"):
            return None
        if self.tokenizer is None:
            raise BadInput(f"{path} holds texts, so a tokenizer is needed to make tokens of them; pass tokenizer=.")
        kept = []
        for document in documents(path):
            if document.record is not None and is_request(document.record):
                self.requests[document.record["custom_id"]] = document.record
            else:
                kept.append(document)
        return kept

    def _file(self, path: Path, found: Sequence[Document]) -> None:
        for document in found:
            try:
                self._record(path, document)
            except BadTrace as error:
                self.bad.append(BadRecord(path.name, document.place, str(error).removesuffix(".")))

    def _record(self, path: Path, document: Document) -> None:
        if document.record is None:
            raise BadTrace(document.reason)
        record = with_fields(document.record, self.source.fields)
        if (request := self.requests.get(record.get("custom_id"))) is not None:
            record = {**record, "request": request}
        self.models.update(models_of(record))
        made: list[Trace] = []
        for entry in entries_of(record, self.source.format):
            self.models.add(entry.model)
            self.unread.update(() if made else entry.unread)
            if self._is_wanted(path, entry):
                made += self._trace(path, document, entry)
        self.traces += made

    def _is_wanted(self, path: Path, entry: Entry) -> bool:
        """Say whether an entry is of a model that was asked for, and no repetition of lm-eval for another filter."""
        if self.source.writers is not None and entry.model not in self.source.writers:
            return False
        if "filter" not in entry.labels:
            return True
        key = (path, entry.id, entry.sample, entry.response)
        if key not in self.seen:
            self.seen[key] = entry.label
            return True
        if self.seen[key] != entry.label:
            self._notice("filters", f"document {entry.id} of {path.name}")
        return False

    def _trace(self, path: Path, document: Document, entry: Entry) -> list[Trace]:
        assert self.tokenizer is not None
        place = f"{document.place} of {path.name}"
        match = None if self.index is None else self.index.find(entry)
        if self.index is not None and match is None:
            self._notice("no problem", place)
        problem = match.problem if match is not None else problem_of(entry, path.stem, self.source.checker)
        if problem is not None and entry.model:
            problem = replace(problem, labels={**problem.labels, "model": entry.model})
        number = self._number(entry, None if match is None else match.number)
        if number is None:
            return []
        reading = Reading(self.tokenizer, self.source.style, self._pair(), self.source.chat_template)
        if entry.response_ids is not None and not reading.has_own_ids(entry):
            self._notice("ids", place)
        info = self._info(path, document, entry, number)
        return [self._judged(reading.trace(entry, info, problem), entry, place)]

    def _pair(self) -> Any:
        return None if self.source.markers is None else as_markers(tuple(self.source.markers))

    def _number(self, entry: Entry, index: int | None) -> int | None:
        """Return the number of an entry's question: that of its problem, or else in the order of appearance.

        None for a question beyond the first `n`.
        """
        key = index if index is not None else (entry.id, entry.question or entry.prompt or str(entry.turns))
        place = self.questions.setdefault(key, len(self.questions))
        if self.source.n is not None and place >= self.source.n:
            return None
        return place if index is None else index

    def _info(self, path: Path, document: Document, entry: Entry, number: int) -> dict[str, Any]:
        key = (number, entry.model)
        sample = self.samples[key] if entry.sample is None else entry.sample
        self.samples[key] += 1
        info: dict[str, Any] = {"source": path.name, "line": document.number, "problem": number, "sample": sample}
        answer = None if entry.answer is None else final_answer_of(entry.answer)
        known = {"id": entry.id, "model": entry.model or None, "answer": answer, "file_label": entry.label}
        return info | {name: value for name, value in known.items() if value is not None} | {
            name: value for name, value in entry.labels.items() if name not in info and name not in known
        }  # fmt: skip

    def _judged(self, trace: Trace, entry: Entry, place: str) -> Trace:
        """Return a trace whose judgement was compared with the file's, which replaces it if it is to be trusted."""
        label, ours = entry.label, trace.is_correct
        if label is None or trace.problem is None:
            return trace
        if ours != label:
            what = trace.verdict.extracted if trace.verdict is not None else None
            read = "no answer was read" if trace.outcome in ("unread", "cut") else f"the answer read is {what!r}"
            self._notice("labels", f"{place}: the file says {'right' if label else 'wrong'}, {read}")
        return replace(trace, is_correct=label, verdict=None) if self.source.trust_labels else trace

    def _ours(self, path: Path) -> None:
        """Take the traces of a file of our own: as they are, or, for another tokenizer, from their texts."""
        for i, trace in enumerate(read_parquet(path)):
            self.models.add(str(trace.info.get("model", "")))
            if self.source.writers is not None and trace.info.get("model") not in self.source.writers:
                continue
            problem = trace.problem
            number = self.questions.setdefault(problem or trace.prompt, len(self.questions))
            if self.source.n is not None and number >= self.source.n:
                return
            self.traces.append(self._own_trace(trace, f"row {i + 1} of {path.name}"))

    def _own_trace(self, trace: Trace, place: str) -> Trace:
        entry = Entry(
            trace.response or "",
            prompt=trace.prompt,
            stopped=trace.stopped,
            label=trace.is_correct if trace.problem is None else None,
        )
        problem = trace.problem
        if problem is None and self.index is not None:
            match = self.index.find(entry)
            problem = None if match is None else match.problem
            if match is None:
                self._notice("no problem", place)
        tokenizer = self.tokenizer
        if tokenizer is None:
            return trace
        is_its_own = decode_with_markers(tokenizer, trace.response_ids.tolist(), self._pair()) == trace.response
        if is_its_own and problem is trace.problem:
            return trace
        if not is_its_own:
            self._notice("ids", place)
        ids = trace.input_ids.tolist() if is_its_own else None
        entry = replace(
            entry,
            prompt_ids=ids and ids[: trace.response_start],
            response_ids=ids and ids[trace.response_start :],
        )
        return self._judged(Reading(tokenizer, trace.style).trace(entry, trace.info, problem), entry, place)

    def _notice(self, what: str, place: str) -> None:
        self.noticed.setdefault(what, []).append(place)

    def _check_writers(self) -> None:
        unknown = [name for name in self.source.writers or () if name not in self.models]
        if unknown:
            known = ", ".join(sorted(filter(None, self.models))) or "none"
            raise BadInput(f"No response is by {unknown[0]!r}; the files name these models: {known}.")

    def _notes(self) -> list[str]:
        n = len(self.traces)
        used = "the file's is used" if self.source.trust_labels else (
            "ours is used; trust_labels=True (--trust-labels) takes the file's"
        )  # fmt: skip
        said = {
            "no problem": "{count} of {n} traces have no problem of the set ({places}); they are judged by what their "
            "own record says, if anything.",
            "labels": "{count} of {n} judgements of the file contradict ours ({places}); " + used + ".",
            "filters": "{count} responses are judged differently by several filters of lm-eval ({places}); the first "
            "filter's judgement is used.",
            "ids": "{count} of {n} traces have token ids of another tokenizer ({places}); their texts were tokenised "
            "with this one.",
        }
        notes = [
            sentence.format(count=len(self.noticed[what]), n=n, places=_places(self.noticed[what], _N_PLACES))
            for what, sentence in said.items()
            if what in self.noticed
        ]
        if self.bad:
            notes.insert(0, f"{_counted(len(self.bad), 'record')} could not be read and were skipped: "
                            f"{_places([str(record) for record in self.bad])}.")  # fmt: skip
        return notes

    def _warn_of_unread(self) -> None:
        if self.unread:
            named = ", ".join(f"{key!r} ({_counted(n, 'record')})" for key, n in self.unread.most_common(12))
            warnings.warn(
                f"{_listed(self.source.files)}: these fields are not read: {named}; say which field holds what with "
                "fields= (--trace-field), if one of them is needed.",
                UnreadFields,
                stacklevel=4,
            )


def _too_bad(bad: Sequence[BadRecord]) -> BadTrace:
    places = _places([str(record) for record in bad])
    return BadTrace(
        f"{_counted(len(bad), 'record')} cannot be read ({places}); fix them, or skip them with --skip-bad "
        "(skip_bad=True)."
    )


def _places(places: Sequence[str], n_named: int = _N_NAMED) -> str:
    """Return the first places of a list, and how many more there are."""
    n_more = len(places) - n_named
    return "; ".join(places[:n_named]) + (f"; and {n_more} more" if n_more > 0 else "")


def _listed(files: Sequence[str]) -> str:
    names = [Path(name).name for name in files]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
