"""Names that `load_model` takes besides folders, files and Hub ids.

- The bundled models are the folders `bundled/<name>` next to this file, without a list of them.
- The pretrained models that can be fetched are listed in `fetch`; their files are in the user's cache.
- The bundled adapters are the folders `bundled_adapters/<name>`; their `recipe.json` names the model they belong on.
- A plugin registers a `ModelSource` under the kind "model"; its module is imported when the name is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chainwright import _registry
from chainwright._errors import BadInput
from chainwright._files import read_json
from chainwright.models.fetch import fetchable_models, fetched_file, package_of

BUNDLED = Path(__file__).parent / "bundled"
ADAPTERS = Path(__file__).parent / "bundled_adapters"


@dataclass(frozen=True)
class ModelSource:
    """The location of a registered model.

    Attributes:
        place: A folder with a checkpoint, a GGUF file, or a Hub id.
        revision: Branch, tag or commit on the Hub that is used if `load_model` gets none.
        adapter: Folder of an adapter that is merged into it.
    """

    place: str | Path
    revision: str | None = None
    adapter: str | Path | None = None


@dataclass(frozen=True)
class BundledAdapter:
    """An adapter that comes with the package, on a model that can be fetched.

    Attributes:
        name: Its name for `load_model`.
        folder: Where it lies.
        base: Name of the model that it belongs on.
        base_sha256: SHA-256 of that model's file when the adapter was trained.
    """

    name: str
    folder: Path
    base: str
    base_sha256: str


def bundled_models() -> list[str]:
    """Return the names of the checkpoints that come with the package."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/config.json"))


def bundled_adapters() -> list[str]:
    """Return the names of the adapters that come with the package, each a model for `load_model`."""
    return sorted(path.parent.name for path in ADAPTERS.glob("*/adapter_config.json"))


def bundled_adapter(name: str) -> BundledAdapter:
    """Return what is known of an adapter that comes with the package, without its base."""
    recipe = read_json(ADAPTERS / name / "recipe.json")
    return BundledAdapter(name, ADAPTERS / name, recipe["base"], recipe["base_sha256"])


def shots_of_recipe(folder: Path) -> int | None:
    """Return how many demonstrations an adapter of ours was trained with; None for an adapter without our recipe."""
    try:
        recipe = read_json(folder / "recipe.json")
    except BadInput:  # no file, or one that is not ours
        return None
    shots = recipe.get("shots") if isinstance(recipe, dict) and "trainings" in recipe else None
    return shots if isinstance(shots, int) else None


def known_models() -> list[str]:
    """Return every name that `load_model` takes, without importing any: bundled, fetchable, adapters, plugins."""
    return [*_own_models(), *_registry.names("model")]


def _own_models() -> list[str]:
    return [*bundled_models(), *fetchable_models(), *bundled_adapters()]


def source_of(name: str) -> ModelSource | None:
    """Return the location of a bundled, fetched or registered model; None for a name that is none of them.

    Raises:
        BadInput: The model was not fetched, the registered object is not a `ModelSource`, or a plugin uses the name of
            one of Chainwright's models.
    """
    is_own, is_registered = name in _own_models(), name in _registry.names("model")
    if is_own and is_registered:
        raise BadInput(f"A plugin registers a model {name!r}, which is the name of a bundled one; uninstall it.")
    if is_own:
        return _own(name)
    if not is_registered:
        return None
    source = _registry.load("model", name)
    if not isinstance(source, ModelSource):
        raise BadInput(f"What is registered as model {name!r} is a {type(source).__name__}, not a ModelSource.")
    return source


def _own(name: str) -> ModelSource:
    if name in bundled_models():
        return ModelSource(BUNDLED / name)
    if name in fetchable_models():
        return ModelSource(fetched_file(name))
    adapter = bundled_adapter(name)
    if package_of(adapter.base).sha256 != adapter.base_sha256:
        raise BadInput(f"The adapter {name!r} was trained on another file than {adapter.base!r} is now; reinstall it.")
    return ModelSource(fetched_file(adapter.base), adapter=adapter.folder)
