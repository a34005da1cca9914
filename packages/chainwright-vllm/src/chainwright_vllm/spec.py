"""What a request may ask for, read from its extra arguments.

    {"chainwright": {"knock_out": [[3, 5], [7, 0]]}}
    {"chainwright": {"knock_out": {"heads": [[3, 5]], "positions": "last", "scale": 0.5}}}
    {"chainwright": {"repair": "tcr-reasoner"}}

Where a client can only send text, the object may be JSON in a string. In Python, a repair may also be a folder, given
as a `pathlib.Path`, which no JSON can hold: a text is only ever a name that the operator offers. Every mistake is a
`BadRequest` of one sentence, which vLLM's server answers with status 400.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

KEY = "chainwright"
RUN = "chainwright_run"  # [request, k]: this is the run without the k-th head that a request waits for
Head = tuple[int, int]
_POSITIONS = ("all", "last")
_FORMS = (
    '{"repair": "name"}, {"knock_out": [[layer, head], ...]} or {"knock_out": {"heads": [[layer, head], '
    '...], "positions": "all" or "last", "scale": 0.0}}'
)


class BadRequest(ValueError):
    """A request asks for something that cannot be done; the message says what, and what can be."""


@dataclass(frozen=True)
class ModelShape:
    """What a request is checked against.

    Attributes:
        n_layers: Layers of the whole model.
        n_heads: Query heads in each of them.
    """

    n_layers: int
    n_heads: int


@dataclass(frozen=True)
class KnockOut:
    """Heads whose output is multiplied by `scale` before the output projection.

    Attributes:
        heads: (layer, head) pairs, counted from 0, in ascending order.
        positions: "all", or "last": the last token of the prompt and every generated one.
        scale: 0 silences, 0.5 halves, 1 leaves.
    """

    heads: tuple[Head, ...]
    positions: str = "all"
    scale: float = 0.0

    def record(self) -> dict[str, Any]:
        """Return the canonical object that `parse` reads as this."""
        heads = [list(head) for head in self.heads]
        return {"knock_out": {"heads": heads, "positions": self.positions, "scale": self.scale}}

    def extra_args(self) -> dict[str, Any]:
        """Return the extra arguments of a request that ask for this."""
        return {KEY: self.record()}

    def first_edited(self, n_prompt: int) -> int:
        """Return the first position, counted from the start of the prompt, at which the heads are scaled."""
        return 0 if self.positions == "all" else n_prompt - 1

    def check(self, shape: ModelShape) -> None:
        """Raise BadRequest if the model has no such head."""
        for layer, head in self.heads:
            if not (0 <= layer < shape.n_layers and 0 <= head < shape.n_heads):
                raise BadRequest(
                    f"chainwright: there is no head [{layer}, {head}]: the model has layers 0 to {shape.n_layers - 1} "
                    f"with heads 0 to {shape.n_heads - 1} each."
                )


@dataclass(frozen=True)
class UseRepair:
    """A saved repair that decides tokens.

    Attributes:
        folder: Where it is; before admission, the name that the client gives.
        is_path: Whether it is a folder already before admission, which only Python code can say.
    """

    folder: str
    is_path: bool = False

    def record(self) -> dict[str, Any]:
        """Return the canonical object that `parse` reads as this."""
        return {"repair": self.folder}


@dataclass(frozen=True)
class UseStepFlow:
    """A saved StepFlow that changes what attention puts out, at tokens of the response.

    Attributes:
        folder: Where it is.
    """

    folder: str

    def record(self) -> dict[str, Any]:
        """Return the canonical object that `parse` reads as this."""
        return {"stepflow": self.folder}


Spec = KnockOut | UseRepair | UseStepFlow


def asked_repair(extra_args: Mapping[str, Any] | None) -> UseRepair | None:
    """Return the repair that a request asks for, None if none."""
    spec = asked(extra_args)
    return spec if isinstance(spec, UseRepair) else None


def asked(extra_args: Mapping[str, Any] | None) -> Spec | None:
    """Return what the extra arguments of a request ask for, None if nothing.

    Raises:
        BadRequest: They are malformed.
    """
    given = (extra_args or {}).get(KEY)
    if given is None:
        return None
    if isinstance(given, Mapping) and isinstance(given.get("repair"), Path):
        return parse(given)
    return _parsed(given if isinstance(given, str) else _as_json(given))


def _as_json(given: Any) -> str:
    try:
        return json.dumps(given, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise BadRequest(f"chainwright must be plain JSON, {_FORMS}; got {given!r}.") from error


@lru_cache(maxsize=4096)  # the same few are read at every step
def _parsed(text: str) -> Spec:
    try:
        given = json.loads(text)
    except ValueError as error:
        raise BadRequest(f"chainwright must be a JSON object, {_FORMS}; got {text!r}.") from error
    if not isinstance(given, dict):
        raise BadRequest(f"chainwright must be an object, {_FORMS}; got {text}.")
    return parse(given)


def parse(given: Mapping[str, Any]) -> Spec:
    """Return what an object asks for.

    Raises:
        BadRequest: It has an unknown name, none at all, or a value out of its range.
    """
    if unknown := [name for name in given if name not in ("knock_out", "repair", "stepflow")]:
        raise BadRequest(f"chainwright has no setting {unknown[0]!r}; write {_FORMS}.")
    if not given:
        raise BadRequest(f"chainwright asks for nothing; write {_FORMS}, or leave it out.")
    if len(given) > 1:
        raise BadRequest("chainwright: a request has either a repair or heads to knock out, not both; choose one.")
    if "knock_out" in given:
        return _knock_out(given["knock_out"])
    if "stepflow" in given:
        return UseStepFlow(str(given["stepflow"]))
    if not isinstance(given["repair"], (str, Path)) or not given["repair"]:
        raise BadRequest(
            f"repair must be the name of one that the server offers (in Python also a pathlib.Path); got "
            f"{given['repair']!r}."
        )
    return UseRepair(str(given["repair"]), isinstance(given["repair"], Path))


def _knock_out(given: Any) -> KnockOut:
    table = {"heads": given} if _is_list(given) else given
    if not isinstance(table, Mapping):
        raise BadRequest(f"knock_out must be a list of [layer, head] pairs, or an object with heads; got {given!r}.")
    if unknown := [name for name in table if name not in ("heads", "positions", "scale")]:
        raise BadRequest(f"knock_out has no setting {unknown[0]!r}; there are heads, positions and scale.")
    heads, positions, scale = table.get("heads"), table.get("positions", "all"), table.get("scale", 0.0)
    if not _is_list(heads) or not heads:
        raise BadRequest(f"knock_out needs at least one head as a [layer, head] pair; got {heads!r}.")
    for head in heads:
        if not (_is_list(head) and len(head) == 2 and all(_is_count(i) for i in head)):
            raise BadRequest(f"A head is a pair of whole numbers from 0, [layer, head]; got {head!r}.")
    if positions not in _POSITIONS:
        raise BadRequest(f'positions must be "all" or "last"; got {positions!r}.')
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise BadRequest(f"scale must be a finite number (0 silences a head, 1 leaves it); got {scale!r}.")
    return KnockOut(tuple(sorted({(layer, head) for layer, head in heads})), positions, float(scale))


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
