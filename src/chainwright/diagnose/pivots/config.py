"""How pivots are looked for: the only place where these defaults are written."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from chainwright._config import Config, MustBe
from chainwright._errors import BadInput

Count = Annotated[int, Field(ge=1)]


def _rising(band: tuple[float, float]) -> tuple[float, float]:
    low, high = band
    if not 0 <= low < high <= 1:
        raise BadInput(f"band must be two rising shares between 0 and 1, such as 0.2-0.9; got {low:g}-{high:g}.")
    return band


Band = Annotated[tuple[float, float], AfterValidator(_rising), MustBe("two rising shares such as [0.2, 0.9]")]


class PivotConfig(Config):
    """How much a prefix's value must fall to count, how sure that must be, and what may be spent on it.

    Raises:
        BadInput: A value is out of bounds, or greedy decoding is to give more than one continuation.
    """

    drop: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.2, description="How far the probability of a right end must fall at a pivot."
    )
    error_rate: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        default=0.05,
        description="Allowed rate of false alarms: falls no larger than `drop` that are reported as pivots.",
    )
    to: Literal["token", "step"] = Field(
        default="token", description="Locate a pivot to the token, or only to its step."
    )
    per_boundary: Count | None = Field(
        default=None,
        description="Continue at the end of every step, so many times each (default: only where it is decided, as "
        "often as it takes).",
    )
    budget: Count = Field(
        default=128, description="Maximum number of continuations per response, in the sequential search."
    )
    n_start: Count = Field(default=4, description="Continuations of the question alone, before anything else.")
    n_probe: Count = Field(
        default=12, description="Continuations after which a prefix counts as it looks, while searching."
    )
    n_most: Count = Field(default=32, description="Maximum number of continuations of one prefix.")
    n_rechecks: int = Field(
        default=2, ge=0, description="Later step ends that are continued to see whether the fall was made good."
    )
    n_alternatives: int = Field(
        default=2, ge=0, description="Other likely tokens at a pivot whose continuations are tried as well."
    )
    n_per_alternative: Count = Field(default=4, description="Continuations of each of them.")
    band: Band = Field(
        default=(0.1, 0.99), description="Pass rates of problems that are searched; the others are only counted."
    )
    n_samples: Count = Field(default=8, description="Responses per problem by which its pass rate is judged.")
    temperature: Annotated[float | None, Field(ge=0)] = Field(
        default=None, description="Temperature of continuations (default: the checkpoint's, or 0.6)."
    )
    top_p: Annotated[float | None, Field(gt=0, le=1)] = Field(
        default=None, description="Nucleus of continuations (default: the checkpoint's, or 0.95)."
    )
    max_new_tokens: Count | None = Field(
        default=None,
        description="Longest response, the prefix included (default: that of the trace, or twice its length).",
    )
    batch_size: Count | None = Field(default=None, description="Rows continued together (default: by their length).")

    @model_validator(mode="after")
    def _draws_differ(self) -> Self:
        if self.temperature == 0 and self.n_most > 1:
            raise BadInput(
                "At temperature 0 every continuation of a prefix is the same, so more than one tells nothing; use a "
                "temperature above 0, or n_most=1."
            )
        return self


def parse_band(text: str) -> tuple[float, float]:
    """Return the two shares of a text such as "0.2-0.9".

    Raises:
        BadInput: It is no such text.
    """
    found = re.fullmatch(r"\s*(\d*\.?\d+)\s*[-,:]\s*(\d*\.?\d+)\s*", text)
    if found is None:
        raise BadInput(f"A band must be two rising shares between 0 and 1, such as 0.2-0.9; got {text!r}.")
    shares: Any = tuple(float(share) for share in found.groups())
    return _rising(shares)
