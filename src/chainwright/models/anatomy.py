"""Where a model keeps its layers, heads, projections, final norm and unembedding, found by watching it run.

No model type is named here. `anatomy(model)` runs two rows of two tokens, which differ in the second, through the
model once, with the seam attached and a hook on every module, and

1. takes the attention modules from the calls that arrive at the seam, and each one's block from the module list
   that holds it;
2. takes as output projection the module that is given z, the heads' outputs side by side, and returns what the
   attention module returns;
3. watches the rest of the block: a module that changes the attention's output lies between it and the residual
   stream (the post-norm of some models), one that is given `resid_pre + attn_out` marks `resid_mid`;
4. takes as final norm the module that is given what the last block returns and returns what the unembedding is
   given, up to a constant factor.

Each part is checked numerically; a model that fails a check is refused with `UnsupportedModel`, so nothing is ever
read at the wrong place.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from chainwright._errors import BadInput, UnsupportedModel
from chainwright.models._probe import (
    ModuleCall,
    close,
    fitted_factor,
    is_equal,
    probe_ids,
    recording,
    vocabulary_size,
    widened,
)
from chainwright.models._probe import adds_up as _adds_up
from chainwright.models._probe import evaluating as evaluating
from chainwright.models.decoder import causal_lm, check_decoder, check_wrapper, decoder, unchecked_wrapper
from chainwright.models.placement import input_device
from chainwright.models.seam import Attend, AttentionCall, Handlers, attach, suspended
from chainwright.models.sharding import Shards

_CACHE = "_chainwright_anatomy"
_MEASURING = threading.RLock()  # two threads that measure a model at once would see each other's passes
# tensor options that the sdpa and eager functions of Transformers either use or can safely ignore
_READ = frozenset({"s_aux", "sinks", "position_ids", "position_bias", "cache_position"})


@dataclass(frozen=True)
class Layer:
    """The parts of one block.

    Attributes:
        block: The whole layer, from `resid_pre` to `resid_post`.
        attention: Its attention module, which calls the seam.
        out_proj: The projection that z passes through.
        post_attn: The module between the projection and the residual stream (a norm, a dropout), or None.
        mid_reader: The module whose input is `resid_mid`; None where attention and MLP both read `resid_pre`.
        multiplier: What the attention's output is multiplied by before it is added (1 for most models).
        shards: How the heads that the projection is given are spread over ranks; None where it is given all of them.
    """

    block: nn.Module
    attention: nn.Module
    out_proj: nn.Module
    post_attn: nn.Module | None
    mid_reader: nn.Module | None
    multiplier: float
    shards: Shards | None = None

    def project(self, z: Tensor) -> Tensor:
        """Return the output projection of all heads' outputs, `[..., D]` from `[..., H, d]`; every rank calls it."""
        own = z if self.shards is None else self.shards.own(z, z.dim() - 2)
        return self.out_proj(own.flatten(-2))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Anatomy:
    """The parts and sizes of a model that every method works with.

    Attributes:
        final_norm: The norm between the last layer and the unembedding.
        unembed_scale: What the final norm's output is multiplied by before the unembedding (1 for most models).
        n_layers: Layers, counted from 0 at the first block.
        n_heads: Query heads per layer (H).
        n_kv_heads: Key/value heads per layer (G); query head h reads kv head `h // (H / G)`.
        d_head: Size of a head's output z.
        d_model: Size of the residual stream.
    """

    model: PreTrainedModel
    layers: tuple[Layer, ...]
    final_norm: nn.Module
    unembed_scale: float
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_model: int

    @property
    def n_layers(self) -> int:
        """Return the number of blocks."""
        return len(self.layers)

    @property
    def decoder(self) -> nn.Module:
        """Return the module between the token ids and the unembedding."""
        return decoder(self.model)

    @property
    def device(self) -> torch.device:
        """Return the device that token ids belong on; with offloading not that of every weight."""
        return input_device(self.model)

    @property
    def d_vocab(self) -> int:
        """Return the number of tokens that the unembedding gives logits for."""
        return vocabulary_size(self.model)

    def describe(self) -> dict[str, str]:
        """Return the anatomy in words: sizes, and the module path of each part in the first layer."""
        names = {module: name for name, module in self.model.named_modules()}
        first = self.layers[0]
        mid = "attention and MLP in parallel" if first.mid_reader is None else names[first.mid_reader]
        return {
            "type": str(self.model.config.model_type),
            "layers x heads": f"{self.n_layers} x {self.n_heads} ({self.n_kv_heads} for keys and values)",
            "sizes": f"d_model {self.d_model}, d_head {self.d_head}, vocabulary {self.d_vocab}",
            "parameters": f"{sum(p.numel() for p in self.model.parameters()):,}",
            "attention": f"{names[first.attention]} ({type(first.attention).__name__})",
            "output projection": names[first.out_proj],
            "after the attention": "nothing" if first.post_attn is None else names[first.post_attn],
            "resid_mid is read by": mid,
            "final norm": f"{names[self.final_norm]} ({type(self.final_norm).__name__})",
        }

    def check_layer(self, layer: int) -> int:
        """Return `layer` counted from 0 (a negative index counts from the end); BadInput if it does not exist."""
        if not -self.n_layers <= layer < self.n_layers:
            raise BadInput(f"Layer {layer} does not exist: the model has layers 0 to {self.n_layers - 1}.")
        return layer % self.n_layers

    def check_head(self, layer: int, head: int) -> tuple[int, int]:
        """Return (layer, head) counted from 0; BadInput with the allowed range if there is no such head."""
        layer = self.check_layer(layer)
        if not -self.n_heads <= head < self.n_heads:
            raise BadInput(
                f"Head {head} of layer {layer} does not exist: each layer has heads 0 to {self.n_heads - 1}."
            )
        return layer, head % self.n_heads


