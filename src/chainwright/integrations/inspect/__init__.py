"""The provider `chainwright` of inspect_ai: a model that decodes with or without repairs.

    provider    the provider: the model, its engine, and one request
    asking      from messages and a config to what the engine writes
    answers     from what was written to inspect's output, with what the repairs did

inspect_ai finds this module by its entry point (group `inspect_ai`) whichever model it runs, so that nothing heavy is
imported here before the provider is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

try:
    from inspect_ai.model import modelapi
except ModuleNotFoundError as error:
    if not (error.name or "").startswith("inspect_ai"):
        raise
    raise ModuleNotFoundError(
        "inspect_ai, which this provider belongs to, is not installed; run pip install 'chainwright[inspect]'.",
        name=error.name,
    ) from error

if TYPE_CHECKING:
    from chainwright.integrations.inspect.provider import ChainwrightAPI


@modelapi(name="chainwright")  # type: ignore[untyped-decorator]
def chainwright() -> type[ChainwrightAPI]:
    """Return the provider's class."""
    from chainwright.integrations.inspect.provider import ChainwrightAPI

    return ChainwrightAPI
