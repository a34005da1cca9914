"""Reading a forward pass: head outputs, attention patterns and the residual stream around each attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from chainwright._config import Positions
from chainwright._errors import BadInput
from chainwright.models._probe import evaluating, first_tensor, given_tensor
from chainwright.models.anatomy import Anatomy, anatomy
from chainwright.models.attention_weights import attn_pattern
from chainwright.models.decoder import hidden_states
from chainwright.models.padding import position_ids
from chainwright.models.seam import Attend, AttentionCall, Handlers, attach


@dataclass(frozen=True)
class Capture:
    """Activations of one forward pass, on the model's device. P is all T positions, or 1 for the last position only.

    Attributes:
        z: Head outputs before the output projection, `[L, N, P, H, d]`.
        logits: `[N, P, V]`.
        attention: Attention weights `[L, N, H, T, T]`, or None. Rows of a model with sinks sum to less than one.
        resid_pre: Input of each layer `[L, N, P, D]`, or None.
        resid_mid: The residual stream after the attention's output is added, `[L, N, P, D]`, or None. Where attention
            and MLP run in parallel it is `resid_pre` plus the attention's output.
        resid_post: Output of each layer `[L, N, P, D]`, or None.
    """

    z: Tensor
    logits: Tensor
    attention: Tensor | None = None
    resid_pre: Tensor | None = None
    resid_mid: Tensor | None = None
    resid_post: Tensor | None = None


def check_ids(input_ids: Tensor, attention_mask: Tensor | None) -> None:
    """Raise BadInput unless ids are `[N, T]` integers and the mask, if any, has their shape and pads on the left."""
    if input_ids.dim() != 2 or input_ids.is_floating_point() or input_ids.shape[1] == 0:
        raise BadInput(f"input_ids must be integers of shape [N, T] with T > 0; got {list(input_ids.shape)}.")
    if attention_mask is None:
        return
    if attention_mask.shape != input_ids.shape:
        raise BadInput(
            f"attention_mask must have the shape of input_ids, {list(input_ids.shape)}; "
            f"got {list(attention_mask.shape)}."
        )
    if not bool(attention_mask[:, -1].all()) or bool((attention_mask.long().diff(dim=-1) < 0).any()):
        raise BadInput("Rows must be padded on the left: some row has a token before a masked position.")


@torch.no_grad()
def capture(
    model: nn.Module,
    input_ids: Tensor,
    *,
    attention_mask: Tensor | None = None,
    attention: bool = False,
    residual: bool = False,
    positions: Positions = "all",
) -> Capture:
    """Return head outputs, and optionally attention patterns and the residual stream, of one forward pass.

    Edits that are attached when it is called are in force, so it shows what they changed. No gradients are kept.

    Args:
        model: A Transformers decoder.
        input_ids: `[N, T]`, left-padded.
        attention_mask: `[N, T]`, 1 for tokens; None if no row is padded.
        attention: Also return the attention weights (L N H T T numbers).
        residual: Also return the residual stream before, inside and after each layer.
        positions: Keep all positions or only the last.

    Raises:
        UnsupportedModel: The model's attention does not run through the seam.
        BadInput: Wrong shapes, or padding on the right.
    """
    check_ids(input_ids, attention_mask)
    if positions not in get_args(Positions):
        raise BadInput(f"positions must be 'all' or 'last'; got {positions!r}.")
    parts = anatomy(model)
    reader = Reader(parts, tuple(input_ids.shape), positions, attention=attention, residual=residual)
    with evaluating(parts.model):
        with reader.reading():
            logits = forward(parts, input_ids, attention_mask, last_only=positions == "last")
        return reader.result(logits)


def forward(parts: Anatomy, input_ids: Tensor, attention_mask: Tensor | None, *, last_only: bool = False) -> Tensor:
    """Return the logits of one uncached forward pass, `[N, T, V]` (`[N, 1, V]` for the last position only)."""
    options: dict[str, Any] = {"use_cache": False, "logits_to_keep": 1 if last_only else 0}
    if attention_mask is not None:
        options |= {"attention_mask": attention_mask, "position_ids": position_ids(attention_mask)}
    logits: Tensor = parts.model(input_ids=input_ids, **options).logits
    return logits[:, -1:] if last_only else logits


def final_states(parts: Anatomy, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Return the vectors `[N, T, D]` that `unembed` turns into the model's logits, of one uncached forward pass."""
    options: dict[str, Any] = {"use_cache": False}
    if attention_mask is not None:
        options |= {"attention_mask": attention_mask, "position_ids": position_ids(attention_mask)}
    hidden = hidden_states(parts.decoder(input_ids=input_ids, **options))
    assert hidden is not None  # it was found by what it returns
    return hidden