class _SeamCall(NamedTuple):
    call: AttentionCall
    z: Tensor


class _Probe(NamedTuple):
    """One pass: the attention call of each layer, and the calls of all modules in the order in which they ended."""

    attention: list[_SeamCall]
    modules: list[ModuleCall]


@contextmanager
def frozen(model: nn.Module, *, but: Iterable[nn.Parameter] = ()) -> Iterator[None]:
    """Turn gradients of all parameters off inside this context, and back on afterwards where they were on.

    Args:
        model: The model.
        but: Parameters that keep theirs.
    """
    trained = {id(parameter) for parameter in but}
    trainable = [p for p in model.parameters() if p.requires_grad and id(p) not in trained]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def anatomy(model: nn.Module) -> Anatomy:
    """Return the anatomy of a Transformers decoder (also compiled or PEFT-wrapped), measured once per model.

    Raises:
        UnsupportedModel: Some layer does not call the seam or drops its state, or a part was not recognised.
    """
    with _MEASURING:
        return _measured_once(model)


def _measured_once(model: nn.Module) -> Anatomy:
    inner = causal_lm(model)
    modules = list(inner.modules())
    measured_modules, known = inner.__dict__.get(_CACHE, ([], None))
    # adapters, resized embeddings and the like replace modules, so the cached anatomy no longer holds
    if len(measured_modules) != len(modules) or any(a is not b for a, b in zip(measured_modules, modules, strict=True)):
        known = _measure(inner)
        inner.__dict__[_CACHE] = (modules, known)
    if (wrapper := unchecked_wrapper(model, inner)) is not None:
        with suspended(inner):
            check_wrapper(wrapper, inner)
    return known  # type: ignore[no-any-return]


@torch.no_grad()
def _measure(model: PreTrainedModel) -> Anatomy:
    with evaluating(model), suspended(model):
        probe = _probe(model)
        blocks = _blocks(model, probe.attention)
        layers = tuple(_layer(b, c, probe.modules) for b, c in zip(blocks, probe.attention, strict=True))
    n_heads, n_kv_heads, d_head = _sizes(model, probe.attention)
    norm, scale = _final_norm(model, blocks, probe.modules)
    check_decoder(model)
    d_model = int(norm.returned.shape[-1])
    return Anatomy(model, layers, norm.module, scale, n_heads, n_kv_heads, d_head, d_model)


