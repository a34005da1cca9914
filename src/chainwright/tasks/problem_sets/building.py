"""From records to problems: kind, checker, sample, options, labels, and what cannot be used."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from chainwright import checkers
from chainwright._errors import BadInput
from chainwright.checkers.places import boxed_texts
from chainwright.checkers.wording import normal
from chainwright.tasks._catalogue import known
from chainwright.tasks.base import Problem
from chainwright.tasks.problem_sets import values
from chainwright.tasks.problem_sets.choices import lettered, shuffled
from chainwright.tasks.problem_sets.kinds import KINDS, Draft, Kind, Names
from chainwright.tasks.problem_sets.records import Record
from chainwright.tasks.problem_sets.values import LETTERS, BadField

if TYPE_CHECKING:
    from chainwright.tasks.problem_sets.source import ProblemSource

_N_LOOKED_AT = 50
_N_NAMED = 3
_READ_TEXTS = ("number", "math", "exact", "contains")  # of a chosen option they read the text, not the letter


class BadRecord(NamedTuple):
    """A record that became no problem: where it is, and what is wrong with it."""

    place: str
    reason: str


@dataclass(frozen=True)
class ProblemSet:
    """What was read from a source.

    Attributes:
        problems: The problems that were chosen.
        bad_records: The records that were left out, with the reason.
        sha256: Hash of all that is asked and judged, which tells whether two studies have the same problems.
        name: The name of the set, which is the `task` of its problems.
        kind: The kind of its records.
        n_records: How many records the source has.
        fields: The names of the fields that were read, in their order in the records.
        unread: The names of those that became neither part of a problem nor a label.
        notes: What a user should know: questions or ids that occur twice, fewer problems than wanted.
    """

    problems: list[Problem]
    bad_records: list[BadRecord]
    sha256: str
    name: str
    kind: str
    n_records: int
    fields: tuple[str, ...]
    unread: tuple[str, ...]
    notes: tuple[str, ...] = ()


class _Item(NamedTuple):
    """A record with its draft and labels."""

    record: Record
    draft: Draft
    labels: dict[str, Any]


def build(source: ProblemSource, records: Sequence[Record]) -> ProblemSet:
    """Return the problems of records; `ProblemSource.load` says what is raised."""
    if not records:
        raise BadInput(f"{source.source} has no records; name a file with problems.")
    names = Names(_field_names(records), source.fields)
    kind = _kind(source, names, records)
    items, bad = _drafted(names, kind, records)
    _refuse(source, bad, len(records))
    if source.shuffle_choices and not any(item.draft.choices and not item.draft.is_lettered for item in items):
        raise BadInput(f"{source.source} has no options to shuffle; drop shuffle_choices (--shuffle-choices).")
    name = _name(source)
    checker_of = _checkers(source, kind, items)
    problems, unreadable = _chosen(source, name, items, checker_of)
    _refuse(source, unreadable, len(records))
    if not problems:
        raise BadInput(
            f"None of the {len(records)} records of {source.source} can be used: {named([*bad, *unreadable])}."
        )
    used = {each for item in items for each in item.draft.used}
    every = _field_names(records)
    labelled = {each for item in items for each in item.labels}
    return ProblemSet(
        problems,
        [*bad, *unreadable],
        digest(problems),
        name,
        kind.name,
        len(records),
        tuple(each for each in every if each in used),
        tuple(each for each in every if each not in used and each.lower() not in labelled and each != names.of("id")),
        tuple(_notes(source, items, problems)),
    )


def digest(problems: Sequence[Problem]) -> str:
    """Return a hash of everything that is asked and judged in problems."""
    text = json.dumps([problem.to_record() for problem in problems], sort_keys=True)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _field_names(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(str(name) for record in records for name in record.fields or ()))


def _kind(source: ProblemSource, names: Names, records: Sequence[Record]) -> Kind:
    """Return the kind that was passed, or the first whose fields most records have."""
    absent = [f"{role}={name}" for role, name in names.chosen.items() if not _is_anywhere(records, name)]
    if absent:
        raise BadInput(
            f"No record of {source.source} has the field of {', '.join(absent)}; they have "
            f"{', '.join(names.by_lower.values())}."
        )
    if source.kind != "auto":
        return KINDS[source.kind]
    first = [record.fields for record in records if record.fields is not None][:_N_LOOKED_AT]
    usual = [name for name in names.by_lower.values() if sum(name in each for each in first) * 2 >= len(first)]
    most = Names(usual, names.chosen)
    kind = next((kind for kind in KINDS.values() if first and kind.fits(most, first)), None)
    if kind is None and first:
        raise BadInput(
            f"The records of {source.source} have the fields {', '.join(usual)}, in which no question with an answer "
            "is found; name them with fields={'question': ..., 'answer': ...} (--field question=NAME,answer=NAME)."
        )
    return kind or KINDS["qa"]


def _is_anywhere(records: Sequence[Record], name: str) -> bool:
    return any(values.has(record.fields, name) for record in records if record.fields is not None)


def _drafted(names: Names, kind: Kind, records: Sequence[Record]) -> tuple[list[_Item], list[BadRecord]]:
    items, bad = [], []
    id_field = names.of("id")
    for record in records:
        if record.fields is None:
            bad.append(BadRecord(record.place, record.fault))
            continue
        try:
            draft = kind.read(names, record.fields)
            labels = values.labels(record.fields, [*draft.used, id_field or ""])
            if id_field is not None and (named := values.labels({"id": record.fields.get(id_field)}, ())):
                labels = named | labels
            items.append(_Item(record, draft, labels))
        except BadField as error:
            bad.append(BadRecord(record.place, str(error)))
    return items, bad


def _refuse(source: ProblemSource, bad: Sequence[BadRecord], n_records: int) -> None:
    """Raise BadInput for records that cannot be used, unless they are to be left out."""
    if bad and not source.skip_bad:
        count = "1 record" if len(bad) == 1 else f"{len(bad)} records"
        raise BadInput(
            f"{source.source}: {count} of {n_records} cannot be used: {named(bad)}. "
            "Correct the file, or leave such records out with skip_bad=True (--skip-bad)."
        )


def named(bad: Sequence[BadRecord]) -> str:
    """Return the first records that cannot be used, with the reasons."""
    shown = "; ".join(f"{place} {reason}" for place, reason in bad[:_N_NAMED])
    return shown + (f"; and {len(bad) - _N_NAMED} more" if len(bad) > _N_NAMED else "")


def _name(source: ProblemSource) -> str:
    """Return the name of the set, which is never that of a task."""
    if source.name is not None:
        name = source.name.strip()
        if not name or name in known():
            raise BadInput(f"The name of a problem set must not be empty or that of a task; got {source.name!r}.")
        return name
    name = Path(source.source.rstrip("/")).name
    name = re.sub(r"\.(jsonl|ndjson|json|csv|tsv|parquet)(\.gz)?$", "", name, flags=re.IGNORECASE)
    return f"{name} (set)" if name in known() else name


def _checkers(source: ProblemSource, kind: Kind, items: Sequence[_Item]) -> dict[bool, str]:
    """Return the checker of questions with options (True) and of open ones (False)."""
    if source.checker is not None:
        checkers.load(source.checker)
        return {True: source.checker, False: source.checker}
    open_answers = [str(item.draft.answer) for item in items if not item.draft.choices]
    return {True: "choice", False: kind.checker or _fitting(open_answers)}


def _fitting(answers: Sequence[str]) -> str:
    """Return the checker that suits answers of no known kind."""
    is_number = [checkers.load("number").check_gold(answer) is None and len(answer.split()) <= 3 for answer in answers]
    if answers and sum(is_number) >= 0.9 * len(answers):
        return "number"
    return "math" if any(re.search(r"\\[a-zA-Z]|\$[^$]+\$|\^", answer) for answer in answers) else "exact"


def _chosen(
    source: ProblemSource, name: str, items: Sequence[_Item], checker_of: Mapping[bool, str]
) -> tuple[list[Problem], list[BadRecord]]:
    """Return the first `n` problems in the order of the sample whose answers can be read, and those before them."""
    problems: list[Problem] = []
    bad: list[BadRecord] = []
    for item in _in_order(items, source.seed):
        if len(problems) == source.n:
            break
        problem = _problem(source, name, item, checker_of[bool(item.draft.choices)])
        fault = checkers.load(problem.checker).check_gold(problem.answer, problem.choices)
        if fault is None:
            problems.append(problem)
        else:
            answer = problem.answer if len(problem.answer) <= 60 else problem.answer[:57] + "..."
            bad.append(BadRecord(item.record.place, f"the answer {answer!r} {fault} (checker {problem.checker})"))
    return problems, bad


def _in_order(items: Sequence[_Item], seed: int | None) -> Iterator[_Item]:
    yield from items if seed is None else Random(seed).sample(items, len(items))


def _problem(source: ProblemSource, name: str, item: _Item, checker: str) -> Problem:
    draft, choices = item.draft, item.draft.choices
    facts: dict[str, Any] = {"source": Path(source.source).name, "place": item.record.place}
    answer, prompt = str(draft.answer), draft.question
    if choices:
        order = list(range(len(choices)))
        if (source.shuffle_choices or draft.must_shuffle) and not draft.is_lettered:
            order = shuffled(choices, draft.question, source.seed or 0)
            facts |= {"order": order, "shuffle_seed": source.seed or 0}
        choices = tuple(choices[i] for i in order)
        answer = LETTERS[order.index(int(draft.answer))]
        prompt = draft.question if draft.is_lettered else lettered(draft.question, choices)
        if checker in _READ_TEXTS:
            facts["letter"], answer = answer, choices[LETTERS.index(answer)]
    problem = Problem(
        name, 0, prompt, "", answer, (), "natural", facts, checker=checker, labels=item.labels, choices=choices
    )
    return replace(problem, chain=_chain(draft, problem, is_shuffled=choices != draft.choices))


def _chain(draft: Draft, problem: Problem, *, is_shuffled: bool) -> str:
    """Return the worked solution with its answer; one that names letters is none once the options are shuffled."""
    chain = draft.chain
    if not chain or (
        is_shuffled and re.search(r"\b[A-H]\b[).:]|\([A-H]\)|\b(?:option|answer)\b.{0,12}\b[A-H]\b", chain)
    ):
        return ""
    if draft.has_answer:
        return chain
    if problem.checker == "math":
        boxes = boxed_texts(chain)
        has_answer = bool(boxes) and normal(boxes[-1]) == normal(problem.answer)
    else:
        has_answer = (
            checkers.load(problem.checker).judge(chain, problem.answer, choices=problem.choices).is_right is True
        )
    shown = f"({problem.answer})" if problem.choices and len(problem.answer) == 1 else problem.answer
    return chain if has_answer else f"{chain}\nThe answer is {shown}."


def _notes(source: ProblemSource, items: Sequence[_Item], problems: Sequence[Problem]) -> Iterator[str]:
    """Yield a sentence on everything in a set that may not be meant."""
    if source.n is not None and len(problems) < source.n:
        yield f"{source.source} has {len(problems)} problems that can be used, fewer than the {source.n} wanted."
    for what, key in (("question", lambda item: (item.draft.question, item.draft.choices)), ("id", _id)):
        counts = Counter(key(item) for item in items if key(item) is not None)
        again = [item.record.place for item in items if key(item) is not None and counts[key(item)] > 1]
        n_again = sum(count - 1 for count in counts.values())
        if n_again:
            shown = ", ".join(again[:_N_NAMED]) + (", ..." if len(again) > _N_NAMED else "")
            records = "1 record has" if n_again == 1 else f"{n_again} records have"
            yield f"In {source.source}, {records} the {what} of an earlier one ({shown}); all are taken."


def _id(item: _Item) -> Any:
    return item.labels.get("id")
