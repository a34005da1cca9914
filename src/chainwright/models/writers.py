"""What a layer writes to the residual stream, neuron by neuron, and the norms in front of its attention and MLP.

No model type is named here. `feed_forwards(parts)` runs two tokens through the model and

1. takes as MLP the module outside the attention that returns `resid_post - resid_mid`, up to a constant factor or a
   norm behind it;
2. takes as the norms in front the modules that are given `resid_pre` (or `resid_mid`) and return what the attention
   (or the MLP) is given.

The neurons of an MLP are found by running it on one position while every matrix product with one of its own weights is
watched: a product that ends in the size of the residual stream is a write, and its left factor holds the activations.
What each product is multiplied by afterwards (a routing weight, the constant factor) is measured by a derivative, and
all of them are checked to add up to what the MLP returned. So gated MLPs, routed and shared experts and adapters need
no code of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from chainwright._errors import UnsupportedModel
from chainwright.models._probe import ModuleCall, first_calls, first_tensor, holds_equal, probe_ids, recording
from chainwright.models.anatomy import Anatomy, Layer, evaluating
from chainwright.models.capture import forward
from chainwright.models.residual import norm_at_scale
from chainwright.models.seam import suspended, widened
from chainwright.models.sharding import whole_weights

# relative error allowed when the neurons' writes are added up and compared with what the MLP returned
_SUM_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


@dataclass(frozen=True)
class FeedForward:
    """The MLP of one layer, and the norms around the attention and the MLP.

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


def feed_forwards(parts: Anatomy) -> tuple[FeedForward, ...]:
    """Return the MLP of each layer, and the norms around its attention and MLP.

    Raises:
        UnsupportedModel: No module of some layer was recognised as its MLP.
    """
    model, watched = parts.model, [module for layer in parts.layers for module in _around_attention(layer)]
    with torch.no_grad(), evaluating(model), suspended(model), plain_experts(parts), recording(watched) as calls:
        forward(parts, probe_ids(model), None)
    return tuple(_feed_forward(layer, calls) for layer in parts.layers)


def _around_attention(layer: Layer) -> list[nn.Module]:
    """Return the modules of a layer: the attention as a whole, but none inside it, where no MLP can be."""
    inside = {id(m) for m in layer.attention.modules()} - {id(layer.attention)}
    return [module for module in layer.block.modules() if id(module) not in inside]


def _feed_forward(layer: Layer, calls: list[ModuleCall]) -> FeedForward:
    # a module that is shared between positions or experts runs several times; its first call is compared
    mine = first_calls(calls, set(layer.block.modules()))
    whole, attn = mine[layer.block], mine[layer.attention]
    if layer.mid_reader is None:
        # attention and MLP in parallel: no module reads resid_mid, so it is added up here
        attn_out = attn.returned if layer.post_attn is None else mine[layer.post_attn].returned
        mid = whole.given + layer.multiplier * attn_out
    else:
        mid = mine[layer.mid_reader].given.reshape(whole.given.shape)
    added = whole.returned - mid
    others = [s for s in mine.values() if s.module is not layer.attention and s.module is not layer.block]
    writer, multiplier = _writer(layer, others, added)
    # a module that only rescales is a norm behind the MLP; the MLP is then the module that the norm reads
    post = None if _has_matrices(writer.module) else writer.module
    if post is not None:
        # the outermost such module: the MLP's own last projection returns the same
        inner = (s for s in reversed(others) if _has_matrices(s.module) and holds_equal(s.returned, writer.given))
        behind = next(inner, None)
        if behind is None:
            raise UnsupportedModel(
                f"No module of {type(layer.block).__name__} with weight matrices was found to write what the MLP adds "
                "(quantised or fused weights cannot be read); load the model in an unquantised dtype."
            )
        writer = behind
    mlp_reads = whole.given if layer.mid_reader is None else mid
    return FeedForward(
        mlp=writer.module,
        post_mlp=post,
        multiplier=multiplier,
        attn_norm=_between(others, whole.given, attn.given),
        mlp_norm=_between(others, mlp_reads, writer.given),
    )


def _writer(layer: Layer, others: list[ModuleCall], added: Tensor) -> tuple[ModuleCall, float]:
    """Return the outermost module that returns what the MLP adds (the norm behind the MLP if there is one)."""
    for s in reversed(others):  # an outer module ends after those inside it
        if s.returned.numel() != added.numel():
            continue
        got, want = widened(s.returned).flatten(), widened(added).flatten()
        # least squares for want = factor * got; a factor this close to 1 is rounding, not a multiplier
        factor = float((got * want).sum() / (got * got).sum())
        factor = 1.0 if abs(factor - 1) < 1e-3 else factor
        if (factor * got - want).norm() <= _tolerance(added) * want.norm() + 1e-3 * _tolerance(added):
            # a dropout also returns what was added, but it changes nothing
            is_norm = not _has_matrices(s.module) and not holds_equal(s.given, s.returned)
            if _has_matrices(s.module) or is_norm:
                return s, factor
    raise UnsupportedModel(
        f"In {type(layer.block).__name__} no module returns what is added after the attention, so its neurons cannot "
        "be read."
    )


