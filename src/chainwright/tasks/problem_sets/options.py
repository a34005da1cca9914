"""A `ProblemSource` as command options have it: everything may be missing, and fields are written "question=NAME"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from chainwright._config import Config
from chainwright._errors import BadInput
from chainwright.tasks.problem_sets.source import ProblemSource


def _as(name: str) -> Any:
    """Return the default and description of a setting of `ProblemSource`."""
    return ProblemSource.model_fields[name]


class ProblemOptions(Config):
    """The options of a problem set; defaults and help are those of `ProblemSource`, where it has them."""

    source: str | None = Field(default=None, description=ProblemSource.model_fields["source"].description)
    split: str | None = _as("split")
    subset: str | None = _as("subset")
    revision: str | None = _as("revision")
    data_files: str | None = _as("data_files")
    fields: tuple[str, ...] | None = Field(
        default=None, description="Field that is not recognised by its name, such as question=prompt; may be repeated."
    )
    kind: str = _as("kind")
    checker: str | None = _as("checker")
    shuffle_choices: bool = _as("shuffle_choices")
    skip_bad: bool = _as("skip_bad")

    def problem_source(self, n: int | None, seed: int | None) -> ProblemSource:
        """Return the source; `n` and `seed` are as in `ProblemSource`."""
        settings = {name: getattr(self, name) for name in type(self).model_fields if name != "fields"}
        return ProblemSource(**settings, fields=_fields(self.fields), n=n, seed=seed)


def _fields(texts: Sequence[str] | None) -> dict[str, str] | None:
    """Return the mapping that "question=prompt" and "answer=target", or "question=prompt,answer=target", write."""
    if not texts:
        return None
    pairs = [part.partition("=") for text in texts for part in text.split(",")]
    bad = next((pair for pair in pairs if not all(map(str.strip, pair))), None)
    if bad is not None:
        raise BadInput(f"--field takes ROLE=FIELD, such as question=prompt or answer=target; got {''.join(bad)!r}.")
    return {role.strip(): field.strip() for role, _, field in pairs}
