"""Saved repairs, as the package chainwright writes them: a folder with repair.json and repair.safetensors.

A request names one of those that the operator offers: what the environment variable CHAINWRIGHT_VLLM_REPAIRS lists, and
the repairs that come with an installed chainwright, which is looked into but not imported. No text that a client sends
is read as a path. Python code of the process itself may give a folder, as a `pathlib.Path`.
Nothing is unpickled, and no code of the folder runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from chainwright_vllm.networks import Perceptron
from chainwright_vllm.spec import BadRequest, KnockOut, ModelShape
from chainwright_vllm.tcr import TCR, Detector, FixedSelector, LightSelector, Selector

VARIABLE = "CHAINWRIGHT_VLLM_REPAIRS"
SCHEMA_VERSION = 1
_CONFIG, _TENSORS = "repair.json", "repair.safetensors"


@dataclass(frozen=True)
class Saved:
    """A repair, and the model that it was made for.

    Attributes:
        tcr: The repair.
        made_for: Provenance of the model; empty if it fits any.
        d_read: Width of the states that its networks read; 0 where none reads them.
    """

    tcr: TCR
    made_for: Mapping[str, str]
    d_read: int


@dataclass(frozen=True)
class Identity:
    """What a repair is bound to, as chainwright writes it down.

    Attributes:
        shape: Layers and heads.
        d_model: Width of the residual stream.
        values: model_type, shape, n_kv_heads and d_vocab.
    """

    shape: ModelShape
    d_model: int
    values: Mapping[str, str]


def identity(model_config: Any) -> Identity:
    """Return what repairs for a model are bound to.

    Args:
        model_config: vLLM's ModelConfig.
    """
    shape = ModelShape(
        model_config.get_total_num_hidden_layers(), model_config.model_arch_config.total_num_attention_heads
    )
    d_model = model_config.get_hidden_size()
    values = {
        "model_type": str(model_config.hf_text_config.model_type),
        "shape": f"{shape.n_layers} layers x {shape.n_heads} heads, d {d_model}",
        "n_kv_heads": str(model_config.get_total_num_kv_heads()),
        "d_vocab": str(model_config.get_vocab_size()),
    }
    return Identity(shape, d_model, values)


def known() -> dict[str, Path]:
    """Return the repairs that a request may name: the operator's first, then the bundled ones."""
    return {**_bundled(), **offered()}


def offered() -> dict[str, Path]:
    """Return the repairs that CHAINWRIGHT_VLLM_REPAIRS lists; of two with one name the first counts.

    It holds, separated by commas, `name=folder` of a repair, or a folder, whose repairs are offered by their names.

    Raises:
        ValueError: No repair was found in a folder.
    """
    found: dict[str, Path] = {}
    for entry in filter(None, map(str.strip, os.environ.get(VARIABLE, "").split(","))):
        for name, folder in _listed(entry).items():
            found.setdefault(name, folder)
    return found


def _listed(entry: str) -> dict[str, Path]:
    name, equals, folder = entry.partition("=")
    if equals and os.sep not in name:
        place = Path(folder.strip()).expanduser()
        repairs = {name.strip(): place} if (place / _CONFIG).is_file() else {}
    else:
        place = Path(entry).expanduser()
        repairs = _inside(place)
    if not repairs:
        raise ValueError(
            f"{VARIABLE} lists {entry!r}, where no {_CONFIG} was found; list name=folder of a saved repair, or a "
            "folder that holds such folders, separated by commas."
        )
    return repairs


def _bundled() -> dict[str, Path]:
    spec = find_spec("chainwright")
    roots = (spec.submodule_search_locations or ()) if spec is not None else ()
    return {name: where for root in roots for name, where in _inside(Path(root) / "repair" / "bundled").items()}


def _inside(place: Path) -> dict[str, Path]:
    return {config.parent.name: config.parent for config in sorted(place.glob(f"*/{_CONFIG}"))}


def find(name: str | Path) -> Path:
    """Return the folder of a repair.

    Args:
        name: Of an offered one; a `Path`, which cannot come over HTTP, is a folder.

    Raises:
        BadRequest: There is none such, or it is not offered; the known ones are listed.
    """
    if isinstance(name, Path):
        return name.expanduser().resolve()
    repairs = known()
    if name in repairs:
        return repairs[name].resolve()
    near = get_close_matches(name, repairs, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise BadRequest(
        f"There is no repair {name!r} to name here: known are {', '.join(sorted(repairs)) or 'none'}; others are "
        f"offered by {VARIABLE} where the server starts, and given as a pathlib.Path in Python{hint}"
    )


@lru_cache(maxsize=64)
def load(folder: str) -> Saved:
    """Return the repair of a folder.

    Raises:
        BadRequest: It is damaged, newer than this plug-in, or of a kind that vLLM cannot run.
    """
    record = read(folder)
    if record["kind"] != "tcr":
        raise BadRequest(
            f"The repair in {folder} is of kind {record['kind']!r}, and in vLLM only 'tcr' and 'stepflow' run."
        )
    try:
        tcr = _tcr(folder, record["settings"], load_file(Path(folder) / _TENSORS))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, BadRequest):
            raise
        raise damaged(folder, error) from error
    return Saved(tcr, record["origin"]["model"], _d_read(folder, tcr))