class Reader:
    """Collects what a `Capture` holds while the model runs, whoever runs it.

    Args:
        parts: Anatomy of the model.
        shape: That of the ids, `[N, T]`.
        positions: Keep all positions or only the last.
        attention: Keep the attention weights.
        residual: Keep the residual stream.
    """

    def __init__(
        self,
        parts: Anatomy,
        shape: tuple[int, ...],
        positions: Positions,
        *,
        attention: bool = False,
        residual: bool = False,
    ):
        self.parts = parts
        self.shape = shape
        self.attention = attention
        self.residual = residual
        self.keep = slice(None) if positions == "all" else slice(-1, None)
        self.z: dict[int, Tensor] = {}
        self.patterns: dict[int, Tensor] = {}
        self.pre: dict[int, Tensor] = {}
        self.mid: dict[int, Tensor] = {}
        self.post: dict[int, Tensor] = {}

    def read_heads(self, call: AttentionCall, attend: Attend) -> Tensor:
        """Keep z, and the attention weights if they are wanted."""
        z = attend(call)
        self.z[call.layer] = z[:, self.keep].detach().clone()
        if self.attention:
            self.patterns[call.layer] = attn_pattern(call)
        return z

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read one forward pass, to be run inside the context."""
        handlers = Handlers({i: (self.read_heads,) for i in range(self.parts.n_layers)})
        with ExitStack() as stack:
            stack.enter_context(attach(self.parts.model, handlers))
            for i in range(self.parts.n_layers if self.residual else 0):
                self._hook_layer(stack, i)
            yield

    def _hook_layer(self, stack: ExitStack, i: int) -> None:
        layer = self.parts.layers[i]

        def read(into: dict[int, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = given_tensor(args, kwargs)
            assert given is not None
            # some models work on `[N T, D]`, hence the reshape; some add to the stream in place, hence the copy
            into.setdefault(i, given.reshape(*self.shape, -1)[:, self.keep].detach().clone())

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            read(self.pre, args, kwargs)

        def inside(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            read(self.mid, args, kwargs)

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            read(self.post, (first_tensor(output),), {})

        stack.callback(layer.block.register_forward_pre_hook(before, with_kwargs=True).remove)
        stack.callback(layer.block.register_forward_hook(after).remove)
        if layer.mid_reader is not None:
            stack.callback(layer.mid_reader.register_forward_pre_hook(inside, with_kwargs=True).remove)

    def _parallel_mid(self, i: int) -> Tensor:
        layer, z = self.parts.layers[i], self.z[i]
        out = layer.project(z)
        return self.pre[i] + layer.multiplier * (out if layer.post_attn is None else layer.post_attn(out))

    def result(self, logits: Tensor) -> Capture:
        """Return what was collected, stacked over layers, with the pass's logits."""
        n = range(self.parts.n_layers)
        z = torch.stack([self.z[i] for i in n])
        patterns = torch.stack([self.patterns[i] for i in n]) if self.attention else None
        if not self.pre:
            return Capture(z, logits, patterns)
        mid = [self.mid[i] if i in self.mid else self._parallel_mid(i) for i in n]
        stacked = (torch.stack(list(parts)) for parts in ([self.pre[i] for i in n], mid, [self.post[i] for i in n]))
        return Capture(z, logits, patterns, *stacked)


__all__ = ["Capture", "Positions", "Reader", "capture", "check_ids", "final_states", "forward"]
