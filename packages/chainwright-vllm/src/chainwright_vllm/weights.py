"""Whether a repair was made for the weights that are served, told by their fingerprint.

A model that was converted, so that it computes the same with other tensors, says so in a file of its folder,
`chainwright_conversion.json`, which names both fingerprints. It counts for these very weights only.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from chainwright_vllm.fingerprint import Unknown, fingerprint
from chainwright_vllm.repairs import check_model, identity, known, read
from chainwright_vllm.spec import BadRequest

logger = logging.getLogger("vllm.chainwright")
CONVERSION = "chainwright_conversion.json"
SCHEMA_VERSION = 1
_FROM_SAFETENSORS = ("auto", "hf", "safetensors", "fastsafetensors")


def check_weights(made_for: Mapping[str, str], config: Any) -> None:
    """Raise BadRequest if a repair was made for other weights than those that are served.

    Warns, once, if that cannot be found out. A repair that names no fingerprint fits any weights.

    Args:
        made_for: What the repair says of the model that it was made for.
        config: vLLM's VllmConfig.
    """
    due, dtype = made_for.get("fingerprint"), made_for.get("dtype", "")
    if due is None:
        return
    try:
        folder = _folder(config)
        found = _known(folder, dtype)
    except Unknown as why:
        warn_unchecked(str(why))
        return
    if found == due:
        return
    converted = _conversion(folder)
    if converted == {"schema_version": SCHEMA_VERSION, "dtype": dtype, "from": due, "to": found}:
        return
    beside = f", and its {CONVERSION} is about others" if converted else ""
    raise BadRequest(
        f"chainwright: this repair was made for other weights than those that are served (fingerprint {due}, not "
        f"{found}{beside}); serve {made_for.get('model')} as it was, or make a repair for this model (chainwright fit)."
    )


def prepare(config: Any) -> None:
    """Read the weights before requests come, if a repair that they may name was made for a model like this.

    Args:
        config: vLLM's VllmConfig.
    """
    for folder in known().values():
        try:
            made_for = read(str(folder.resolve()))["origin"]["model"]
            check_model(made_for, identity(config.model_config))
            if "fingerprint" in made_for:
                _known(_folder(config), made_for.get("dtype", ""))
        except (BadRequest, Unknown):
            continue  # a request for it is refused with the reason


@lru_cache(maxsize=64)  # each sentence once
def warn_unchecked(why: str) -> None:
    """Say once that the weights were not compared, and why."""
    logger.warning(
        "Chainwright cannot compare the served weights with those that a repair was made for: %s. See to it that they "
        "are the same.",
        why,
    )


def write_conversion(source: Path, out: Path, dtype: str = "float32") -> Path:
    """Write into a converted model's folder that repairs for the original fit it, and return the file.

    Whoever calls this answers for it that both compute the same.

    Args:
        source: The folder of the original.
        out: That of the converted model.
        dtype: In which chainwright has the original.

    Raises:
        Unknown: A fingerprint cannot be computed.
    """
    prints = {"from": fingerprint(source, dtype), "to": fingerprint(out, dtype)}
    file = out / CONVERSION
    file.write_text(json.dumps({"schema_version": SCHEMA_VERSION, "dtype": dtype, **prints}, indent=2) + "\n")
    return file


def _conversion(folder: Path) -> Mapping[str, Any]:
    file = folder / CONVERSION
    if not file.is_file():
        return {}
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadRequest(f"chainwright: the {CONVERSION} of the model is damaged; write or remove it.") from error
    return record if isinstance(record, Mapping) else {"damaged": record}


def _known(folder: Path, dtype: str) -> str:
    found = _computed(folder, dtype)
    if isinstance(found, Unknown):
        raise found
    return found


@lru_cache(maxsize=64)
def _computed(folder: Path, dtype: str) -> str | Unknown:
    try:
        return fingerprint(folder, dtype)
    except Unknown as why:
        return why


def _folder(config: Any) -> Path:
    """Return the folder of the served checkpoint.

    Raises:
        Unknown: It is not on this machine, or what is served is not what it holds.
    """
    from huggingface_hub import snapshot_download

    model, loading = config.model_config, config.load_config
    if model.quantization is not None:
        raise Unknown(f"they are quantised ({model.quantization})")
    if loading.load_format not in _FROM_SAFETENSORS:
        raise Unknown(f"they are loaded as {loading.load_format!r}, not from safetensors")
    if Path(model.model).is_dir():
        return Path(model.model).resolve()
    try:
        found = snapshot_download(
            model.model, revision=model.revision, cache_dir=loading.download_dir, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise Unknown(f"the checkpoint {model.model} is not in a folder of this machine") from error
    return Path(found)
