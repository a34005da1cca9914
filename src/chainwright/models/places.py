"""Where a model is read from: what Transformers loads for a name, a path or a Hub id, and where that comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from chainwright._errors import BadInput, unknown_name
from chainwright.models.adapters import WEIGHTS, check_adapter
from chainwright.models.cache import sha256_of
from chainwright.models.gguf import converted
from chainwright.models.sources import bundled_adapter, bundled_adapters, known_models, source_of

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class Place:
    """A model that was located.

    Attributes:
        where: A folder that was checked, or a Hub id.
        revision: Revision on the Hub.
        adapters: Folders of the adapters that are merged into it, in this order.
        origin: What the model's provenance says instead of `where`, if that does not name it.
    """

    where: str
    revision: str | None
    adapters: tuple[Path, ...] = ()
    origin: Mapping[str, str] = field(default_factory=dict)


def locate(
    name: str, revision: str | None = None, adapter: str | Path | None = None, *, needs_weights: bool = True
) -> Place:
    """Return where a model is; a GGUF file is converted into a checkpoint in the cache, unless it was.

    Args:
        name: As for `load_model`.
        revision: Branch, tag or commit on the Hub.
        adapter: Folder of an adapter that is to be merged into it.
        needs_weights: Whether a folder must have weights beside its config.

    Raises:
        BadInput: There is no such model or adapter, or it cannot be loaded.
    """
    source = source_of(name)
    place = str(name if source is None else source.place)
    revision = revision or (None if source is None else source.revision)
    origin: dict[str, str] = {}
    adapters: list[Path] = []
    file = _gguf_in(Path(place).expanduser())
    if file is not None:
        if revision is not None:
            raise BadInput(f"A revision belongs to a Hub id; {name} is a file on this machine, so pass none.")
        origin |= {"model": name, "gguf_sha256": sha256_of(file)}
        place = str(converted(file))
    if source is not None and source.adapter is not None:
        adapters.append(Path(source.adapter))
        origin |= {"model": name, "adapter_sha256": _hash(adapters[-1])}
        if name in bundled_adapters():
            origin |= {"revision": "bundled", "base": bundled_adapter(name).base}
    if adapter is not None:
        adapters.append(Path(adapter).expanduser())
        origin |= {"model": name, "adapter": str(adapter), "adapter_sha256": _hash(adapters[-1])}
    where, revision = _checked(place, revision, needs_weights)
    return Place(where, revision, tuple(adapters), origin)


def _hash(folder: Path) -> str:
    check_adapter(folder)
    return sha256_of(folder / WEIGHTS)


def _gguf_in(path: Path) -> Path | None:
    """Return the GGUF file that a path names: itself, or the only one in a folder without safetensors.

    Raises:
        BadInput: The file does not exist, or the folder has several.
    """
    if path.is_file():
        with path.open("rb") as file:
            is_gguf = file.read(4) == b"GGUF"
        return path if is_gguf or path.suffix.lower() == ".gguf" else None
    if not path.is_dir():
        if path.suffix.lower() == ".gguf":
            raise BadInput(f"There is no file {path}.")
        return None
    files = sorted(entry for entry in path.iterdir() if entry.suffix.lower() == ".gguf" and entry.is_file())
    if not files or any(path.glob("model*.safetensors")):
        return None
    if len(files) > 1:
        raise BadInput(f"Folder {path} holds {len(files)} GGUF files ({_named(files)}); give one of the files.")
    return files[0]


def _named(files: list[Path], most: int = 4) -> str:
    return ", ".join([path.name for path in files[:most]] + ["..."] * (len(files) > most))


def _checked(name: str, revision: str | None, needs_weights: bool) -> tuple[str, str | None]:
    """Return what Transformers loads from, a folder that was checked or a Hub id, and its revision."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        _check_folder(folder, needs_weights)
        return str(folder), revision
    if folder.suffix == ".json" and folder.is_file() and not needs_weights:
        return str(folder), revision
    if folder.exists():
        raise BadInput(f"{name} is a file; give the folder that holds config.json and the safetensors weights.")
    looks_like_hub_id = name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")
    if looks_like_hub_id:
        return name, revision
    if "/" in name:
        raise BadInput(f"There is no folder {name}; give a bundled name, an existing folder, or a Hub id 'owner/name'.")
    raise unknown_name("model", name, known_models())


def _check_folder(folder: Path, needs_weights: bool) -> None:
    if not (folder / "config.json").is_file():
        raise BadInput(f"Folder {folder} has no config.json, so it holds no Transformers checkpoint.")
    if (folder / "adapter_config.json").is_file() and not (folder / "adapter_model.safetensors").is_file():
        raise BadInput(
            f"Folder {folder} holds an adapter without adapter_model.safetensors; pickled ones are not loaded."
        )
    if not needs_weights or any(folder.glob("model*.safetensors")):
        return
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    if pickled:
        raise BadInput(
            f"Folder {folder} has its weights in a pickle format ({pickled[0]}), which can run code when loaded; save "
            "them as safetensors (with model.save_pretrained) and load that."
        )
    raise BadInput(f"Folder {folder} has a config.json but no safetensors weights.")
