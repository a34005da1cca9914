"""Where a model comes from besides its name: the options that every command with a model of its own takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from chainwright._config import Config
from chainwright.cli._command import ConfigOptions, Values

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from chainwright.models import LoadedModel


class Source(Config):
    """How a model is loaded; the help texts of these options are in `_options`."""

    adapter: str | None = Field(default=None, description="Folder of a PEFT adapter that is merged into the model.")
    device: str | None = Field(default=None, description="Where the model runs; None takes CUDA if available.")
    dtype: str | None = Field(default=None, description="Number type; None takes that of the checkpoint.")
    revision: str | None = Field(default=None, description="Branch, tag or commit on the Hub.")
    trust_remote_code: bool = Field(default=False, description="Run code that comes with the checkpoint.")
    device_map: str | None = Field(default=None, description="How one process spreads it over devices; None does not.")
    tp: int | None = Field(default=None, description="Ranks that share it by tensor parallelism; None is one process.")


SOURCE = ConfigOptions(
    "chainwright.cli._source:Source",
    *("adapter", "device", "dtype", "revision", "trust_remote_code", "device_map", "tp"),
)


def load(model: str, source: Values) -> LoadedModel:
    """Return a model with its tokenizer.

    Raises:
        BadInput: It cannot be loaded, or is to be shared by ranks that the command did not start (`_ranks.in_ranks`).
    """
    from chainwright.cli._ranks import check_alone
    from chainwright.models import load_model

    named = dict(source)
    tp = named.pop("tp", None)
    check_alone(tp)
    return load_model(model, tp_plan=None if tp in (None, 1) else "auto", **named)


def load_tokenizer(model: str, source: Values) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model alone."""
    from chainwright.models.load import load_tokenizer

    return load_tokenizer(model, **{name: source[name] for name in ("adapter", "revision", "trust_remote_code")})
