"""The command `serve`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chainwright._errors import BadInput
from chainwright._registry import register
from chainwright.cli._command import ConfigOptions, Values
from chainwright.cli._options import ModelName
from chainwright.cli._shared import load_repair, say
from chainwright.cli._source import SOURCE, load

if TYPE_CHECKING:
    from chainwright.repair.base import Repair

SERVING = ConfigOptions(
    "chainwright.integrations.server.config:ServeConfig",
    "host",
    "port",
    "api_key",
    "max_batch",
    "max_waiting",
    "max_body",
    "max_new_tokens",
    "timeout",
    "grace",
    helps={"max_new_tokens": "Most tokens that a request may ask for (default: what the model has room for)."},
)


@register("command", "serve")
def serve(
    model: ModelName = "reasoner",
    repair: Annotated[
        list[str] | None,
        typer.Option(
            "--repair",
            help="A repair that requests may name: a bundled name, a folder, or a Hub id; NAME=FOLDER names it.",
        ),
    ] = None,
    served_name: Annotated[
        str | None, typer.Option("--served-name", help="Name of the model in requests (default: that of --model).")
    ] = None,
    serving: Values = SERVING,
    source: Values = SOURCE,
) -> None:
    """Serve a model with repairs to OpenAI-compatible clients."""
    from chainwright.integrations.server.config import ServeConfig

    config = ServeConfig(**serving)
    try:
        from chainwright.integrations.server.app import Server, listen
    except ModuleNotFoundError as error:
        raise BadInput(
            f"chainwright serve needs {error.name}, which is not installed: pip install 'chainwright[serve]'."
        ) from error
    from chainwright.integrations.server.asking import Service
    from chainwright.integrations.server.engine import Engine

    with listen(config) as listening:
        repairs = named_repairs(repair or ())
        loaded = load(model, source)
        engine = Engine(
            loaded.model,
            loaded.tokenizer,
            repairs,
            max_batch=config.max_batch,
            max_waiting=config.max_waiting,
            timeout=config.timeout,
        )
        service = Service(served_name or Path(model).name, engine, config.max_new_tokens)
        host, port = listening.getsockname()[:2]
        say(f"Serving {', '.join(service.names)}")
        say(f"Base URL of clients: http://{host}:{port}/v1 (stop with Ctrl-C)")
        if config.api_key is None and not host.startswith("127.") and host != "::1":
            say("Every machine that reaches this address can use it; --api-key asks for a token.")
        Server(service, config).run(sockets=[listening])
        say("Stopped.")


def named_repairs(specs: list[str] | tuple[str, ...]) -> dict[str, Repair]:
    """Return repairs by the names that requests use.

    Raises:
        BadInput: One cannot be loaded, or a name is no name or is used twice.
    """
    repairs: dict[str, Repair] = {}
    for spec in specs:
        name, _, place = spec.rpartition("=")
        name = name or Path(place).name
        if not name or "+" in name or name.strip() != name:
            raise BadInput(f"A repair cannot be served as {name!r}; name it: --repair NAME={place}.")
        if name in repairs:
            raise BadInput(f"Two repairs would be served as {name!r}; name one of them: --repair NAME={place}.")
        loaded = load_repair(place)
        assert loaded is not None
        repairs[name] = loaded
    return repairs
