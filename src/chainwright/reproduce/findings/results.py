"""What was measured of a finding with one model: a record, saved as `<folder>/<model>/<finding>.json`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from chainwright._config import Config, MustBe
from chainwright._errors import BadInput, unknown_name
from chainwright._files import read_json, write_json
from chainwright.reproduce.findings.catalogue import FINDINGS
from chainwright.reproduce.findings.rules import Verdict

_SLACK = 1e-9  # a bound may be the value itself, rounded
_STARTS = ("chainwright ", "python benchmarks/", "make ")


def _known(finding: str) -> str:
    if finding not in FINDINGS:
        raise unknown_name("finding", finding, FINDINGS)
    return finding


def _folder_name(model: str) -> str:
    if not re.fullmatch(r"[\w.-]*\w", model):
        raise ValueError
    return model


class Result(Config):
    """A measurement of one finding with one model, or the reason why there is none.

    Raises:
        BadInput: An unknown finding, a measurement without value, text or command, a missing interval where the verdict
            follows from it, bounds on the wrong side of the value, or a missing reason.
    """

    finding: Annotated[str, AfterValidator(_known)] = Field(description="Id of the finding, such as 'tcr-gain'.")
    model: Annotated[str, AfterValidator(_folder_name), MustBe("a name, such as 'smollm2-hops', without slashes")] = (
        Field(description="Model that was measured.")
    )
    outcome: Literal["measured", "not run", "cannot be tested here"] = Field(
        default="measured", description="Whether there is a value."
    )
    value: float | None = Field(default=None, description="What the finding's `value` names, as a number.")
    shown: str = Field(default="", description="The value for readers, such as '12 of 56 (21%)'.")
    low: float | None = Field(default=None, description="Lower bound of the value's 95% interval.")
    high: float | None = Field(default=None, description="Upper bound of the value's 95% interval.")
    n: Annotated[int, Field(ge=1)] | None = Field(default=None, description="How many it was measured on.")
    n_what: str = Field(default="", description="What `n` counts, such as 'problems'.")
    seeds: Sequence[int] = Field(default=(), description="Seeds of the problems.")
    chosen_on: str = Field(default="", description="What was chosen, and on which other data: whole sentences.")
    command: str = Field(default="", description="The committed command that prints the value.")
    note: str = Field(default="", description="What a reader should know besides: whole sentences.")
    reason: str = Field(default="", description="Why there is no value: a whole sentence.")

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.outcome == "measured":
            self._check_measured()
        elif not self.reason:
            raise BadInput(f"{self.finding}: {self.outcome!r} needs a reason.")
        elif self.value is not None:
            raise BadInput(f"{self.finding}: there is a value, {self.value:g}, so it cannot be {self.outcome!r}.")
        return self

    def _check_measured(self) -> None:
        for name in ("value", "shown", "command"):
            if getattr(self, name) in (None, ""):
                raise BadInput(
                    f"{self.finding}: {name} is missing; a finding that was not measured says so in outcome."
                )
        if not self.command.startswith(_STARTS):
            raise BadInput(f"{self.finding}: the command must begin with {' or '.join(_STARTS)}; got {self.command!r}.")
        if self.reason:
            raise BadInput(f"{self.finding}: it was measured, so a reason why not makes no sense; use note.")
        if (self.n is None) != (not self.n_what):
            raise BadInput(f"{self.finding}: n and n_what go together; got {self.n!r} and {self.n_what!r}.")
        self._check_interval()

    def _check_interval(self) -> None:
        if (self.low is None) != (self.high is None):
            raise BadInput(f"{self.finding}: low and high go together; got {self.low} and {self.high}.")
        if self.low is None or self.high is None:
            if FINDINGS[self.finding].rule.needs_interval:
                raise BadInput(f"{self.finding}: the verdict follows from the 95% interval; pass low and high.")
        elif not self.low - _SLACK <= float(self.value or 0) <= self.high + _SLACK:
            raise BadInput(f"{self.finding}: {self.value} is outside of its interval, {self.low} to {self.high}.")

    @property
    def verdict(self) -> Verdict:
        """Return what follows from the value by the finding's rule, or that there is none."""
        if self.outcome != "measured" or self.value is None:
            return self.outcome
        return FINDINGS[self.finding].rule.verdict(self.value, self.low, self.high)


def save_result(folder: str | Path, result: Result) -> Path:
    """Write a record to its place in a folder of results, over an earlier one, and return the path."""
    path = Path(folder) / result.model / f"{result.finding}.json"
    kept = {k: v for k, v in result.record().items() if v not in (None, "", []) and (k, v) != ("outcome", "measured")}
    write_json(path, kept)
    return path


def read_results(folder: str | Path) -> list[Result]:
    """Return every record of a folder, by model and finding.

    Raises:
        BadInput: There is no folder, a record is damaged or does not fit, or it lies where another belongs; the file is
            named.
    """
    if not Path(folder).is_dir():
        raise BadInput(f"There is no folder of results {folder}; measuring commands write it with --results {folder}.")
    return [_read(path) for path in sorted(Path(folder).glob("*/*.json"))]


def _read(path: Path) -> Result:
    record = read_json(path)
    try:
        result = Result.from_record(record)
    except BadInput as error:
        raise BadInput(f"The result {path} cannot be used: {error}") from error
    if (result.model, result.finding) != (path.parent.name, path.stem):
        raise BadInput(
            f"The result {path} is about {result.finding} and {result.model}, so its place is "
            f"{result.model}/{result.finding}.json; move it there."
        )
    return result
