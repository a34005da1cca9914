"""A completer by its name, as the command line and the record of a search say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chainwright.diagnose.pivots.completers import Completer, GoldChain, OtherModel
from chainwright.diagnose.pivots.config import PivotConfig
from chainwright.diagnose.pivots.drawing import drawn_as
from chainwright.diagnose.pivots.endpoint import Endpoint
from chainwright.models import load_model
from chainwright.models.load import LoadedModel

ITSELF, GOLD = "itself", "gold"


def completer_for(
    loaded: LoadedModel,
    name: str | None,
    config: PivotConfig,
    *,
    server_model: str | None = None,
    api: Any = "completions",
) -> Completer | None:
    """Return who continues prefixes; None for the model that wrote them.

    Args:
        loaded: The model that wrote, or will write, the responses.
        name: "gold", the address of a server, or another model; None for the model itself.
        config: How continuations are drawn.
        server_model: The name that the server knows its model by.
        api: Through which of its ways a server is asked.

    Raises:
        BadInput: The other model cannot be loaded, or the server cannot be asked.
    """
    if name is None:
        return None
    if name == GOLD:
        return GoldChain(loaded.tokenizer)
    if server_model is not None:
        return Endpoint(name, server_model, loaded.tokenizer, drawn_as(loaded.model, config), api=api)
    other = load_model(name)
    sampling = drawn_as(other.model, config)
    return OtherModel(
        other.model, other.tokenizer, sampling, written_with=loaded.tokenizer, batch_size=config.batch_size
    )


def completer_again(loaded: LoadedModel, record: Mapping[str, Any], config: PivotConfig) -> Completer | None:
    """Return the completer whose `settings` a search has recorded.

    Raises:
        BadInput: As `completer_for`.
    """
    name = str(record["completer"])
    if "api" in record:
        model, _, url = name.rpartition(" at ")
        return completer_for(loaded, url, config, server_model=model, api=record["api"])
    return completer_for(loaded, {ITSELF: None, GoldChain.name: GOLD}.get(name, name), config)
