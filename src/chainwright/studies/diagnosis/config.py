"""The settings of a diagnosis: the only place where their defaults are written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from chainwright import _registry
from chainwright._config import MustBe
from chainwright._errors import BadInput, unknown_name
from chainwright.studies.config import BatchSize, CellsConfig, Count, NewTokens, Place, Temperature

USUAL = ("accuracy", "errors", "heads")


def _known_instruments(names: Sequence[str]) -> Sequence[str]:
    known = _registry.names("instrument")
    if unknown := [name for name in names if name not in known]:
        raise unknown_name("instrument", unknown[0], known)
    if len(set(names)) < len(names):
        raise BadInput(f"instruments must be different; got {list(names)}.")
    return names


Instruments = Annotated[
    Sequence[str],
    Field(min_length=1),
    AfterValidator(_known_instruments),
    MustBe("a list of instruments, such as accuracy, errors, heads"),
]


class DiagnoseConfig(CellsConfig):
    """Everything that a diagnosis depends on besides the model's weights; see the fields' descriptions.

    Raises:
        BadInput: No hops, an unknown task or instrument, or a value that is too small or of a wrong type.
    """

    instruments: Instruments = Field(
        default=USUAL,
        description="What is measured: accuracy, errors (first errors and entropies), heads (needs errors), "
        "steps (step maps), or those of plugins.",
    )
    n_contexts: Count = Field(default=16, description="Contexts per set when heads are located.")
    min_errors: Count = Field(
        default=5, description="A key error type with fewer known first errors is not searched for heads."
    )
    max_types: int = Field(default=2, ge=0, description="Key error types per task that are searched for heads.")
    n_maps: Count = Field(
        default=8, description="Traces per cell, right and wrong ones each, that step maps are made of."
    )
    repair: Place | None = Field(
        default=None,
        description="Repair (a bundled name, a folder or a Hub id) with which every problem is answered again.",
    )
    temperature: Temperature = 0.0
    max_new_tokens: NewTokens = None
    batch_size: BatchSize = None
    adapter: str | None = Field(default=None, description="Folder of a PEFT adapter that is merged into the model.")
    dtype: str | None = Field(default=None, description="Number type of the model (default: the checkpoint's).")
    revision: str | None = Field(default=None, description="Branch, tag or commit on the Hub.")

    @model_validator(mode="after")
    def _heads_need_errors(self) -> Self:
        if "heads" in self.instruments and "errors" not in self.instruments:
            raise BadInput("The instrument 'heads' looks at first errors; add 'errors' to the instruments.")
        return self
