"""What every repair has in common: it is attached to a model, counts its cost, and is a folder that others can open.

    repair.json          kind, schema version, settings, the model it was made for, measured figures
    repair.safetensors   its tensors
    README.md            the card: what it is, for which model, what was measured

Nothing is pickled, and loading runs no code that came with the folder.
"""

from __future__ import annotations

import tempfile
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar, final

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from chainwright import _notebook
from chainwright._config import Config
from chainwright._errors import BadInput, OtherWeights, see, unknown_name
from chainwright._files import atomic_folder, current_folder, read_json, write_json
from chainwright._registry import load_saved, names, source_of
from chainwright.models.anatomy import anatomy
from chainwright.models.load import provenance
from chainwright.repair._card import card
from chainwright.repair.run import Cost
from chainwright.scoring import Corrections
from chainwright.traces import Trace

# connections that fail are HTTPErrors, and so are answers of the Hub; what is wrong on this side is an OSError
_HUB_ERRORS = (HTTPError, HFValidationError, OSError)
SCHEMA_VERSION = 1
BUNDLED = Path(__file__).parent / "bundled"
_CONFIG, _TENSORS, _CARD = "repair.json", "repair.safetensors", "README.md"
_SHAPE = ("model_type", "shape", "n_kv_heads", "d_vocab")
R = TypeVar("R", bound="Repair")


@dataclass(frozen=True)
class Origin:
    """Which model a repair was made for, and what was measured on it.

    Attributes:
        model: Provenance of the model, with its head counts. Empty for a repair that fits any model.
        figures: What was measured, as a table: rows of names and numbers.
        note: What the figures were measured on.
    """

    model: Mapping[str, str] = field(default_factory=dict)
    figures: list[dict[str, Any]] = field(default_factory=list)
    note: str = ""


def model_identity(model: nn.Module) -> dict[str, str]:
    """Return what a repair is bound to: the model's provenance, with its kv heads and vocabulary."""
    parts = anatomy(model)
    return {**provenance(parts.model), "n_kv_heads": str(parts.n_kv_heads), "d_vocab": str(parts.d_vocab)}


