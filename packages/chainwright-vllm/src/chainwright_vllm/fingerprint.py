"""The fingerprint of a checkpoint, equal to the one that chainwright takes of a model that it has loaded.

1. Transformers makes the model without weights, which says how its parameters are called, in which order they come and
   which of them are tied.
2. Each is read from the checkpoint's safetensors, and cast to the dtype that chainwright had it in.
3. Names, shapes, dtypes and values are hashed by chainwright's formula (its `models/fingerprint.py`).

The weights in vLLM's memory are not read: there they are fused, cast, and spread over devices.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

_WHOLE = 2**22
_SAMPLE = 4096
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Unknown(Exception):
    """A fingerprint cannot be computed; the message says why."""


def fingerprint(folder: Path, dtype: str) -> str:
    """Return the fingerprint of a checkpoint, as chainwright prints it of the model loaded in a dtype.

    Args:
        folder: With config.json and safetensors.
        dtype: As chainwright writes it, such as "float32".

    Raises:
        Unknown: The checkpoint does not hold the model's parameters under their names, or a dtype is not known.
    """
    if dtype not in _DTYPES:
        raise Unknown(f"the dtype {dtype!r} is not one of {', '.join(_DTYPES)}")
    try:
        return _digest(_empty(folder, _DTYPES[dtype]), _Checkpoint(folder), _DTYPES[dtype])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise Unknown(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


def _digest(model: Any, checkpoint: _Checkpoint, dtype: torch.dtype) -> str:
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        tensor = checkpoint.read(name)
        if tensor.shape != parameter.shape or not tensor.is_floating_point():
            raise Unknown(f"its {name} is {tensor.dtype} of {tuple(tensor.shape)}, not of {tuple(parameter.shape)}")
        digest.update(f"{name} {tuple(tensor.shape)} {dtype}".encode())
        for part in _parts(tensor.to(dtype)):
            digest.update(part.contiguous().view(torch.uint8).numpy().tobytes())
    for name, source in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        if name in checkpoint.files and not torch.equal(checkpoint.read(name), checkpoint.read(source)):
            raise Unknown(f"its {name} and {source} are tied and have different values")
    return digest.hexdigest()[:16]


def _empty(folder: Path, dtype: torch.dtype) -> Any:
    """Return the model on `meta`."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    if stored := [name for name, _ in model.named_buffers() if name in model.state_dict()]:
        raise Unknown(f"the model stores the buffer {stored[0]}")
    if dtype != torch.float32 and (model._keep_in_fp32_modules or model._keep_in_fp32_modules_strict):
        raise Unknown("parts of the model stay in float32")
    return model


class _Checkpoint:
    """Tensors of a folder's safetensors.

    Attributes:
        files: Where each is.
    """

    def __init__(self, folder: Path):
        self.files = _files(folder)

    def read(self, name: str) -> Tensor:
        if name not in self.files:
            raise Unknown(f"its files have no {name}")
        with safe_open(self.files[name], "pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor


def _files(folder: Path) -> Mapping[str, Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {name: folder / file for name, file in names.items()}
    found = sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        raise Unknown(f"its folder has {len(found)} safetensors files and no {index.name}")
    with safe_open(found[0], "pt") as file:
        return dict.fromkeys(file.keys(), found[0])


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """Yield what is hashed of a tensor: all of a small one, row sums and a sample of a large one."""
    flat = tensor.reshape(-1).contiguous().view(torch.uint8)
    row_bytes = flat.numel() // max(1, len(tensor)) if tensor.dim() else flat.numel()
    if flat.numel() <= _WHOLE or row_bytes % 8:
        yield flat
        return
    numbers = flat.view(torch.int64)
    yield numbers.view(len(tensor), -1).sum(1)
    yield numbers[:: numbers.numel() // _SAMPLE | 1]
