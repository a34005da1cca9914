"""The pre-hooks that silence heads: z, each head's output before the output projection, is multiplied by a table's row.

The projection is found by its place, `layers.N...o_proj` and the names that other families give it. A slice of its
OUTPUT would not do: after the projection the heads are mixed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from chainwright_vllm.slots import Slots

_PLACE = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.(.+)$")
_NAMES = ("o_proj", "out_proj", "c_proj", "dense", "wo")
_NOT_ATTENTION = ("mlp", "cross", "encoder", "expert", "ffn", "feed_forward")


class NotFound(Exception):
    """The model's heads were not found; the message says what was looked for."""


def output_projections(model: nn.Module, n_layers: int) -> dict[int, nn.Module]:
    """Return the output projection of the attention of each layer.

    Raises:
        NotFound: A layer has none, or several.
    """
    found: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        place = _PLACE.search(name)
        if place is None or place[2].rpartition(".")[2] not in _NAMES:
            continue
        if any(word in place[2] for word in _NOT_ATTENTION):
            continue
        found.setdefault(int(place[1]), []).append((name, module))
    for layer in range(n_layers):
        if len(found.get(layer, ())) != 1:
            names = [name for name, _ in found.get(layer, ())] or "none"
            raise NotFound(
                f"the attention of layer {layer} should have one output projection ({', '.join(_NAMES)}) in this "
                f"{type(model).__name__}, and has {names}"
            )
    return {layer: found[layer][0][1] for layer in range(n_layers)}


def hook_heads(model: nn.Module, slots: Slots) -> None:
    """Multiply each head's output by what the tables say, in every pass from now on.

    Raises:
        NotFound: The model's heads were not found.
    """
    for layer, projection in output_projections(model, slots.keep.shape[1]).items():
        projection.register_forward_pre_hook(_scaled(slots, layer))


def _scaled(slots: Slots, layer: int) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    n_heads = len(slots.heads)

    def scale(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        z: Tensor = args[0]  # (tokens, heads of this rank * d_head); vLLM's Transformers backend has an axis of 1 first
        n_tokens = z.shape[-2]
        kept = slots.keep[:, layer].index_select(0, slots.slot[:n_tokens])  # (tokens, heads)
        slots.fired[layer : layer + 1].add_(1)
        return ((z.reshape(n_tokens, n_heads, -1) * kept.unsqueeze(-1)).view_as(z), *args[1:])

    return scale
