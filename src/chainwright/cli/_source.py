"""Where a model comes from besides its name: five options that every command with a model of its own takes."""

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


SOURCE = ConfigOptions("chainwright.cli._source:Source", "adapter", "device", "dtype", "revision", "trust_remote_code")


def load(model: str, source: Values) -> LoadedModel:
    """Return a model with its tokenizer."""
    from chainwright.models import load_model

    return load_model(model, **source)


def load_tokenizer(model: str, source: Values) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model alone."""
    from chainwright.models.load import load_tokenizer

    return load_tokenizer(model, **{name: source[name] for name in ("adapter", "revision", "trust_remote_code")})
