"""From the name of a file or data set to problems: what is read, which fields, which checker, how many.

1. The records of the source are read, each with its place: a line of a file, or a number.
2. The kind of the set is found by the fields of the records (or passed), and each record becomes a problem.
3. A record that does not fit is refused, or left out and counted with `skip_bad`.
4. The first `n` problems are taken, or a random sample if there is a seed; ten are the first ten of twenty.
5. Right answers that the checker cannot read are refused or left out in the same way: they are a fault of the data.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from chainwright._config import Config, MustBe
from chainwright._errors import BadInput, ProblemSetWarning, unknown_name
from chainwright.checkers.base import Checker
from chainwright.tasks.base import Problem
from chainwright.tasks.problem_sets.building import ProblemSet, build, named
from chainwright.tasks.problem_sets.folders import missing, read_folder
from chainwright.tasks.problem_sets.hub import is_hub_id, is_saved, read_hub, read_saved
from chainwright.tasks.problem_sets.kinds import KINDS, ROLES
from chainwright.tasks.problem_sets.records import Record, read_records


class ProblemSource(Config):
    """Where problems come from and how they are read; `load` reads them."""

    source: Annotated[str, MustBe("a file, a folder or a Hub data set")] = Field(
        description="Problems: a JSONL, JSON, CSV, TSV or Parquet file, a folder of them, or a Hub data set."
    )
    split: str | None = Field(default=None, description="Split of a data set, such as 'test'.")
    subset: str | None = Field(default=None, description="Configuration of a Hub data set, such as 'main'.")
    revision: str | None = Field(default=None, description="Branch, tag or commit of a Hub data set.")
    data_files: str | None = Field(
        default=None, description="Files of a folder or Hub data set, such as 'test*.jsonl'; several with commas."
    )
    kind: str = Field(default="auto", description=f"Kind of the records: auto, {', '.join(KINDS)}.")
    fields: Mapping[str, str] | None = Field(
        default=None, description=f"Names of fields that are not found by themselves, by role ({', '.join(ROLES)})."
    )
    checker: str | None = Field(
        default=None,
        description="How final answers are judged: a checker, or 'file.py:function' (default: by the kind).",
    )
    n: int | None = Field(default=None, ge=1, description="Number of problems; None takes all.")
    seed: int | None = Field(default=None, description="Draws a random sample; None takes the first ones.")
    shuffle_choices: bool = Field(default=False, description="Shuffle the options of each question by the seed.")
    skip_bad: bool = Field(default=False, description="Skip and count records that cannot be used.")
    name: str | None = Field(default=None, description="Name of the set; None goes by the source.")

    def load(self) -> ProblemSet:
        """Return the problems with what was left out.

        Warns:
            ProblemSetWarning: Records are left out, questions or ids occur twice, or there are fewer problems than `n`.

        Raises:
            BadInput: There is no such source, split, kind, checker or field, a record cannot be used (without
                `skip_bad`), or none can.
        """
        if self.kind != "auto" and self.kind not in KINDS:
            raise unknown_name("kind of problem set", self.kind, ("auto", *KINDS))
        for role in self.fields or {}:
            if role not in ROLES:
                raise unknown_name("role of a field", role, ROLES)
        made = build(self, self._records())
        notes = list(made.notes)
        if bad := made.bad_records:
            what = "1 record was" if len(bad) == 1 else f"{len(bad)} records were"
            notes.append(f"{what} left out of {self.source}: {named(bad)}.")
        for note in notes:
            warnings.warn(note, ProblemSetWarning, stacklevel=2)
        return made

    def _records(self) -> list[Record]:
        path = Path(self.source).expanduser()
        is_local = path.exists()
        if is_local or not is_hub_id(self.source):
            if not is_local:
                raise missing(path)
            for name in ("subset", "revision"):
                if getattr(self, name) is not None:
                    raise BadInput(f"{name} is for data sets of the Hub, and {path} is on this disk; drop {name}.")
        else:
            choice = {"subset": self.subset, "revision": self.revision, "data_files": self.data_files}
            return read_hub(self.source, split=self.split, **choice)
        if path.is_dir():
            return read_saved(path, self.split) if is_saved(path) else read_folder(path, self.split, self.data_files)
        if self.data_files is not None:
            raise BadInput(f"data_files is for folders and data sets of the Hub, and {path} is one file; drop it.")
        return read_records(path, self.split)


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
    """Return the problems of a file, a folder or a Hub data set, to be asked, judged and compared like those of tasks.

    A problem has the question as its prompt (with lettered options, if it is multiple choice), the right answer, the
    worked solution as its `chain` if there is one, and every short field of the record as a label. `ProblemSource` has
    the same settings and also returns what was left out.

    Args:
        source: A .jsonl, .json, .csv, .tsv or .parquet file (also .gz), a folder of them, or the name of a Hub data
            set. Nothing is fetched unless there is no such file or folder.
        split: Split of a data set or folder, such as "test".
        subset: Configuration of a Hub data set, such as "main".
        revision: Branch, tag or commit of a Hub data set.
        data_files: Files of a folder or Hub data set: names or patterns, separated by commas.
        kind: Kind of the records (`tasks.problem_sets.kinds`); "auto" goes by their fields.
        fields: Names of fields by role (question, answer, choices, chain, id), where they are not found by themselves;
            "a.b" is field b of field a.
        checker: How final answers are judged: a registered name, "file.py:function", "package.module:function", or a
            function of (response, answer). The default goes by the kind and the answers.
        n: Number of problems; None takes all.
        seed: Draws a random sample of `n`, and shuffles options. None takes the first `n`; options are then shuffled by
            seed 0.
        shuffle_choices: Whether the options of each question are shuffled; the right letter follows.
        skip_bad: Whether records that cannot be used are left out instead of refused.
        name: Name of the set, which is the problems' `task`; None goes by the source.

    Raises:
        BadInput: As `ProblemSource.load`.
    """
    from chainwright.checkers import name_of

    settings: dict[str, Any] = {
        "source": str(source),
        "split": split,
        "subset": subset,
        "revision": revision,
        "data_files": data_files,
        "kind": kind,
        "fields": fields,
        "checker": None if checker is None else name_of(checker),
        "n": n,
        "seed": seed,
        "shuffle_choices": shuffle_choices,
        "skip_bad": skip_bad,
        "name": name,
    }
    return ProblemSource(**settings).load().problems