def _tolerance(tensor: Tensor) -> float:
    # resid_post - resid_mid cancels most of both, so its relative error is larger than that of a product
    return {torch.float64: 1e-6, torch.float32: 1e-3}.get(tensor.dtype, 0.05)


def _has_matrices(module: nn.Module) -> bool:
    return any(weight.dim() > 1 for weight in module.parameters())


def _between(others: list[ModuleCall], given: Tensor, returned: Tensor) -> nn.Module | None:
    """Return the module that turns one tensor into the other, or None if they are equal.

    Raises:
        UnsupportedModel: No module does.
    """
    if holds_equal(given, returned):
        return None
    norm = next((s.module for s in others if holds_equal(s.given, given) and holds_equal(s.returned, returned)), None)
    if norm is None:
        raise UnsupportedModel(
            "No module turns the residual stream into what the attention or the MLP is given, so what one component "
            "writes cannot be followed into them."
        )
    return norm


class _Product(NamedTuple):
    name: str
    activation: Tensor
    weight: Tensor
    probe: Tensor


class _WatchProducts(TorchFunctionMode):
    """Records each product with a weight of the MLP that has the residual stream's size, and adds a probe of zeros.

    A torch function mode sees the products also where a model calls `torch.nn.functional` or `@` on bare weights, as
    expert layers do, which no module hook would. With `is_silencing` the product is subtracted instead, which leaves
    what was added to it in the same call (a bias).
    """

    def __init__(self, mlp: nn.Module, d_model: int, *, is_silencing: bool = False):
        super().__init__()
        self.d_model, self.is_silencing = d_model, is_silencing
        self.mlp = mlp
        self.weights = self._by_storage()
        # offloaded weights are only there while their module runs, each time at another place
        self.is_offloaded = any(w.is_meta for w in mlp.parameters())
        self.products: list[_Product] = []

    def _by_storage(self) -> dict[int, tuple[str, Tensor]]:
        # by storage, since a model may use a transposed view, or one expert's slice of a 3-d weight
        named = ((name, w) for name, w in self.mlp.named_parameters() if w.dim() in (2, 3) and not w.is_meta)
        return {w.untyped_storage().data_ptr(): (name, w) for name, w in named}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.is_floating_point() and out.dim() and out.shape[-1] == self.d_model:
            return self._watched(func, [a for a in (*args, *(kwargs or {}).values()) if isinstance(a, Tensor)], out)
        return out

    def _watched(self, func: Any, factors: list[Tensor], out: Tensor) -> Tensor:
        if self.is_offloaded:
            self.weights = self._by_storage()
        weight = next((f for f in factors if f.dim() == 2 and f.untyped_storage().data_ptr() in self.weights), None)
        if weight is None:
            return out
        writes = weight.T if func is nn.functional.linear else weight  # [F, D]
        left = next((f for f in factors if f is not weight and f.dim() > 1 and f.shape[-1] == writes.shape[0]), None)
        if left is None or writes.shape[1] != self.d_model or left.numel() != writes.shape[0]:
            return out
        if self.is_silencing:
            return out - (left @ writes).view_as(out)
        # the derivative of the MLP's output with respect to the probe is what this product is multiplied by later
        probe = torch.zeros_like(out, requires_grad=True)
        self.products.append(_Product(self._name(weight), left.reshape(-1), writes, probe))
        return out + probe

    def _name(self, weight: Tensor) -> str:
        name, whole = self.weights[weight.untyped_storage().data_ptr()]
        if whole.dim() == 2:
            return name
        # experts side by side in one tensor: the slice's offset gives the expert's number
        return f"{name}[{(weight.data_ptr() - whole.data_ptr()) // (whole.stride(0) * whole.itemsize)}]"