def _sizes(model: PreTrainedModel, calls: list[_SeamCall]) -> tuple[int, int, int]:
    sizes = {(c.call.q.shape[1], c.call.k.shape[1], c.z.shape[-1]) for c in calls}
    if len(sizes) != 1:
        raise UnsupportedModel(
            f"The layers of this {model.config.model_type} model have different head counts or sizes "
            f"({sorted(sizes)} as heads, kv heads, head size); head maps need one shape for all layers."
        )
    return sizes.pop()


def _probe(model: PreTrainedModel) -> _Probe:
    arrived: dict[int, list[_SeamCall]] = {}

    def watch(call: AttentionCall, attend: Attend) -> Tensor:
        z = attend(call)
        arrived.setdefault(call.layer, []).append(_SeamCall(call, z))
        return z

    n_layers = int(model.config.get_text_config().num_hidden_layers)
    handlers = Handlers({i: (watch,) for i in range(n_layers)})
    with attach(model, handlers), recording(m for m in model.modules() if m is not model) as modules:
        model(input_ids=probe_ids(model), use_cache=False)
    return _Probe([_only_call(model, n_layers, arrived, i) for i in range(n_layers)], modules)


def _only_call(model: PreTrainedModel, n_layers: int, arrived: dict[int, list[_SeamCall]], layer: int) -> _SeamCall:
    calls = arrived.get(layer, [])
    if not calls:
        raise UnsupportedModel(_not_dispatching(model, n_layers, len(arrived)))
    kind = model.config.model_type
    if len(calls) > 1:
        raise UnsupportedModel(
            f"Layer {layer} of this {kind} model attends {len(calls)} times in one pass, so '(layer, head)' would not "
            "name one head."
        )
    z, unread = calls[0].z, _unread_options(calls[0].call)
    if unread:
        raise UnsupportedModel(
            f"This {kind} model steers its attention by {', '.join(unread)}, which no registered attention function "
            "that Chainwright can delegate to reads; its results would silently differ."
        )
    # the rows differ in their second token only, so a decoder's first position must not
    if not close(z[0, 0], z[1, 0]):
        raise UnsupportedModel(
            f"This {kind} model lets a position look at later tokens, so it is not a decoder; load a causal language "
            "model."
        )
    return calls[0]


def _unread_options(call: AttentionCall) -> list[str]:
    return [name for name, value in call.options.items() if isinstance(value, Tensor) and name not in _READ]


def _not_dispatching(model: PreTrainedModel, n_layers: int, n_arrived: int) -> str:
    which = f"only {n_arrived}" if n_arrived else "none"
    return (
        f"This {model.config.model_type} model cannot be read or edited: of its {n_layers} layers {which} called the "
        "registered attention function with Chainwright's state (tried: attention interface with the model's "
        "sdpa/eager as delegate, state passed as a keyword through the decoder). Use a model type that dispatches "
        "and forwards keywords, such as llama, qwen3, phi3, mistral, gemma3, gpt_oss, gpt2 or gpt_neox."
    )


def _blocks(model: PreTrainedModel, calls: list[_SeamCall]) -> list[nn.Module]:
    """Return the member of a module list that contains each attention module."""
    members = [child for m in model.modules() if isinstance(m, nn.ModuleList) for child in m]
    blocks = []
    for arrived in calls:
        holders = [b for b in members if any(part is arrived.call.module for part in b.modules())]
        if not holders:
            raise UnsupportedModel(
                f"No module list of {type(model).__name__} holds {type(arrived.call.module).__name__}, so its "
                "layers could not be found."
            )
        blocks.append(holders[0])
    return blocks


def _final_norm(model: PreTrainedModel, blocks: list[nn.Module], calls: list[ModuleCall]) -> tuple[ModuleCall, float]:
    """Return the final norm, and what its output is multiplied by before the unembedding."""
    inside = {id(m) for b in blocks for m in b.modules()}
    end, unembed = _only(calls, blocks[-1]).returned, _only(calls, model.get_output_embeddings()).given
    for s in calls:
        if id(s.module) not in inside and is_equal(s.given, end) and s.returned.shape == unembed.shape:
            scale = fitted_factor(unembed, s.returned)
            if scale is not None:
                return s, scale
    raise UnsupportedModel(
        f"No module of {type(model).__name__} turns what its last layer returns into what its unembedding is given, so "
        "its final norm was not found and the lens cannot be applied."
    )


