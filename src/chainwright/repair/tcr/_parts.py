"""Saving and restoring the exchangeable parts of a repair, its detector and selector, by their registered names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from chainwright._errors import BadInput
from chainwright._registry import load_saved, name_of, source_of

PartKind = Literal["detector", "selector"]


def part_settings(kind: PartKind, part: object) -> dict[str, Any]:
    """Return the settings of a part, with its registered name as "kind" and, from a plugin, the "package" it needs.

    Raises:
        BadInput: Its class is not registered, or has no `settings`, so that it could not be restored.
    """
    name, settings = name_of(kind, type(part)), getattr(part, "settings", None)
    if name is None or settings is None:
        raise BadInput(
            f"A repair with a {type(part).__name__} cannot be saved: its class is not registered as a {kind} with "
            "`settings` and `restore`."
        )
    package = source_of(kind, name)
    return {"kind": name, **settings(), **({} if package is None else {"package": package})}


def part_tensors(part: object) -> dict[str, Tensor]:
    """Return the tensors of a part: its own, else the weights of its network, else none."""
    own = getattr(part, "tensors", None)
    if own is not None:
        return dict(own())
    network = getattr(part, "network", None)
    return {} if network is None else dict(network.state_dict())


def restore_part(kind: PartKind, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """Return the part that `part_settings` and `part_tensors` describe.

    Raises:
        BadInput: Nothing of its kind is registered under its name; the message says which package is missing.
    """
    made_by = load_saved(kind, settings["kind"], settings.get("package"), "The repair")
    return made_by.restore(settings, tensors)