@lru_cache(maxsize=64)
def read(folder: str) -> dict[str, Any]:
    """Return what the repair.json of a folder says.

    Raises:
        BadRequest: It is damaged, or newer than this plug-in.
    """
    try:
        record: dict[str, Any] = json.loads((Path(folder) / _CONFIG).read_text(encoding="utf-8"))
        version, _, _, _ = record["schema_version"], record["kind"], record["settings"], dict(record["origin"]["model"])
        is_newer = version > SCHEMA_VERSION
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(folder, error) from error
    if is_newer:
        raise BadRequest(
            f"The repair in {folder} has schema {version}, and this plug-in reads {SCHEMA_VERSION}; update it."
        )
    return record


def check(saved: Saved, model: Identity) -> None:
    """Raise BadRequest if a repair was made for another model, or touches what this one does not have."""
    check_model(saved.made_for, model)
    KnockOut(saved.tcr.heads).check(model.shape)
    too_deep = [layer for layer in saved.tcr.layers if not -model.shape.n_layers <= layer < model.shape.n_layers]
    if too_deep or saved.d_read not in (0, model.d_model):
        raise BadRequest(
            f"This tcr repair reads layers {list(saved.tcr.layers)} of width {saved.d_read}, and the model has "
            f"{model.shape.n_layers} layers of width {model.d_model}; fit one for this model (chainwright fit tcr)."
        )


def check_model(made_for: Mapping[str, str], model: Identity) -> None:
    """Raise BadRequest if a repair was made for another model than this."""
    if made_for and any(made_for.get(name) != value for name, value in model.values.items()):
        here = _named({"model": "this model", **model.values})
        raise BadRequest(
            f"This repair was made for {_named(made_for)}, not for {here}; make one for this model (chainwright fit)."
        )


def _tcr(folder: str, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TCR:
    config = settings["config"]
    if settings.get("lens_layers"):
        raise BadRequest(f"The repair in {folder} reads the logit lens, which the plug-in for vLLM does not offer.")
    is_vote = config["decision"] == "vote"
    heads = tuple((int(layer), int(head)) for layer, head in settings["heads"])
    return TCR(
        heads=heads,
        layers=tuple(settings["layers"]),
        positions=config["positions"],
        scale=float(config["scale"]),
        end_ids=tuple(settings["end_ids"]),
        n_votes=config["n_votes"],
        detector=_detector(folder, settings["detector"], _of(tensors, "detector.")),
        selector=_selector(folder, settings["selector"], _of(tensors, "selector."), len(heads)) if is_vote else None,
        verifier=None if is_vote else Perceptron(_of(tensors, "verifier.")),
    )


def _detector(folder: str, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Detector:
    if settings["kind"] == "entropy":
        return Detector(min_entropy=settings["tau"])
    if settings["kind"] == "trained":
        return Detector(settings["min_entropy"], Perceptron(tensors), settings["threshold"])
    raise _unknown_part(folder, "detector", settings["kind"], "entropy and trained")


def _selector(folder: str, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], n_heads: int) -> Selector:
    if settings["kind"] == "light":
        return LightSelector(Perceptron(tensors))
    if settings["kind"] == "fixed":
        return FixedSelector(n_heads, tuple(settings["order"]))
    raise _unknown_part(folder, "selector", settings["kind"], "light and fixed")


def _d_read(folder: str, tcr: TCR) -> int:
    """Return the width of the states that the networks read, which must be the same for all of them."""
    k, n_layers, widths = len(tcr.heads), max(1, len(tcr.layers)), set()
    light = tcr.selector.network if isinstance(tcr.selector, LightSelector) else None
    for name, network, n_beside, n_out in (
        ("detector", tcr.detector.network, 4, 1),
        ("selector", light, 0, k + 1),
        ("verifier", tcr.verifier, 4 + 3 * k, 1),
    ):
        if network is None:
            continue
        widths.add((network.n_in - n_beside) / n_layers)
        if network.last.out_features != n_out or len(widths) > 1 or (network.n_in - n_beside) % n_layers:
            raise BadRequest(
                f"The repair in {folder} is damaged: its {name} does not fit {k} heads and {len(tcr.layers)} layers; "
                "save or fetch it again."
            )
    return int(widths.pop()) if widths else 0


def _of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _named(values: Mapping[str, str]) -> str:
    kv, size = values.get("n_kv_heads"), values.get("d_vocab")
    return f"{values.get('model')} ({values.get('model_type')}, {values.get('shape')}, {kv} kv heads, {size} tokens)"


def damaged(folder: str, error: Exception) -> BadRequest:
    """Return what to say of a folder that cannot be read."""
    why = " ".join(str(error).split())
    return BadRequest(f"The repair in {folder} is damaged ({type(error).__name__}: {why}); save or fetch it again.")


def _unknown_part(folder: str, part: str, kind: str, known: str) -> BadRequest:
    return BadRequest(f"The repair in {folder} has a {part} of kind {kind!r}, and in vLLM {known} run.")