class Repair(ABC):
    """A fitted policy that changes how a model decodes, and nothing of the model itself.

    A repair holds no state of a run: it may be attached to several models at once, and can be pickled. Several repairs
    decode together as a list (`repair=[stepflow, tcr]` in `generate` and `score`): those that edit the forward pass
    are attached first, in the order given, then the one that decides tokens, which sees what the edits made.

    A kind of repair needs `attached`; for what only edits the forward pass the defaults of `scoring` and `corrections`
    are right. To be saved it needs `settings`, `tensors` and `restore` too.

    Attributes:
        kind: The name under which it is saved.
        schema: The settings that `restore` reads, which are checked when a repair is loaded; None leaves the checks to
            `restore`.
        remedy: What to do where a repair does not fit a model.
        decides_tokens: Whether it decides single tokens by their logits, instead of editing the forward pass.
        acts_by_row: Whether it can act in some rows of a batch alone; see `edits/batches.py`.
        origin: The model it was made for, and its figures.
        cost: What the last run with it attached took; a new one each time it is attached to decode.
    """

    kind: ClassVar[str]
    schema: ClassVar[type[Config] | None] = None
    remedy: ClassVar[str] = "make one for this model"
    decides_tokens: ClassVar[bool] = False
    acts_by_row: ClassVar[bool] = False
    origin: Origin
    cost: Cost
    _met: weakref.ref[nn.Module] | None = None

    def __init__(self, origin: Origin | None = None):
        self.origin = origin or Origin()
        self.cost = Cost()

    @abstractmethod
    def attached(self, model: nn.Module) -> AbstractContextManager[Cost]:
        """Return a context in which `model` decodes with the repair, also inside `model.generate`.

        Raises:
            BadInput: The repair was made for another model.
            UnsupportedModel: The model does not go through the seam.
        """

    @contextmanager
    def scoring(self, model: nn.Module, traces: Sequence[Trace]) -> Iterator[None]:
        """Score these traces, left-padded as one batch, as decoding them with the repair would have gone.

        The default attaches the repair and leaves its `cost` as it was.
        """
        cost = self.cost
        try:
            with self.attached(model):
                yield
        finally:
            self.cost = cost

    def corrections(self, model: nn.Module, traces: Sequence[Trace]) -> list[Corrections]:
        """Return for each trace the logits that decoding would have seen in place of the model's; default: none.

        Called inside `scoring` of all repairs that decode together.
        """
        return []

    def check_beside(self, other: Repair) -> None:
        """Raise BadInput if the two cannot decode together.

        The default refuses two of one kind, and two that decide tokens: each would have to see what the other decided.
        """
        if self.decides_tokens and other.decides_tokens:
            raise BadInput(
                f"A {self.kind} repair and a {other.kind} repair both decide single tokens, so they cannot decode "
                "together; choose one, or combine it with a repair that edits the forward pass."
            )
        if self.kind == other.kind:
            raise BadInput(f"Two {self.kind} repairs cannot decode together; put both settings into one of them.")

    def settings(self) -> dict[str, Any]:
        """Return everything but tensors that makes the repair, as plain JSON values.

        Raises:
            BadInput: It cannot be saved (the default).
        """
        raise BadInput(f"A {self.kind} repair is for studies and cannot be saved.")

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that make the repair."""
        return {}

    @classmethod
    def restore(cls: type[R], settings: Mapping[str, Any], tensors: Mapping[str, Tensor], origin: Origin) -> R:
        """Return the repair that `settings` and `tensors` describe.

        Raises:
            BadInput: They do not describe one, or none can be saved (the default).
        """
        raise BadInput(f"A {cls.kind} repair is for studies and cannot be loaded.")

    def describe(self) -> str:
        """Return in a few sentences what the repair does, for its card."""
        return (type(self).__doc__ or self.kind).partition("\n")[0]

    def _repr_html_(self) -> str:
        """Return what a notebook shows: what it does, and what was measured when it was made."""
        columns = {key: [row.get(key) for row in self.origin.figures] for row in self.origin.figures[:1] for key in row}
        return _notebook.block(
            f"Repair: {self.kind}",
            _notebook.text(self.describe()),
            _notebook.table(columns, len(self.origin.figures)),
        )

    @final
    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: everything but the model that was met last."""
        return {name: value for name, value in vars(self).items() if name not in self._not_pickled()}

    def _not_pickled(self) -> frozenset[str]:
        """Return the attributes that belong to this process alone."""
        return frozenset({"_met"})

    def check_model(self, model: nn.Module) -> None:
        """Raise BadInput if the repair was made for a model of another type, shape or vocabulary.

        Warns with `OtherWeights` if all that agrees and the weights do not. Weights of another number type are not
        compared, since their fingerprints differ anyway. A fingerprint reads every weight, so a model that this
        repair has met before is not read again.
        """
        made_for = self.origin.model
        if not made_for or (self._met is not None and self._met() is model):
            return
        found = model_identity(model)
        if any(made_for.get(part) != found[part] for part in _SHAPE):
            raise BadInput(
                f"This {self.kind} repair was made for {_named(made_for)}, not for {_named(found)}; {self.remedy} "
                f"{see('repairs-of-another-model')}."
            )
        if made_for.get("dtype") == found["dtype"] and made_for.get("fingerprint") not in (None, found["fingerprint"]):
            warnings.warn(
                f"This {self.kind} repair was made for other weights than those of {found['model']} (fingerprint "
                f"{made_for['fingerprint']}, not {found['fingerprint']}), so its output on them is not meaningful; "
                f"{self.remedy}.",
                OtherWeights,
                stacklevel=3,
            )
        self._met = weakref.ref(model)

    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the repair and its card into a new folder.

        Raises:
            BadInput: The folder exists and `overwrite` is off, it holds something else than a repair, or it cannot
                be written.
        """
        folder = Path(folder)
        if folder.exists() and not overwrite:
            raise BadInput(f"{folder} exists; pass overwrite=True (--overwrite) or choose another folder.")
        if folder.exists() and not (folder / _CONFIG).is_file():
            raise BadInput(f"{folder} exists and holds no repair, so it is not replaced; choose another folder.")
        record = {
            "schema_version": SCHEMA_VERSION,
            "kind": self.kind,
            "settings": self.settings(),
            "origin": asdict(self.origin),
        }
        # who reads the folder without this plugin learns what to install
        if (package := source_of("repair", self.kind)) is not None:
            record["package"] = package
        # clones, since safetensors refuses tensors that share their memory
        kept = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in self.tensors().items()}
        with atomic_folder(folder) as draft:
            save_file(kept, draft / _TENSORS)
            write_json(draft / _CONFIG, record)
            (draft / _CARD).write_text(card(self.kind, self.describe(), asdict(self.origin)), encoding="utf-8")
        return folder

    @classmethod
    def from_pretrained(cls: type[R], name: str | Path, *, revision: str | None = None, token: str | None = None) -> R:
        """Return the repair of a folder, a bundled name (see `bundled_repairs`) or a Hub id.

        Called on `Repair` itself it takes any kind.

        Args:
            name: Where it is.
            revision: Branch, tag or commit on the Hub.
            token: Of the Hub, for private repositories; None for the one that you are logged in with.

        Raises:
            BadInput: There is none such, it is of another kind, damaged, or written by a newer schema.
        """
        folder = _resolve(str(name), revision, token)
        record = read_json(folder / _CONFIG)
        kind = _kind(cls, folder, record)
        try:
            tensors = load_file(folder / _TENSORS)
        except (OSError, SafetensorError) as error:
            raise BadInput(f"{folder / _TENSORS} is missing or damaged: {error}.") from error
        # only what is wrong with the folder is said to be; any other error is a mistake in `restore`, and shown as such
        try:
            saved = _Saved.from_record({name: record[name] for name in ("settings", "origin") if name in record})
            if kind.schema is not None:
                kind.schema.from_record(saved.settings)
        except BadInput as error:
            raise _damaged(folder, kind, error) from error
        try:
            return kind.restore(_complaining(saved.settings), _Complaining(tensors), Origin(**record["origin"]))
        except _NotThere as error:
            raise _damaged(folder, kind, error) from error

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        revision: str | None = None,
        message: str = "Upload repair",
    ) -> str:
        """Upload the repair with its card to the Hub, and return where it is.

        Args:
            repo_id: The repository, "owner/name"; made if it is not there.
            private: Whether a repository that is made is private.
            token: Of the Hub; None for the one that you are logged in with.
            revision: A branch to put it on, made if it is not there; None for the main one.
            message: Of the commit.

        Raises:
            BadInput: The Hub refuses, or cannot be reached.
        """
        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as parent:
            folder = self.save_pretrained(Path(parent) / "repair")
            try:
                api.create_repo(repo_id, private=private, exist_ok=True)
                if revision is not None:
                    api.create_branch(repo_id, branch=revision, exist_ok=True)
                done = api.upload_folder(repo_id=repo_id, folder_path=folder, revision=revision, commit_message=message)
            except _HUB_ERRORS as error:
                raise BadInput(f"The repair could not be put on the Hub as {repo_id!r}: {_line(error)}") from error
        return str(done)


def bundled_repairs() -> list[str]:
    """Return the names of the repairs that come with the package."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{_CONFIG}"))


