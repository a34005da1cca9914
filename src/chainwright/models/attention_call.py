"""What a layer hands to its attention function, as handlers see it: with all heads, or with those of this rank.

Where the heads of a layer are spread over ranks (`sharding`), a handler sees the heads of all ranks by their global
numbers. Only what it asks for is gathered: z where it attends with the call as it is, and queries, keys and values
where it reads them. With a call that it changed, every rank attends for all heads. Of the z that it returns, each rank
takes its own heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chainwright.models.sharding import Shards, sinks_of_all_ranks


@dataclass(eq=False)
class AttentionCall:
    """The arguments of one layer's call of its attention function.

    Handlers hand on a changed copy (`dataclasses.replace`) and leave the call itself as it is. It is not frozen only
    because one is made in each layer at each token, and making a frozen one takes longer.

    Attributes:
        module: The attention module.
        layer: Its index among the model's layers.
        q: Queries `[N, H, Tq, d]`, position embedding applied.
        k: Keys `[N, G, Tk, d]`, not repeated over query heads, cache included.
        v: Values `[N, G, Tk, dv]`.
        mask: None (causal from the upper left, or nothing hidden when Tq = 1), bool `[N, 1, Tq, Tk]` (True = visible),
            or float of that shape to add to the scores.
        options: The other keywords of the call (scaling, dropout, sliding_window, softcap, s_aux ...).
        weights: The attention weights `[N, H, Tq, Tk]` that z was computed with, last in the list. An eager delegate
            puts them there, and so must a handler that computes z from weights of its own: they are what a user of
            `output_attentions` is given. None where the model does not give its weights (sdpa).
        shards: How the layer's heads are spread over ranks, if only this rank's are in the call: its heads are then
            those of `shards.slice_of(H)`. None where all heads are in it.
    """

    module: nn.Module
    layer: int
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    options: dict[str, Any]
    weights: list[Tensor] | None = None
    shards: Shards | None = None

    @property
    def n_heads(self) -> int:
        """Return the number of heads of the layer, also of those in other ranks."""
        return int(self.q.shape[1]) * (1 if self.shards is None else self.shards.n_ranks)


class WholeCall(AttentionCall):
    """A call with the heads of all ranks, made from that of this rank; they are gathered when they are asked for."""

    part: AttentionCall

    @classmethod
    def of(cls, part: AttentionCall) -> WholeCall:
        """Return the whole call of this rank's part."""
        call = object.__new__(cls)
        own: dict[str, Any] = {"part": part, "shards": None, "weights": None if part.weights is None else []}
        call.__dict__.update({name: value for name, value in vars(part).items() if name not in ("q", "k", "v")} | own)
        call.__dict__["options"] = _whole_options(part)
        call.__dict__["_has_grad"] = torch.is_grad_enabled()  # what is asked for later belongs to this pass
        return call

    def __getattr__(self, name: str) -> Any:
        if name not in ("q", "k", "v") or "part" not in self.__dict__:
            raise AttributeError(name)
        part: AttentionCall = self.__dict__["part"]
        assert part.shards is not None
        with torch.set_grad_enabled(self.__dict__["_has_grad"]):
            return self.__dict__.setdefault(name, part.shards.whole(getattr(part, name), 1))


def _whole_options(part: AttentionCall) -> dict[str, Any]:
    """Return the options with the sinks of all heads; Transformers has no other option with a number per head."""
    sinks = part.options.get("s_aux")
    if part.shards is None or not isinstance(sinks, Tensor) or sinks.numel() != part.q.shape[1]:
        return part.options
    return {**part.options, "s_aux": part.shards.whole(sinks, 0)}


Attend = Callable[[AttentionCall], Tensor]
Handler = Callable[[AttentionCall, Attend], Tensor]
"""Takes the call and the attention that it wraps; returns z `[N, Tq, H, dv]`.

One that reads state (`Handlers.reads_state`) may be an object with a method `is_idle()`: where that says that there is
nothing to do in the pass that is running, it is skipped.
"""


def attend_whole(attend: Attend, call: AttentionCall) -> Tensor:
    """Return z of all heads: each rank attends with its own, unless a handler changed what they attend with."""
    part: AttentionCall | None = call.__dict__.get("part")
    if part is None:
        with sinks_of_all_ranks(call.module, call.q.shape[1]):
            return attend(call)
    assert part.shards is not None
    z = part.shards.whole(attend(part), 2)
    if call.weights is not None and part.weights:
        call.weights.append(part.shards.whole(part.weights[-1], 1))
    return z


def of_all_ranks(attend: Attend, part: AttentionCall) -> Tensor:
    """Run handlers on the heads of all ranks, and return z of those of this rank."""
    assert part.shards is not None
    call = WholeCall.of(part)
    z = part.shards.own(attend(call), 2)
    if part.weights is not None and call.weights:
        # as without handlers, each rank is given the weights of its own heads
        part.weights.append(part.shards.own(call.weights[-1], 1))
    return z
