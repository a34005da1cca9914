"""What a layer writes to the residual stream, neuron by neuron, and which norms stand before its two halves.

No model type is named here. `feed_forwards(parts)` runs two tokens through the model and takes

1. as MLP the module outside of the attention that returns `resid_post - resid_mid`, but for a constant factor or a
   norm behind it;
2. as the norms in front the modules that are given `resid_pre` (or `resid_mid`) and return what the attention (or the
   MLP) is given.

The neurons of an MLP are found by running it on one position while every matrix product with one of its own weights is
watched: a product that ends in the residual's size writes, its left factor holds the activations. What each product
is multiplied by afterwards (a routing weight, the constant factor) is measured by a derivative, and all of them are
checked to add up to what the MLP returned. So gated MLPs, routed and shared experts and adapters are all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from chainwright._errors import UnsupportedModel
from chainwright.models.anatomy import Anatomy, Layer, evaluating, first_tensor, given_tensor
from chainwright.models.capture import forward
from chainwright.models.residual import norm_at_scale
from chainwright.models.seam import suspended, widened

_ROOM = {torch.float64: 1e-9, torch.float32: 1e-4}


@dataclass(frozen=True)
class FeedForward:
    """The MLP of one layer and the norms around the layer's halves.

    Attributes:
        mlp: The module that reads the normed stream and returns what is added to it.
        post_mlp: A norm behind it, or None.
        multiplier: What its output is multiplied by before it is added.
        attn_norm: The norm in front of the attention, or None.
        mlp_norm: The norm in front of the MLP, or None.
    """

    mlp: nn.Module
    post_mlp: nn.Module | None
    multiplier: float
    attn_norm: nn.Module | None
    mlp_norm: nn.Module | None


class Neurons(NamedTuple):
    """Neurons of one output matrix at one position; those of a routed expert are a group of their own.

    Attributes:
        name: Path of the matrix inside the MLP, with the expert's number where there are several in it.
        activation: `[F]`, differentiable in the MLP's input.
        weight: What a neuron writes for an activation of 1, before `factor` and a norm behind the MLP, `[F, D]`.
        factor: Routing weight times multiplier.
    """

    name: str
    activation: Tensor
    weight: Tensor
    factor: float


class NeuronRun(NamedTuple):
    """One MLP on one position: its input (a leaf), its output before a norm behind it, and its groups of neurons."""

    given: Tensor
    out: Tensor
    groups: list[Neurons]


class _Seen(NamedTuple):
    module: nn.Module
    given: Tensor
    returned: Tensor


def feed_forwards(parts: Anatomy) -> tuple[FeedForward, ...]:
    """Return the MLP of each layer and the norms around its halves.

    Raises:
        UnsupportedModel: Some layer's MLP was not found.
    """
    seen: list[_Seen] = []
    ids = torch.tensor([[3, 4], [3, 5]], device=parts.model.device).clamp(max=parts.d_vocab - 1)
    with torch.no_grad(), evaluating(parts.model), suspended(parts.model), plain_experts(parts), _watching(parts, seen):
        forward(parts, ids, None)
    return tuple(_feed_forward(layer, seen) for layer in parts.layers)


@contextmanager
def _watching(parts: Anatomy, seen: list[_Seen]) -> Iterator[None]:
    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given, returned = given_tensor(args, kwargs), first_tensor(output)
        if given is not None and returned is not None and given.numel() % parts.d_model == 0:
            seen.append(_Seen(module, given.clone(), returned.clone()))

    with ExitStack() as stack:
        for layer in parts.layers:
            inside_attn = {id(m) for m in layer.attention.modules()} - {id(layer.attention)}
            for module in layer.block.modules():
                if id(module) not in inside_attn:
                    stack.callback(module.register_forward_hook(record, with_kwargs=True).remove)
        yield


def _feed_forward(layer: Layer, seen: list[_Seen]) -> FeedForward:
    inside = {id(m) for m in layer.block.modules()}
    mine = {id(s.module): s for s in reversed(seen) if id(s.module) in inside}  # the first call of each
    ordered = [s for s in seen if mine.get(id(s.module)) is s]
    whole, attn = mine[id(layer.block)], mine[id(layer.attention)]
    if layer.mid_reader is None:
        attn_out = attn.returned if layer.post_attn is None else mine[id(layer.post_attn)].returned
        mid = whole.given + layer.multiplier * attn_out
    else:
        mid = mine[id(layer.mid_reader)].given.reshape(whole.given.shape)
    added = whole.returned - mid
    others = [s for s in ordered if s.module is not layer.attention and s.module is not layer.block]
    writer, multiplier = _writer(layer, others, added)
    post = None if _has_matrices(writer.module) else writer.module
    if post is not None:
        writer = next(s for s in others if _has_matrices(s.module) and _same(s.returned, writer.given))
    mlp_reads = whole.given if layer.mid_reader is None else mid
    return FeedForward(
        mlp=writer.module,
        post_mlp=post,
        multiplier=multiplier,
        attn_norm=_between(others, whole.given, attn.given),
        mlp_norm=_between(others, mlp_reads, writer.given),
    )


def _writer(layer: Layer, others: list[_Seen], added: Tensor) -> tuple[_Seen, float]:
    """Return the outermost module that returns what the MLP adds, a norm behind the MLP if there is one."""
    for s in reversed(others):
        if s.returned.numel() != added.numel():
            continue
        got, want = widened(s.returned).flatten(), widened(added).flatten()
        factor = float((got * want).sum() / (got * got).sum())
        factor = 1.0 if abs(factor - 1) < 1e-3 else factor
        if (factor * got - want).norm() <= _room(added) * want.norm() + 1e-3 * _room(added):
            is_norm = not _has_matrices(s.module) and not _same(s.given, s.returned)
            if _has_matrices(s.module) or is_norm:
                return s, factor
    raise UnsupportedModel(
        f"In {type(layer.block).__name__} no module returns what is added after the attention, so its neurons cannot "
        "be read."
    )


def _room(tensor: Tensor) -> float:
    # the difference of two residual vectors is rounded, so in float32 more room is needed than for a product
    return {torch.float64: 1e-6, torch.float32: 1e-3}.get(tensor.dtype, 0.05)


def _has_matrices(module: nn.Module) -> bool:
    return any(weight.dim() > 1 for weight in module.parameters())


def _same(a: Tensor, b: Tensor) -> bool:
    return a.numel() == b.numel() and torch.equal(a.flatten(), b.flatten())


def _between(others: list[_Seen], given: Tensor, returned: Tensor) -> nn.Module | None:
    """Return the module that turns one tensor into the other, None if they are the same.

    Raises:
        UnsupportedModel: No module does.
    """
    if _same(given, returned):
        return None
    found = next((s.module for s in others if _same(s.given, given) and _same(s.returned, returned)), None)
    if found is None:
        raise UnsupportedModel(
            "No module turns the residual stream into what the attention or the MLP is given, so what one component "
            "writes cannot be followed into them."
        )
    return found


class _Product(NamedTuple):
    name: str
    activation: Tensor
    weight: Tensor
    probe: Tensor


class _WatchProducts(TorchFunctionMode):
    """Records each product with a weight of the MLP that ends in the residual's size, and adds a probe of zeros.

    With `is_silencing` it takes the product out instead and keeps what was added to it in the same call.
    """

    def __init__(self, mlp: nn.Module, d_model: int, *, is_silencing: bool = False):
        super().__init__()
        self.d_model, self.is_silencing = d_model, is_silencing
        self.weights = {
            w.untyped_storage().data_ptr(): (name, w) for name, w in mlp.named_parameters() if w.dim() in (2, 3)
        }
        self.found: list[_Product] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.is_floating_point() and out.dim() and out.shape[-1] == self.d_model:
            return self._watched(func, [a for a in (*args, *(kwargs or {}).values()) if isinstance(a, Tensor)], out)
        return out

    def _watched(self, func: Any, factors: list[Tensor], out: Tensor) -> Tensor:
        weight = next((f for f in factors if f.dim() == 2 and f.untyped_storage().data_ptr() in self.weights), None)
        if weight is None:
            return out
        writes = weight.T if func is nn.functional.linear else weight  # [F, D]
        left = next((f for f in factors if f is not weight and f.dim() > 1 and f.shape[-1] == writes.shape[0]), None)
        if left is None or writes.shape[1] != self.d_model or left.numel() != writes.shape[0]:
            return out
        if self.is_silencing:
            return out - (left @ writes).view_as(out)
        probe = torch.zeros_like(out, requires_grad=True)
        self.found.append(_Product(self._name(weight), left.reshape(-1), writes, probe))
        return out + probe

    def _name(self, weight: Tensor) -> str:
        name, whole = self.weights[weight.untyped_storage().data_ptr()]
        if whole.dim() == 2:
            return name
        return f"{name}[{(weight.data_ptr() - whole.data_ptr()) // (whole.stride(0) * whole.itemsize)}]"


@contextmanager
def plain_experts(parts: Anatomy) -> Iterator[None]:
    """Let routed experts run one after another, so that each one's products can be told apart."""
    model = parts.model
    if not model._can_set_experts_implementation():
        yield
        return
    before = model.get_experts_implementation()
    model.set_experts_implementation("eager")
    try:
        yield
    finally:
        model.set_experts_implementation(before)


