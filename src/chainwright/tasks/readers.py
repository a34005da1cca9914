"""Reading question files that a user has on disk: TwoHop, SVAMP and MultiArith as their authors publish them.

Each reader turns records into `Problem`s whose response is the answer alone. What a record must hold is named in each
function; other fields are kept in `Problem.facts`.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from chainwright._errors import BadInput, unknown_name
from chainwright.tasks.base import Problem, Slot

_RECORD_LISTS = ("data", "examples", "records", "instances")
_HOPS = {
    "e1": ("e1.value", "e1", "subject"),
    "r1": ("r1.template", "r1", "relation1"),
    "e2": ("e2.value", "e2", "bridge"),
    "r2": ("r2.template", "r2", "relation2"),
    "e3": ("e3.value", "e3", "answer"),
    "prompt": ("r2(r1(e1)).prompt", "source_prompt", "prompt", "question"),
}


def read_problems(path: str | Path, kind: str) -> list[Problem]:
    """Return the problems of a file.

    Args:
        path: A .json, .jsonl or .csv file.
        kind: "two-hop": records with e1, e2, e3 and a prompt, by their plain names or those of the TwoHop sets
            ("e1.value", "r2(r1(e1)).prompt"). "svamp": Body, Question and Answer. "multiarith": sQuestion and
            lSolutions, or question and final_ans.

    Raises:
        BadInput: No such file, an unknown kind, a file that is none of these, or a record without what it needs.
    """
    readers: dict[str, Callable[[Mapping[str, Any]], Problem]] = {
        "two-hop": _two_hop,
        "svamp": _svamp,
        "multiarith": _multiarith,
    }
    if kind not in readers:
        raise unknown_name("kind of file", kind, readers)
    path = Path(path)
    problems = []
    for i, record in enumerate(_records(path)):
        try:
            problems.append(readers[kind](record))
        except KeyError as error:
            raise BadInput(
                f"Record {i} of {path} has no {error.args[0]}, which a {kind} file must have; it has: "
                f"{', '.join(map(str, record)) or 'nothing'}."
            ) from error
        except BadInput as error:
            raise BadInput(f"Record {i} of {path} cannot be used: {error}") from error
    if not problems:
        raise BadInput(f"{path} holds no records.")
    return problems


def _records(path: Path) -> list[Mapping[str, Any]]:
    if not path.is_file():
        raise BadInput(f"There is no file {path}; give a .json, .jsonl or .csv file with questions.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 text; save it as UTF-8.") from error
    try:
        records = _parsed(path, text)
    except (json.JSONDecodeError, csv.Error) as error:
        raise BadInput(f"{path} cannot be read as {path.suffix[1:] or 'text'}: {error}.") from error
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise BadInput(f"{path} must hold a list of records; got {type(records).__name__}.")
    return records


def _parsed(path: Path, text: str) -> Any:
    if path.suffix == ".csv":
        return list(csv.DictReader(text.splitlines()))
    if path.suffix in (".jsonl", ".ndjson"):
        return [_line(path, i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    if path.suffix != ".json":
        raise BadInput(f"{path} is none of .json, .jsonl and .csv; those are the kinds of question file that are read.")
    content = json.loads(text)
    if isinstance(content, dict):
        return next((content[name] for name in _RECORD_LISTS if name in content), content)
    return content


def _line(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise BadInput(f"Line {number} of {path} cannot be read as JSON: {error}.") from error


def _value(record: Mapping[str, Any], *names: str) -> Any:
    for name in names:
        if record.get(name) not in (None, ""):
            return record[name]
    raise KeyError(" or ".join(names))


def _two_hop(record: Mapping[str, Any]) -> Problem:
    facts = {name: str(_value(record, *_HOPS[name])) for name in ("e1", "e2", "e3")}
    facts |= {name: str(record[key]) for name in ("r1", "r2") for key in _HOPS[name] if key in record}
    return _problem("two-hop", 2, str(_value(record, *_HOPS["prompt"])), facts["e3"], facts)


def _svamp(record: Mapping[str, Any]) -> Problem:
    body, question = str(_value(record, "Body", "body")).strip(), str(_value(record, "Question", "question")).strip()
    text = f"{body}{'' if body.endswith(('.', '?', '!', ',')) else '.'} {question}"
    return _problem("svamp", 1, text, _number(_value(record, "Answer", "answer")), dict(record))


def _multiarith(record: Mapping[str, Any]) -> Problem:
    solution = _value(record, "lSolutions", "final_ans", "answer")
    if solution == []:
        raise BadInput("its list of solutions is empty, so it has no answer to its question.")
    answer = solution[0] if isinstance(solution, list) else solution
    return _problem(
        "multiarith", 2, str(_value(record, "sQuestion", "question")).strip(), _number(answer), dict(record)
    )


def _number(value: Any) -> str:
    """Return a number as it is written: 8 for 8.0."""
    try:
        number = float(str(value).replace(",", ""))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise BadInput(f"An answer of an arithmetic file must be a number; got {value!r}.")
    return str(int(number)) if number.is_integer() else str(number)


def _problem(task: str, hops: int, prompt: str, answer: str, facts: dict[str, Any]) -> Problem:
    slot = Slot(0, len(answer), "answer", hops - 1, answer)
    return Problem(task, hops, prompt, answer, answer, (slot,), rendering="natural", facts=facts)
