"""What chosen layers put out at the last token of each request, read by hooks on the layers.

`index` says which tokens are the last ones, and is filled before each pass; the hooks copy their rows into buffers that
stay where they are, so that compiled code and CUDA graphs can hold them. Where nothing is compiled or captured, they
copy only while some request has a repair.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)$")


class LastStates:
    """The states of one model runner.

    Attributes:
        layers: The layers that are read.
        is_wanted: Whether the pass is to be read at all.

    Args:
        model: vLLM's model.
        layers: The layers to read, counted from 0.
        d_model: Width of the residual stream.
        max_requests: Requests of the largest pass.
        dtype: Of the model.
        device: Of the model.
        is_frozen: Whether passes are compiled or captured, so that hooks cannot decide anything.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Collection[int],
        d_model: int,
        max_requests: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        is_frozen: bool,
    ):
        self.layers = frozenset(layers)
        self.is_wanted = False
        self._is_frozen = is_frozen
        self._index = torch.zeros(max_requests, dtype=torch.int64, device=device)
        self._fired = torch.zeros(1 + max(self.layers, default=0), dtype=torch.int64, device=device)
        self._states = {i: torch.zeros(max_requests, d_model, dtype=dtype, device=device) for i in self.layers}
        for name, module in model.named_modules():
            place = _LAYER.search(name)
            if place is not None and int(place[1]) in self.layers:
                module.register_forward_hook(self._reader(int(place[1])))

    def begin(self, last: Sequence[int], *, is_wanted: bool) -> None:
        """Say which tokens of the coming pass are the last of each request."""
        # a frozen hook also reads in passes that nobody asks about, so the index must always fit
        self.is_wanted = is_wanted
        if is_wanted or self._is_frozen:
            rest = [0] * (len(self._index) - len(last))  # of an earlier pass, and perhaps beyond the end of this one
            self._index.copy_(torch.tensor([*last, *rest], dtype=torch.int64))
            self._fired.zero_()

    def unfired(self, layers: Sequence[int]) -> list[int]:
        """Return those of some layers that have not been read since `begin`."""
        ran = self._fired.tolist()
        return [layer for layer in layers if layer not in self.layers or not ran[layer]]

    def read(self, layers: Sequence[int], rows: Sequence[int]) -> Tensor:
        """Return what layers put out at the last token of some requests of the pass, float32 `[rows, layers, D]`."""
        at = torch.tensor(list(rows), dtype=torch.int64, device=self._index.device)
        return torch.stack([self._states[layer][at] for layer in layers], dim=1).float()

    def _reader(self, layer: int) -> Callable[[nn.Module, Any, Any], None]:
        state = self._states[layer]

        def read(module: nn.Module, args: Any, output: Any) -> None:
            if self._is_frozen or self.is_wanted:
                out = _residual(output)
                state.copy_(out.reshape(-1, out.shape[-1]).index_select(0, self._index))
                self._fired[layer : layer + 1].add_(1)

        return read


def _residual(output: Any) -> Tensor:
    """Return the residual stream after a layer: vLLM's layers put out the last sublayer's output and the rest apart."""
    if isinstance(output, tuple) and len(output) > 1 and isinstance(output[1], Tensor):
        both: Tensor = output[0] + output[1]
        return both
    only: Tensor = output[0] if isinstance(output, tuple) else output
    return only