def run_neurons(parts: Anatomy, ff: FeedForward, given: Tensor) -> NeuronRun:
    """Run an MLP on one position and return its neurons; call it inside `plain_experts`.

    Args:
        parts: Anatomy of the model.
        ff: The layer's MLP.
        given: What the MLP is given at that position, `[D]`.

    Raises:
        UnsupportedModel: The products with the MLP's weights do not add up to what it returns.
    """
    leaf = given.detach().clone().requires_grad_(True)
    watch = _WatchProducts(ff.mlp, parts.d_model)
    with torch.enable_grad(), evaluating(ff.mlp), watch:
        returned = first_tensor(ff.mlp(leaf[None, None]))
        assert returned is not None
        out = returned.reshape(-1)
    groups = _scaled(watch.found, out)
    total = sum((g.factor * (g.activation.detach() @ g.weight.detach()) for g in groups), _rest(ff, parts, given))
    if not groups or not widened(total - out).norm() <= _ROOM.get(out.dtype, 0.05) * (1e-6 + widened(out).norm()):
        raise UnsupportedModel(
            f"The neurons of {type(ff.mlp).__name__} could not be told apart: the products with its weights do not add "
            "up to what it returns (quantised or fused weights cannot be read; load the model in a plain number type)."
        )
    return NeuronRun(leaf, out.detach(), groups)


