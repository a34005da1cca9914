"""A saved StepFlow: where it acts, how strongly, and its two formulas (chainwright's `edits/_floor.py`, `momentum.py`).

A query of the thinking builds on the question, one of the summary on the thinking: its bridge B. S is its own segment
so far. Where a head gives B less than a floor, the weights of B and S are scaled so that B has the floor and all else
keeps its mass. At the first token of a step, the mean value of the step before is added.

Which segment a token belongs to is read from the text by the package chainwright, which must be installed beside vLLM.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chainwright_vllm.repairs import damaged, read
from chainwright_vllm.spec import BadRequest, ModelShape

_EPSILON = 1e-6


@dataclass(frozen=True)
class StepFlow:
    """Where a StepFlow acts in a model.

    Attributes:
        floors: The largest floor of every head, for the layers of the bridge.
        momentum: Layers of the momentum.
        alpha: Its strength.
        window: Tokens of the previous step that are averaged, from its end; None takes all.
        into_summary: Whether the first token of the summary gets the momentum too.
        style: Markers of the segments.
        min_chars: Characters of a step of its own; None takes chainwright's defaults.
    """

    floors: Mapping[int, tuple[float, ...]]
    momentum: frozenset[int]
    alpha: float
    window: int | None
    into_summary: bool
    style: str
    min_chars: int | None

    @property
    def layers(self) -> frozenset[int]:
        """Layers in which anything may change."""
        return self.momentum | self.floors.keys()


@lru_cache(maxsize=64)
def load_stepflow(folder: str, shape: ModelShape) -> StepFlow:
    """Return the StepFlow of a folder, for a model of this shape.

    Raises:
        BadRequest: It is damaged, or names layers or heads that the model does not have.
    """
    try:
        return _stepflow(read(folder)["settings"], shape)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, BadRequest):
            raise
        raise damaged(folder, error) from error


def _stepflow(settings: Mapping[str, Any], shape: ModelShape) -> StepFlow:
    quarter = max(1, shape.n_layers // 4)
    floors: dict[int, list[float]] = {}
    if (heads := settings.get("bridge_heads")) is not None:
        for layer, head, floor in heads:
            at = _layer(layer, shape)
            if not 0 <= head < shape.n_heads:
                raise BadRequest(f"chainwright: the repair names head {head}, and the model has {shape.n_heads}.")
            floors.setdefault(at, [0.0] * shape.n_heads)[head] = floor
    else:
        layers = list(range(quarter)) if settings["bridge_layers"] is None else settings["bridge_layers"]
        given = settings["tau_max"]
        for layer, floor in zip(layers, given if isinstance(given, list) else [given] * len(layers), strict=True):
            floors[_layer(layer, shape)] = [floor] * shape.n_heads
    last = range(shape.n_layers - quarter, shape.n_layers)
    momentum = last if settings["momentum_layers"] is None else settings["momentum_layers"]
    return StepFlow(
        {layer: tuple(own) for layer, own in floors.items() if any(own)},
        frozenset(_layer(layer, shape) for layer in momentum) if settings["alpha"] else frozenset(),
        float(settings["alpha"]),
        settings["window"],
        settings["into_summary"],
        settings["style"],
        settings["min_chars"],
    )


def _layer(layer: int, shape: ModelShape) -> int:
    if not -shape.n_layers <= layer < shape.n_layers:
        raise BadRequest(f"chainwright: the repair names layer {layer}, and the model has {shape.n_layers}.")
    return layer % shape.n_layers


@lru_cache(maxsize=8)
def reader(model: str, tokenizer: str, style: str, min_chars: int | None) -> Any:
    """Return chainwright's reader of responses while they are written.

    Args:
        model: The model's folder, which has a recipe.json where chainwright trained it.
        tokenizer: Where the tokenizer is.
        style: Markers of the segments.
        min_chars: Characters of a step of its own.

    Raises:
        BadRequest: Chainwright, or something that it needs, is not installed, or it does not read this tokenizer.
    """
    try:
        load_tokenizer = import_module("chainwright.models.load").load_tokenizer
        traces = import_module("chainwright.traces")
    except ImportError as error:
        raise BadRequest(
            f"chainwright: StepFlow's segments are read by the package chainwright, which cannot be imported here "
            f"({error}); install it beside vLLM (docs/vllm.md)."
        ) from error
    if min_chars is not None:
        config = traces.SegmentConfig(min_chars, merge_numbers=min_chars > 1)
    else:
        is_ours = (Path(model) / "recipe.json").is_file()
        config = traces.ONE_LINE_ONE_STEP if is_ours else traces.SegmentConfig()
    try:
        return traces.LiveSteps(load_tokenizer(tokenizer), style, config)
    except (ValueError, OSError) as error:
        why = " ".join(str(error).split())
        raise BadRequest(f"chainwright: StepFlow cannot read this model's text ({why}).") from error


class Bounds(NamedTuple):
    """B is `[start, border)` and S is `[border, end)`, positions of the sequence; all 0 without a bridge."""

    start: int
    border: int
    end: int


def bounds(place: Any, position: int) -> Bounds:
    """Return B and S of the query at a position, whose place is chainwright's."""
    if position < place.question_end:
        return Bounds(0, 0, 0)
    if place.thinking_end < 0:
        return Bounds(0, place.question_end, position + 1)
    if place.thinking_end == place.question_end or position < place.thinking_end:
        return Bounds(0, 0, 0)
    return Bounds(place.question_end, place.thinking_end, position + 1)


def bridged(weights: Tensor, where: Sequence[Bounds], floors: Tensor) -> Tensor:
    """Return what has to be added to attention weights `[heads, queries, keys]` to put the floors under the bridges.

    Args:
        weights: After the softmax.
        where: B and S of each query.
        floors: The largest floor of each head.
    """
    at = torch.tensor(where, device=weights.device)[..., None]  # (query, 3, 1)
    is_before = torch.arange(weights.shape[-1], device=weights.device) < at
    on_bridge, on_own = (is_before[:, 1:] & ~is_before[:, :-1]).to(weights.dtype).unbind(1)  # (query, key)
    p_bridge, p_own = (weights * on_bridge).sum(-1), (weights * on_own).sum(-1)  # (head, query)
    shares = [math.sqrt((b.border - b.start) / max(1, b.end - b.start)) for b in where]
    tau = torch.minimum(torch.tensor(shares).to(weights), floors[:, None].to(weights))
    tiny = torch.finfo(weights.dtype).tiny
    floor = torch.minimum(p_bridge + p_own - _EPSILON, tau).clamp(min=tiny)
    is_needed = (p_bridge < floor) & (p_bridge > tiny / _EPSILON)
    rest = p_bridge + p_own - floor
    more = torch.where(is_needed, floor / torch.where(is_needed, p_bridge, floor) - 1, 0)
    less = torch.where(is_needed, rest / torch.where(is_needed, p_own, rest) - 1, 0)
    return weights * (more[..., None] * on_bridge + less[..., None] * on_own)


def averaged(place: Any, flow: StepFlow) -> range:
    """Return the positions whose mean value is added at a token; none where no step begins."""
    if place.previous is None or (place.thinking_end >= 0 and not flow.into_summary):
        return range(0)
    previous = place.previous
    return range(
        previous.start if flow.window is None else max(previous.start, previous.end - flow.window), previous.end
    )