@contextmanager
def plain_experts(parts: Anatomy) -> Iterator[None]:
    """Run routed experts one after another, so that each one's products are separate."""
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

    Weights that are spread over ranks are gathered for the time of the call, since neurons are named through all ranks.

    Args:
        parts: Anatomy of the model.
        ff: The layer's MLP.
        given: What the MLP is given at that position, `[D]`.

    Raises:
        UnsupportedModel: The products with the MLP's weights do not add up to what it returns.
    """
    with whole_weights(ff.mlp):
        return _run_whole(parts, ff, given)


def _run_whole(parts: Anatomy, ff: FeedForward, given: Tensor) -> NeuronRun:
    leaf = given.detach().clone().requires_grad_(True)
    watch = _WatchProducts(ff.mlp, parts.d_model)
    with torch.enable_grad(), evaluating(ff.mlp), watch:
        returned = first_tensor(ff.mlp(leaf[None, None]))
        assert returned is not None
        out = returned.reshape(-1)
    groups = _scaled(watch.products, out)
    total = sum((g.factor * (g.activation.detach() @ g.weight.detach()) for g in groups), _rest(ff, parts, given))
    tolerance = _SUM_TOLERANCE.get(out.dtype, 0.05) * (1e-6 + widened(out).norm())
    if not groups or not widened(total - out).norm() <= tolerance:  # written so that NaN fails too
        raise UnsupportedModel(
            f"The neurons of {type(ff.mlp).__name__} could not be separated: the products with its weights do not add "
            "up to what it returns (quantised or fused weights cannot be read; load the model in an unquantised dtype)."
        )
    return NeuronRun(leaf, out.detach(), groups)


def _scaled(products: list[_Product], out: Tensor) -> list[Neurons]:
    """Return the products that reach the output through a constant factor, with that factor."""
    if not products:
        return []
    # if out = factor * product + ..., the gradient of out . direction is factor * direction; any other gradient means
    # that the product is transformed further (a down-projection inside a down-projection) and is no write
    direction = torch.linspace(-1, 1, out.shape[-1], device=out.device).to(out.dtype)
    with torch.enable_grad():
        total = out @ direction
    grads: Sequence[Tensor | None] = torch.autograd.grad(
        total, [p.probe for p in products], retain_graph=True, allow_unused=True
    )
    groups = []
    for product, grad in zip(products, grads, strict=True):
        if grad is None:
            continue
        grad = grad.reshape(-1)
        factor = float((grad * direction).sum() / (direction * direction).sum())
        if (grad - factor * direction).norm() <= _tolerance(out) * grad.norm():
            groups.append(Neurons(product.name, product.activation, product.weight, factor))
    return groups


@torch.no_grad()
def _rest(ff: FeedForward, parts: Anatomy, given: Tensor) -> Tensor:
    """Return what the MLP returns when every product that writes is subtracted: its biases."""
    with evaluating(ff.mlp), _WatchProducts(ff.mlp, parts.d_model, is_silencing=True):
        out = first_tensor(ff.mlp(given[None, None]))
    assert out is not None
    return out.reshape(-1)


def mlp_writes(ff: FeedForward, group: Neurons, out: Tensor, index: Tensor) -> Tensor:
    """Return what some neurons of a group write to the residual stream, `[K, D]`.

    Args:
        ff: The layer's MLP.
        group: The neurons of one output matrix.
        out: The MLP's output at that position before a norm behind it, `[D]`, which sets the norm's scale.
        index: Which neurons of the group, `[K]`.
    """
    vectors = group.activation.detach()[index, None] * group.weight.detach()[index] * group.factor
    return ff.multiplier * _behind(ff.post_mlp, vectors, out)


def attn_writes(layer: Layer, z: Tensor, index: Tensor) -> Tensor:
    """Return what some attention neurons write to the residual stream.

    Args:
        layer: The layer.
        z: Head outputs at one position, `[H, d]`.
        index: Indices into the flattened z, `[K]`.

    Returns:
        `[K, D]`.
    """
    flat = z.flatten()
    alone = torch.zeros(len(index), flat.shape[0], dtype=z.dtype, device=z.device)
    alone[torch.arange(len(index)), index] = flat[index]
    return z_writes(layer, alone.view(len(index), *z.shape), z)


def z_writes(layer: Layer, z: Tensor, whole: Tensor) -> Tensor:
    """Return what parts of a head output write on their own, `[R, D]`.

    Args:
        layer: The layer.
        z: The parts, `[R, H, d]`.
        whole: The head output that they are parts of, `[H, d]`, which sets the scale of a norm behind the projection.
    """
    # subtracting the projection of zero removes its bias, which no part wrote
    vectors = layer.project(z) - layer.project(torch.zeros_like(z[:1]))
    return layer.multiplier * _behind(layer.post_attn, vectors, layer.project(whole[None])[0])


def _behind(norm: nn.Module | None, vectors: Tensor, whole: Tensor) -> Tensor:
    """Return vectors after a norm whose scale is held at that of `whole`, without the norm's bias."""
    if norm is None:
        return vectors
    reference = whole.expand_as(vectors)
    return norm_at_scale(norm, vectors, reference) - norm_at_scale(norm, torch.zeros_like(vectors), reference)


def pull_back(norm: nn.Module | None, reference: Tensor, direction: Tensor) -> Tensor:
    """Return u with `u . c = direction . norm(c)` for a norm held at its scale for `reference`, all `[P, D]`."""
    if norm is None:
        return direction
    # held at one scale the norm is linear, so its transpose applied to `direction` is a gradient
    with torch.enable_grad():
        leaf = reference.detach().clone().requires_grad_(True)
        out = norm_at_scale(norm, leaf, reference.detach())
        (pulled,) = torch.autograd.grad(out, leaf, direction.to(out.dtype))
    return pulled
