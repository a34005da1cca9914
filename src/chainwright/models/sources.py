"""Names that `load_model` takes besides folders and Hub ids: the bundled models, and those that plugins register.

The bundled models are the folders beside this file, and need no list. A plugin registers a `ModelSource` under the kind
"model"; its module is imported when its name is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chainwright import _registry
from chainwright._errors import BadInput

BUNDLED = Path(__file__).parent / "bundled"


@dataclass(frozen=True)
class ModelSource:
    """Where the model of a registered name is.

    Attributes:
        place: A folder with a checkpoint, or a Hub id.
        revision: Branch, tag or commit on the Hub, where `load_model` is passed none.
    """

    place: str | Path
    revision: str | None = None


def bundled_models() -> list[str]:
    """Return the names of the checkpoints that come with the package."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/config.json"))


def known_models() -> list[str]:
    """Return every name that `load_model` takes: the bundled models, then those of plugins; nothing is imported."""
    return [*bundled_models(), *_registry.names("model")]


def source_of(name: str) -> ModelSource | None:
    """Return where the model of a bundled or registered name is; None for a name that is neither.

    Raises:
        BadInput: Something else than a `ModelSource` is registered, or one has the name of a bundled model.
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