def _scaled(found: list[_Product], out: Tensor) -> list[Neurons]:
    """Return the products that reach the output by a constant factor, with that factor."""
    if not found:
        return []
    direction = torch.linspace(-1, 1, out.shape[-1], device=out.device).to(out.dtype)
    with torch.enable_grad():
        total = out @ direction
    grads: Sequence[Tensor | None] = torch.autograd.grad(
        total, [p.probe for p in found], retain_graph=True, allow_unused=True
    )
    groups = []
    for product, grad in zip(found, grads, strict=True):
        if grad is None:
            continue
        grad = grad.reshape(-1)
        factor = float((grad * direction).sum() / (direction * direction).sum())
        if (grad - factor * direction).norm() <= _room(out) * grad.norm():
            groups.append(Neurons(product.name, product.activation, product.weight, factor))
    return groups


@torch.no_grad()
def _rest(ff: FeedForward, parts: Anatomy, given: Tensor) -> Tensor:
    """Return what the MLP returns when every product that writes is taken out: its biases."""
    with evaluating(ff.mlp), _WatchProducts(ff.mlp, parts.d_model, is_silencing=True):
        out = first_tensor(ff.mlp(given[None, None]))
    assert out is not None
    return out.reshape(-1)


def mlp_writes(ff: FeedForward, group: Neurons, out: Tensor, at: Tensor) -> Tensor:
    """Return what some neurons of a group write to the residual stream, `[K, D]`; `at` are their indices."""
    vectors = group.activation.detach()[at, None] * group.weight.detach()[at] * group.factor
    return ff.multiplier * _behind(ff.post_mlp, vectors, out)


def attn_writes(layer: Layer, z: Tensor, at: Tensor) -> Tensor:
    """Return what some attention neurons write to the residual stream.

    Args:
        layer: The layer.
        z: Head outputs at one position, `[H, d]`.
        at: Indices into the flattened z, `[K]`.

    Returns:
        `[K, D]`.
    """
    flat = z.flatten()
    alone = torch.zeros(len(at), flat.shape[0], dtype=z.dtype, device=z.device)
    alone[torch.arange(len(at)), at] = flat[at]
    return z_writes(layer, alone.view(len(at), *z.shape), z)


def z_writes(layer: Layer, z: Tensor, whole: Tensor) -> Tensor:
    """Return what parts of a head output write on their own, `[R, D]`.

    Args:
        layer: The layer.
        z: The parts, `[R, H, d]`.
        whole: The head output that they are parts of, `[H, d]`: a norm behind the projection has its scale.
    """
    vectors = layer.out_proj(z.flatten(-2)) - layer.out_proj(torch.zeros_like(z[:1]).flatten(-2))
    return layer.multiplier * _behind(layer.post_attn, vectors, layer.out_proj(whole.flatten()[None])[0])


def _behind(norm: nn.Module | None, vectors: Tensor, whole: Tensor) -> Tensor:
    """Return vectors behind a norm that has the scale of `whole`, without the norm's bias."""
    if norm is None:
        return vectors
    reference = whole.expand_as(vectors)
    return norm_at_scale(norm, vectors, reference) - norm_at_scale(norm, torch.zeros_like(vectors), reference)


def pull_back(norm: nn.Module | None, at: Tensor, direction: Tensor) -> Tensor:
    """Return the vectors u with `u . c = direction . norm(c)` for a norm held at its scale for `at`, both `[P, D]`."""
    if norm is None:
        return direction
    with torch.enable_grad():
        leaf = at.detach().clone().requires_grad_(True)
        out = norm_at_scale(norm, leaf, at.detach())
        (pulled,) = torch.autograd.grad(out, leaf, direction.to(out.dtype))
    return pulled
