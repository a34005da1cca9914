"""A short fingerprint of a model's weights, so that results from other weights are recognised.

1. Names, shapes and dtypes of all parameters and stored buffers are hashed (SHA-256).
2. A tensor of up to 4 MiB is hashed in full.
3. For a larger tensor two things are hashed: the sum of each row, its bits read as 64-bit integers, and a sample of
   4096 such integers over all of it. So every change of a single weight is detected, and every exchange of rows; what
   can escape is a change that keeps all row sums and misses the sample, such as swapping eight bytes within a row.
4. A weight that accelerate offloads (a placeholder on `meta` between two calls) is read from where its hook would read
   it, so that the fingerprint is that of the same model loaded plainly. Only a model without weights (an empty one, for
   estimates) counts by names, shapes and dtypes alone.
5. Weights that a module packs, as dynamic quantisation does, count by their integers and scales.
6. A weight that is spread over ranks is gathered, one at a time, so that the fingerprint is that of one process. Every
   rank has to ask for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from chainwright.models.placement import offloaded
from chainwright.models.sharding import is_spread, present

_WHOLE = 2**22
_SAMPLE = 4096


def fingerprint(model: PreTrainedModel) -> str:
    """Return 16 hexadecimal digits that differ between models with different weights.

    Note:
        Reads every weight once: 0.01 seconds for 1 million parameters; for 487 million, 1.2 seconds in float32 and
        0.6 in bfloat16 (one core of a busy machine).
    """
    digest = hashlib.sha256()
    for name, tensor in _tensors(model):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        for part in [] if tensor.is_meta else _parts(tensor.detach()):
            digest.update(part.contiguous().view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters (shared ones once) and the buffers that belong to a checkpoint, then packed weights."""
    state = model.state_dict()
    elsewhere = _offloaded_weights(model)
    repeated = _repeated(model, elsewhere)
    for name, parameter in model.named_parameters():
        if name not in repeated:
            yield name, _present(parameter, elsewhere.get(name))
    for name, buffer in model.named_buffers():
        if name in state:
            yield name, _present(buffer, elsewhere.get(name))
    known = {name for name, _ in (*model.named_parameters(remove_duplicate=False), *model.named_buffers())}
    for name in state:
        if name not in known:
            yield from _packed(name, state[name])


def _present(tensor: Tensor, stored: Callable[[], Tensor] | None) -> Tensor:
    # accelerate gives a stored weight the number type that the module has, so this does too
    return stored().to(tensor.dtype) if tensor.is_meta and stored is not None else present(tensor)


def _offloaded_weights(model: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """Return how to read each offloaded weight, by its full name; they are not read all at once."""
    out: dict[str, Callable[[], Tensor]] = {}
    for path, module in model.named_modules():
        stored = offloaded(module)
        if stored:
            own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            out.update({f"{path}.{name}".lstrip("."): partial(stored.__getitem__, name) for name, _ in own})
    return out


def _repeated(model: nn.Module, elsewhere: Collection[str]) -> set[str]:
    """Return the names of tied weights that offloading or ranks have parted, all but the first of each group.

    Loaded plainly they are one parameter, which counts once.
    """
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    order = {name: i for i, name in enumerate(parameters)}
    groups: dict[str, set[str]] = {}
    for name, source in tied.items():
        groups.setdefault(source, {source}).add(name)
    repeated: set[str] = set()
    for group in groups.values():
        ordered = sorted(group & order.keys(), key=order.__getitem__)
        repeated |= {name for name in ordered[1:] if name in elsewhere or is_spread(parameters[name])}
    return repeated


def _packed(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in an entry of a state that is neither a parameter nor a buffer."""
    if isinstance(value, (tuple, list)):
        for i, part in enumerate(value):
            yield from _packed(f"{name}.{i}", part)
    elif isinstance(value, Tensor) and value.is_quantized:
        yield f"{name} {_scheme(value)}", value.int_repr()
    elif isinstance(value, Tensor):
        yield name, value


def _scheme(value: Tensor) -> str:
    if value.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return f"{value.q_scale()!r} {value.q_zero_point()}"
    return f"{value.q_per_channel_scales().tolist()} {value.q_per_channel_zero_points().tolist()}"


def _parts(tensor: Tensor) -> list[Tensor]:
    """Return the parts of a tensor that are hashed, as flat integers."""
    flat = tensor.reshape(-1).contiguous().view(torch.uint8)
    row_bytes = flat.numel() // max(1, len(tensor)) if tensor.dim() else flat.numel()
    if flat.numel() <= _WHOLE or row_bytes % 8:
        return [flat]
    numbers = flat.view(torch.int64)
    step = numbers.numel() // _SAMPLE | 1  # odd, so that the sample is not confined to a few columns
    return [numbers.view(len(tensor), -1).sum(1), numbers[::step]]
