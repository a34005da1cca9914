"""The memory of tensors while something runs, and the size of each one that is made, on any device.

    with LiveBytes() as seen:
        step_saliency(model, trace)
    print(seen.peak, max(seen.made, key=lambda one: one.n_bytes))

Buffers inside a kernel are not seen, and neither is what was there before.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Made(NamedTuple):
    """One tensor with memory of its own: the operation that made it, its shape, number type and bytes."""

    operation: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    n_bytes: int


class LiveBytes(TorchDispatchMode):
    """Counts the memory of the tensors that are made inside this context.

    Attributes:
        live: Bytes of those that are still there.
        peak: The most that were there at once.
        made: Those of at least `at_least` bytes.
    """

    def __init__(self, at_least: int = 2**16):
        super().__init__()
        self.live, self.peak, self.at_least = 0, 0, at_least
        self.made: list[Made] = []
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {one.untyped_storage().data_ptr() for one in tree_leaves((args, kwargs or {})) if _has_memory(one)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if _has_memory(tensor):
                self._add(str(func), tensor, before)
        return out

    def _add(self, operation: str, tensor: torch.Tensor, before: set[int]) -> None:
        storage = tensor.untyped_storage()
        where, n_bytes = storage.data_ptr(), storage.nbytes()
        if where in before or where in self._known or not n_bytes:
            return
        self._known[where] = weakref.finalize(storage, self._drop, where, n_bytes)
        self.live += n_bytes
        self.peak = max(self.peak, self.live)
        if n_bytes >= self.at_least:
            self.made.append(Made(operation, tuple(tensor.shape), tensor.dtype, n_bytes))

    def _drop(self, where: int, n_bytes: int) -> None:
        self.live -= n_bytes
        self._known.pop(where, None)


def _has_memory(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type != "meta" and value.layout == torch.strided
