"""From the name of a file or data set to problems: what is read, which fields, which checker, how many.

1. The records of the source are read, each with its place: a line of a file, or a number.
2. The kind of the set is found by the fields of the records (or given), and each record becomes a problem.
3. A record that does not fit is refused, or left out and counted with `skip_bad`.
4. The first `n` problems are taken, or a random sample if there is a seed.
5. Right answers that the checker cannot read are refused or left out in the same way: they are a fault of the data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from chainwright._config import Config, MustBe
from chainwright._errors import BadInput
from chainwright.checkers.base import Checker
from chainwright.tasks.base import Problem


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
        sha256: Hash of the problems, which tells whether a study goes on with the same ones.
        name: The name of the set, which is the `task` of its problems.
    """

    problems: list[Problem]
    bad_records: list[BadRecord]
    sha256: str
    name: str


class ProblemSource(Config):
    """Where problems come from and how they are read; `load` reads them."""

    source: Annotated[str, MustBe("a file, a folder or a Hub data set")] = Field(
        description="Problems: a JSONL, JSON, CSV or Parquet file, or a Hub data set."
    )
    split: str | None = Field(default=None, description="Split of a Hub data set, such as 'test'.")
    subset: str | None = Field(default=None, description="Configuration of a Hub data set, such as 'main'.")
    revision: str | None = Field(default=None, description="Branch, tag or commit of a Hub data set.")
    data_files: str | None = Field(default=None, description="Files of a data set or folder, such as 'test*.jsonl'.")
    kind: str = Field(default="auto", description="Kind of the records; 'auto' goes by their fields.")
    fields: Mapping[str, str] | None = Field(default=None, description="Names of fields, such as question=prompt.")
    checker: str | None = Field(default=None, description="How final answers are judged; None goes by the kind.")
    n: int | None = Field(default=None, ge=1, description="Number of problems; None takes all.")
    seed: int | None = Field(default=None, description="Draws a random sample; None takes the first ones.")
    shuffle_choices: bool = Field(default=False, description="Shuffle the options of each question.")
    skip_bad: bool = Field(default=False, description="Leave out and count records that cannot be used.")
    name: str | None = Field(default=None, description="Name of the set; None goes by the source.")

    def load(self) -> ProblemSet:
        """Return the problems with what was left out.

        Raises:
            BadInput: There is no such source, a name is unknown, or a record cannot be used (without `skip_bad`).
        """
        path = Path(self.source)
        if not path.is_file():
            raise BadInput(f"There is no file {path}; name a file of problems.")
        name = self.name or path.stem
        records = [json.loads(line) for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
        problems = [
            Problem(name, 0, r["question"], "", str(r["answer"]), (), rendering="natural", checker=self.checker or "")
            for r in records
        ][: self.n]
        return ProblemSet(problems, [], digest(problems), name)


def digest(problems: list[Problem]) -> str:
    """Return a hash of everything that is asked and judged in problems."""
    text = json.dumps([problem.to_record() for problem in problems], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def load_problems(
    source: str | Path,
    *,
    split: str | None = None,
    subset: str | None = None,
    revision: str | None = None,
    data_files: str | None = None,
    kind: str = "auto",
    fields: Mapping[str, str] | None = None,
    checker: str | Checker | Callable[..., Any] | None = None,
    n: int | None = None,
    seed: int | None = None,
    shuffle_choices: bool = False,
    skip_bad: bool = False,
    name: str | None = None,
) -> list[Problem]:
    """Return the problems of a file or of a Hub data set."""
    from chainwright.checkers import name_of

    return (
        ProblemSource(
            source=str(source),
            split=split,
            subset=subset,
            revision=revision,
            data_files=data_files,
            kind=kind,
            fields=fields,
            checker=None if checker is None else name_of(checker),
            n=n,
            seed=seed,
            shuffle_choices=shuffle_choices,
            skip_bad=skip_bad,
            name=name,
        )
        .load()
        .problems
    )
