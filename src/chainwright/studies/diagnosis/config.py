"""The settings of a diagnosis: the only place where their defaults are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from chainwright import _registry
from chainwright._config import MustBe
from chainwright._errors import BadInput, unknown_name
from chainwright.prompts.asking import Asking
from chainwright.studies.config import (
    BatchSize,
    CellsConfig,
    Count,
    DecodeSettings,
    Hops,
    NewTokens,
    Place,
    Temperature,
)
from chainwright.tasks.problem_sets import ProblemSource
from chainwright.traces.source import TraceSource

USUAL = ("accuracy", "errors", "heads")
OPEN = ("accuracy", "curves", "steps")
"""The usual instruments where there are no slots, so that first errors are not known."""

_LATER = (
    "problems",
    "traces",
    "sha256",
    "asking",
    "decoding",
    "adapter",
    "n_evidence",
    "measured",
    "sweep_bytes",
    "engine",
    "engine_url",
    "engine_model",
    "engine_tolerance",
    "engine_timeout",
)


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

    It is of one of three things: cells of tasks (`hops`), a problem set (`problems`), or trace files (`traces`), to
    which `problems` may add the problems that they answer.

    Raises:
        BadInput: None or several of the three, an unknown task or instrument, or a value that is too small or of a
            wrong type.
    """

    hops: Hops = Field(default={}, description="Hop counts by task.")
    problems: ProblemSource | None = Field(default=None, description="The problem set that the model is asked.")
    traces: TraceSource | None = Field(default=None, description="The trace files that are diagnosed.")
    sha256: Mapping[str, str] = Field(
        default={}, description="Hashes of the problems and trace files, filled in when the study begins."
    )
    instruments: Instruments = Field(
        default=USUAL,
        description="What is measured: accuracy, errors (first errors and entropies), heads (needs errors), curves "
        "(entropy along responses), steps (step maps), pivots (first errors without slots), or those of plugins.",
    )
    n_contexts: Count = Field(default=16, description="Contexts per set when heads are located.")
    min_errors: Count = Field(
        default=5, description="A key error type with fewer known first errors is not searched for heads."
    )
    max_types: int = Field(default=2, ge=0, description="Key error types per task that are searched for heads.")
    measured: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="Share of the heads of a large model that are measured, as in RolesConfig; the rest is estimated.",
    )
    n_evidence: Count = Field(
        default=6, description="Heads without which the predictions at errors of a key type are recorded one by one."
    )
    sweep_bytes: Count | None = Field(
        default=None,
        description="Bytes that sweeps over heads, and blocks of step maps, may take (default: by device; `chainwright "
        "plan` says what fits).",
    )
    n_maps: Count = Field(
        default=8,
        description="Traces per cell (of a problem set: in all), right and wrong each, that step maps are made of.",
    )
    engine: Literal["openai", "vllm"] | None = Field(
        default=None,
        description="Who writes the traces of the plain model: an OpenAI-compatible server, or vLLM in this process "
        "(default: the model itself).",
    )
    engine_url: str | None = Field(
        default=None, description="Address of the server, up to /v1, such as http://localhost:8000/v1."
    )
    engine_model: str | None = Field(default=None, description="What the engine calls the model (default: its name).")
    engine_tolerance: float = Field(
        default=0.05,
        gt=0,
        description="How far the engine's log-probabilities may be from the model's own, nats per token on average.",
    )
    engine_timeout: float = Field(
        default=600.0, gt=0, description="Seconds until a request to the engine's server is given up."
    )
    repair: Place | None = Field(
        default=None,
        description="Repair (a bundled name, a folder or a Hub id) with which every problem is answered again.",
    )
    asking: Asking | None = Field(default=None, description="How problems are asked; default: as they are written.")
    decoding: DecodeSettings | None = Field(
        default=None, description="What else decides how responses are drawn: samples per problem, top-p, stops, ..."
    )
    temperature: Temperature = 0.0
    max_new_tokens: NewTokens = None
    batch_size: BatchSize = None
    adapter: str | None = Field(default=None, description="Folder of a PEFT adapter that is merged into the model.")
    dtype: str | None = Field(default=None, description="Number type of the model (default: the checkpoint's).")
    revision: str | None = Field(default=None, description="Branch, tag or commit on the Hub.")

    @model_validator(mode="before")
    @classmethod
    def _usual_instruments(cls, settings: Any) -> Any:
        if isinstance(settings, Mapping) and "instruments" not in settings and not settings.get("hops"):
            return {**settings, "instruments": OPEN}
        return settings

    @model_validator(mode="after")
    def _has_cells(self) -> Self:
        named = [name for name in ("hops", "problems", "traces") if getattr(self, name)]
        if not named:
            raise BadInput(
                "No hops were asked for, nor problems or traces; a diagnosis is of tasks, of a problem set or of "
                "trace files."
            )
        if self.hops and not self.cells():
            raise BadInput("No hops were asked for; a diagnosis of tasks needs at least one hop count of one task.")
        if "hops" in named and len(named) > 1:
            raise BadInput(f"A diagnosis is either of tasks (hops) or of {named[1]}; name one of them.")
        if self.traces is not None and self.repair is not None:
            raise BadInput("A repair answers problems again, and a diagnosis of traces asks none; take one of them.")
        return self

    def record(self) -> dict[str, Any]:
        """Return every setting as plain values; those that came later only if they are set.

        So the record of a study of tasks stays what it was, and a study that was begun before is resumed.
        """
        return {
            name: value
            for name, value in super().record().items()
            if name not in _LATER or value not in (None, {}, type(self).model_fields[name].default)
        }

    @property
    def searches_heads(self) -> bool:
        """Return whether heads are looked for at any key error type."""
        return "heads" in self.instruments and self.max_types > 0

    @property
    def drawing(self) -> DecodeSettings:
        """Return everything that decides how responses are drawn, from `decoding` and the settings beside it."""
        base = self.decoding or DecodeSettings()
        is_models = base.sampling == "model" and not self.temperature
        return base.replace(
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            temperature=None if is_models else self.temperature,
            seed=self.seeds[0],
        )

    @model_validator(mode="after")
    def _engine_is_whole(self) -> Self:
        if self.engine is not None and self.traces is not None:
            raise BadInput("An engine writes traces, and a diagnosis of traces takes those of files; take one of them.")
        if self.engine == "openai" and not self.engine_url:
            raise BadInput("The engine openai needs the server's address: engine_url (--engine-url), up to /v1.")
        if self.engine != "openai" and self.engine_url:
            raise BadInput("engine_url is the address of a server; pass engine='openai' (--engine openai) with it.")
        return self

    @model_validator(mode="after")
    def _heads_need_errors(self) -> Self:
        if "heads" in self.instruments and "errors" not in self.instruments:
            raise BadInput("The instrument 'heads' looks at first errors; add 'errors' to the instruments.")
        return self
