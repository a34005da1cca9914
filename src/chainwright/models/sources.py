"""Names that `load_model` takes besides folders and Hub ids: the bundled models, and those that plugins register.

The bundled models are the folders next to this file, without a list of them. A plugin registers a `ModelSource` under
the kind "model"; its module is imported when the name is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chainwright import _registry
from chainwright._errors import BadInput

BUNDLED = Path(__file__).parent / "bundled"


@dataclass(frozen=True)
class ModelSource:
    """The location of a registered model.

    Attributes:
        place: A folder with a checkpoint, or a Hub id.
        revision: Branch, tag or commit on the Hub that is used if `load_model` gets none.
    """

    place: str | Path
    revision: str | None = None


def bundled_models() -> list[str]:
    """Return the names of the checkpoints that come with the package."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/config.json"))


def known_models() -> list[str]:
    """Return every name that `load_model` takes, bundled models first, then those of plugins, without importing any."""
    return [*bundled_models(), *_registry.names("model")]


def source_of(name: str) -> ModelSource | None:
    """Return the location of a bundled or registered model; None for a name that is neither.

    Raises:
        BadInput: The registered object is not a `ModelSource`, or a plugin uses the name of a bundled model.
    """
    is_bundled, is_registered = name in bundled_models(), name in _registry.names("model")
    if is_bundled and is_registered:
        raise BadInput(f"A plugin registers a model {name!r}, which is the name of a bundled one; uninstall it.")
    if is_bundled:
        return ModelSource(BUNDLED / name)
    if not is_registered:
        return None
    source = _registry.load("model", name)
    if not isinstance(source, ModelSource):
        raise BadInput(f"What is registered as model {name!r} is a {type(source).__name__}, not a ModelSource.")
    return source
