"""The command `plan`."""

from __future__ import annotations

from typing import Annotated

import typer

from chainwright._registry import register
from chainwright.cli._options import Dtype, HopCounts, ModelName, RemoteCode, Revision
from chainwright.cli._shared import err, say


@register("command", "plan")
def plan(
    model: ModelName = "reasoner",
    device: Annotated[
        str, typer.Option("--device", help="A GPU such as h100, a100-80 or rtx4090, or 'cpu' (this machine, measured).")
    ] = "h100",
    memory: Annotated[
        float | None, typer.Option("--memory", help="GB to count on (default: all that the device has).")
    ] = None,
    task: Annotated[str, typer.Option("--task", "-t", help="Tasks that are asked, separated by commas, or 'all'.")] = (
        "all"
    ),
    hops: HopCounts = None,
    n: Annotated[
        int | None, typer.Option("-n", help="Problems per task and hop count (default: as `diagnose`).")
    ] = None,
    answer_tokens: Annotated[
        int | None,
        typer.Option("--answer-tokens", help="Tokens of an answer (default: those of the gold chain)."),
    ] = None,
    map_tokens: Annotated[int, typer.Option("--map-tokens", help="Tokens of a trace with a step map.")] = 16384,
    dtype: Dtype = None,
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Print what studying a model will take on a device, memory and hours, from its config alone."""
    from chainwright._errors import BadInput
    from chainwright.planning.devices import GB, check_device
    from chainwright.planning.devices import device as device_of
    from chainwright.planning.plan import plan_model, read_shape
    from chainwright.planning.usual import usual_asked

    for flag, value in (("-n", n), ("--answer-tokens", answer_tokens), ("--map-tokens", map_tokens)):
        if value is not None and value < 1:
            raise BadInput(f"{flag} must be at least 1; got {value}.")
    check_device(device, None if memory is None else memory * GB)
    shape = read_shape(model, revision=revision, trust_remote_code=trust_remote_code)
    on = device_of(device, None if memory is None else memory * GB, width=shape.d_model, n_weights=shape.in_layers)
    asked = usual_asked(shape, on, task=task, hops=hops, n=n, answer=answer_tokens, map_tokens=map_tokens)
    found = plan_model(shape, on, asked, dtype=dtype)
    for line in found.lines():
        say(line)
    say("")
    for line in found.table():
        say(line)
    if found.warning:
        err.print(found.warning, markup=False, highlight=False, soft_wrap=True)