def _layer(block: nn.Module, arrived: _SeamCall, calls: list[ModuleCall]) -> Layer:
    inside = {id(m) for m in block.modules()}
    mine = [s for s in calls if id(s.module) in inside]
    attention = arrived.call.module
    whole = _only(mine, block)
    attn = _only(mine, attention)
    out_proj, shards = _out_proj(arrived, attn, mine)
    layer = Layer(block, attention, out_proj, None, None, 1.0, shards)
    after = [s for s in mine[mine.index(attn) + 1 :] if s.module is not block]
    attn_out = attn.returned
    # a dropout returns what it is given, a post-norm does not
    post = next((s for s in after if is_equal(s.given, attn_out) and _changes(s)), None)
    if post is not None:
        _check_positionwise(post)
        attn_out = post.returned
        layer = replace(layer, post_attn=post.module)
    return _with_mid(layer, whole, attn_out, after)


def _only(calls: list[ModuleCall], module: nn.Module) -> ModuleCall:
    call = next((s for s in calls if s.module is module), None)
    if call is None:
        raise UnsupportedModel(f"{type(module).__name__} was not called as a module of its own, so it cannot be read.")
    return call


def _changes(s: ModuleCall) -> bool:
    return s.given.shape == s.returned.shape and not s.given.equal(s.returned)


def _check_positionwise(post: ModuleCall) -> None:
    try:
        alone = post.module(post.given.flatten(0, -2)[:, None])
    except TypeError as error:
        raise UnsupportedModel(
            f"{type(post.module).__name__}, which comes after the attention, needs more than the attention's output, "
            "so what one head writes cannot be computed."
        ) from error
    if not close(post.returned.flatten(0, -2), alone[:, 0]):
        raise UnsupportedModel(
            f"{type(post.module).__name__} mixes positions after the attention, so what one head writes at a position "
            "cannot be computed."
        )


class _Projection(NamedTuple):
    module: nn.Module
    shards: Shards | None


def _out_proj(arrived: _SeamCall, attn: ModuleCall, mine: list[ModuleCall]) -> _Projection:
    part: AttentionCall | None = arrived.call.__dict__.get("part")  # where ranks have heads of their own
    shards = None if part is None else part.shards
    z = (arrived.z if shards is None else shards.own(arrived.z, 2)).flatten(-2)
    inside = {id(m) for m in attn.module.modules()} - {id(attn.module)}
    given_z = [s for s in mine if id(s.module) in inside and is_equal(s.given, z)]
    # the last one is the outermost: an adapter's wrapper ends after the module it wraps
    projections = [s.module for s in given_z if is_equal(s.returned, attn.returned)]
    if not projections:
        raise UnsupportedModel(
            f"No module of {type(attn.module).__name__} turns the heads' outputs as they are into what the attention "
            "writes, so one head's write cannot be separated from the others'."
        )
    return _Projection(projections[-1], shards)


def _with_mid(layer: Layer, whole: ModuleCall, attn_out: Tensor, after: list[ModuleCall]) -> Layer:
    """Return the layer with the module that reads `resid_mid`, or as it is if attention and MLP run in parallel."""
    pre = whole.given
    if pre.shape == attn_out.shape:
        for s in after:
            if s.given.numel() == pre.numel() and s.given.shape[-1] == pre.shape[-1] and not is_equal(s.given, pre):
                multiplier = _multiplier(s.given.reshape(pre.shape), pre, attn_out)
                if multiplier is not None:
                    return replace(layer, mid_reader=s.module, multiplier=multiplier)
        for s in after:
            if s.returned.shape == pre.shape and _adds_up(whole.returned, pre, attn_out, s.returned):
                return layer
    raise UnsupportedModel(
        f"In {type(layer.block).__name__} the attention's output is not added to the residual stream in a way that "
        "was recognised (tried: before the MLP, with a constant factor, and in parallel with it)."
    )


def _multiplier(total: Tensor, pre: Tensor, attn_out: Tensor) -> float | None:
    """Return m in `total = pre + m * attn_out`, or None if no factor fits."""
    step, attn = widened(total - pre), widened(attn_out)
    fitted = float((step * attn).sum() / (attn * attn).sum())
    return next((m for m in (1.0, fitted) if m != 0 and _adds_up(total, pre, m * attn_out)), None)