class _SavedOrigin(Config):
    model: dict[str, str | None] = Field(description="Provenance of the model.")
    figures: tuple[dict[str, Any], ...] = Field(description="What was measured, row by row.")
    note: str = Field(description="What the figures were measured on.")


class _Saved(Config):
    settings: dict[str, Any] = Field(description="The repair's settings.")
    origin: _SavedOrigin = Field(description="The model that it was made for.")


class _NotThere(BadInput):
    """A saved repair lacks something that its kind reads."""


class _Complaining(dict[str, Any]):
    """A table in which a name that is missing is a mistake of whoever wrote it, not of the code that reads it."""

    def __missing__(self, name: str) -> Any:
        raise _NotThere(f"{name!r} is missing.")


def _complaining(saved: Any) -> Any:
    if isinstance(saved, Mapping):
        return _Complaining({name: _complaining(value) for name, value in saved.items()})
    return [_complaining(value) for value in saved] if isinstance(saved, (list, tuple)) else saved


def _damaged(folder: Path, kind: type[Repair], error: BadInput) -> BadInput:
    return BadInput(
        f"The repair in {folder} is damaged: its parts do not make a {kind.__name__} ({_line(error)[:-1]}); save or "
        "fetch it again."
    )


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Put saved tensors into a module.

    Args:
        module: Where they go.
        tensors: What `module.state_dict()` was.
        name: What the module is of the repair, for the message.

    Raises:
        BadInput: A tensor is missing, of another shape, or none of the module's.
    """
    due, saved = ({key: tuple(t.shape) for key, t in group.items()} for group in (module.state_dict(), tensors))
    if due != saved:
        wrong = sorted({*due.items()} ^ {*saved.items()})[0][0]
        raise BadInput(
            f"The repair is damaged: {name} has {saved.get(wrong, 'nothing')} at {wrong!r} where "
            f"{due.get(wrong, 'nothing')} is due; save or fetch it again."
        )
    module.load_state_dict(dict(tensors))


def _named(identity: Mapping[str, str]) -> str:
    kv, size = identity.get("n_kv_heads"), identity.get("d_vocab")
    return (
        f"{identity.get('model')} ({identity.get('model_type')}, {identity.get('shape')}, {kv} kv heads, {size} tokens)"
    )


def _resolve(name: str, revision: str | None, token: str | None) -> Path:
    """Return the folder of a repair, fetched if it is a Hub id."""
    if name in bundled_repairs():
        return BUNDLED / name
    folder = current_folder(Path(name).expanduser())
    if (folder / _CONFIG).is_file():
        return folder
    if folder.exists():
        raise BadInput(
            f"{name} holds no repair (there is no {_CONFIG} in it); give a folder that save_pretrained wrote."
        )
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise BadInput(
            f"There is no folder {name}; give one that save_pretrained wrote, a Hub id 'owner/name', or one of "
            f"{', '.join(bundled_repairs())}."
        )
    if "/" not in name:
        raise unknown_name("repair", name, bundled_repairs())
    wanted = [_CONFIG, _TENSORS, _CARD]
    try:
        fetched = Path(snapshot_download(name, revision=revision, token=token, allow_patterns=wanted))
    except (*_HUB_ERRORS, ValueError) as error:
        raise BadInput(f"There is no folder {name}, and the Hub gives no such repair: {_line(error)}") from error
    if not (fetched / _CONFIG).is_file():
        raise BadInput(f"{name} on the Hub holds no repair (there is no {_CONFIG} in it); give one that has.")
    return fetched


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".") + "."


def _kind(cls: type[R], folder: Path, record: Any) -> type[R]:
    """Return the class that made a record, checked to be `cls` or one of its kinds, and of this schema."""
    version = record.get("schema_version") if isinstance(record, dict) else None
    if version != SCHEMA_VERSION:
        raise BadInput(
            f"{folder} has repair schema version {version}, this Chainwright reads {SCHEMA_VERSION}; use the version "
            "of Chainwright that wrote it, or fit it again."
        )
    name, own = record.get("kind"), vars(cls).get("kind")
    if name is not None and name == own:
        return cls
    refusal = f"{folder} holds a repair of kind {name!r}; {cls.__name__} reads: {own or ', '.join(names('repair'))}."
    if record.get("package") is None and name not in names("repair"):
        raise BadInput(refusal)
    kind = load_saved("repair", name, record.get("package"), f"The repair in {folder}")
    if not issubclass(kind, cls):
        raise BadInput(refusal)
    return kind  # type: ignore[no-any-return]
