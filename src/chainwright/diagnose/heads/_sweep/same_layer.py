"""What the knockouts in one layer have in common inside that layer, so that it is computed once for all its heads.

Silencing head h takes z_h W_h from what the attention writes, and nothing else. So

1. the attention's output is the recorded one less z_h W_h, a product of d_head rows instead of all heads' rows;
2. where a norm reads the sum and linear modules read the norm, each of those is, up to a scale for each token, linear
   in the sum: y' = s' (P - z_h M_h) + c with P from the plain pass, M_h = W_h diag(w) V, the norm's weights w, the
   module's V, the norm's scale s' and a constant c.

No norm and no MLP is named. Which linear modules read the norm is watched in the plain pass; weights, bias and
centring of the norm are measured; and the whole formula is compared, on some tokens, with what the modules return.
Where it does not hold, the modules run as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from chainwright.diagnose.heads._sweep.baseline_pass import LayerCall, returning
from chainwright.diagnose.heads._sweep.last_layer_query import LastQuery
from chainwright.models._probe import first_tensor
from chainwright.models.anatomy import Anatomy, Layer

_N_COMPARED = 16
_MOST_OFF = 1e-5  # of the largest output


class _Norm(NamedTuple):
    """A norm as `scale(x) * weight * (x - mean(x) if is_centred) + bias`."""

    weight: Tensor
    bias: Tensor
    is_centred: bool

    def direction(self, x: Tensor) -> Tensor:
        """Return the norm's output but for scale and bias."""
        centred = x - x.mean(-1, keepdim=True) if self.is_centred else x
        return torch.mul(centred, self.weight)

    def scale(self, x: Tensor, normed: Tensor) -> Tensor:
        """Return the scale that turned `x` into `normed`, `[..., 1]`."""
        size = torch.linalg.vector_norm(self.direction(x), dim=-1, keepdim=True)
        without_bias = normed - self.bias if bool(self.bias.any()) else normed
        scale: Tensor = torch.linalg.vector_norm(without_bias, dim=-1, keepdim=True) / size.clamp(min=1e-30)
        return scale


class _Reader(NamedTuple):
    """A linear module that reads the norm.

    Attributes:
        plain: P `[N, T, out]`.
        per_head: M `[H, d, out]`.
        constant: c `[out]`, or None where it is zero.
    """

    module: nn.Module
    plain: Tensor
    per_head: Tensor
    constant: Tensor | None


class _Weights(NamedTuple):
    """What does not depend on the contexts: W `[H, d, D]`, the norm, and M and c of each module."""

    writes: Tensor
    norm: _Norm | None
    per_head: dict[nn.Module, Tensor]
    constant: dict[nn.Module, Tensor | None]


@dataclass
class Shared:
    """What the variants of one layer share.

    Attributes:
        z: `[N, T, H, d]`.
        attn_out: What the attention gave `[N, T, D]`.
        readers: The modules whose output is computed from the plain pass.
    """

    layer: Layer
    call: LayerCall
    attn_out: Tensor
    weights: _Weights
    readers: list[_Reader]

    @contextmanager
    def given(self, rows: Tensor, heads: Tensor) -> Iterator[None]:
        """Let the layer's modules return what they would without one head in each row."""
        z = self._z(rows, heads)
        attn_out = _less(self.attn_out, rows, z, self.weights.writes[heads])
        with ExitStack() as stack:
            stack.enter_context(returning(self.layer.attention, lambda *_, **__: as_output(self.call, attn_out)))
            if self.readers:
                self._give_readers(stack, rows, heads, z)
            yield

    def _z(self, rows: Tensor, heads: Tensor) -> Tensor:
        z = self.call.z[rows, :, heads]  # (variant, position, d_head)
        return z * (heads >= 0)[:, None, None].to(z.device) if bool((heads < 0).any()) else z

    def _give_readers(self, stack: ExitStack, rows: Tensor, heads: Tensor, z: Tensor) -> None:
        norm, mid_reader = self.weights.norm, self.layer.mid_reader
        assert norm is not None and mid_reader is not None
        scale: list[Tensor] = []

        def read_scale(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            scale.append(norm.scale(args[0], output))

        def answer(reader: _Reader) -> Callable[[Tensor], Tensor]:
            def forward(normed: Tensor) -> Tensor:
                out = _less(reader.plain, rows, z, reader.per_head[heads]).mul_(scale[-1].reshape(*z.shape[:2], 1))
                if reader.constant is not None:
                    out += reader.constant
                return out.reshape(*normed.shape[:-1], out.shape[-1])

            return forward

        stack.callback(mid_reader.register_forward_hook(read_scale).remove)
        for reader in self.readers:
            stack.enter_context(returning(reader.module, answer(reader)))


def as_output(call: LayerCall, attn_out: Tensor) -> Any:
    """Return `attn_out` `[R, T, D]` in the form in which the attention module returned its own."""
    recorded = first_tensor(call.attn_output)
    assert recorded is not None
    attn_out = attn_out if recorded.dim() > 2 else attn_out.flatten(0, 1)
    output = call.attn_output
    return attn_out if isinstance(output, Tensor) else type(output)((attn_out, *output[1:]))


def _less(plain: Tensor, rows: Tensor, z: Tensor, per_head: Tensor) -> Tensor:
    """Return `plain[rows] - z per_head`."""
    if bool((rows == rows[0]).all()):
        row = int(rows[0])
        return torch.baddbmm(plain[row : row + 1].expand(len(rows), -1, -1), z, per_head, alpha=-1)
    return plain[rows].baddbmm_(z, per_head, alpha=-1)


class Sharing:
    """Finds what the variants of a layer share; keeps what depends on the model alone from one group to the next."""

    def __init__(self, parts: Anatomy):
        self.parts = parts
        self.kept: dict[int, _Weights] = {}
        self.last_query = LastQuery(parts.layers[-1])

    def of_layer(self, layer: int, call: LayerCall, n_variants: int) -> Shared | None:
        """Return what `n_variants` variants of a layer share, or None where sharing would round too much.

        Half precision would round the recorded output and the head's part one after the other.
        """
        recorded, at = first_tensor(call.attn_output), self.parts.layers[layer]
        if recorded is None or recorded.dtype not in (torch.float32, torch.float64):
            return None
        attn_out = recorded.reshape(*call.z.shape[:2], -1)
        weights = self.kept.get(layer)
        if weights is None:
            weights = self.kept[layer] = self._weights(at, call)
        shared = Shared(at, call, attn_out, weights, [])
        n_rows, n_tokens, n_heads, d_head = call.z.shape
        saved = n_variants * n_tokens * (1 - d_head / attn_out.shape[-1])
        if weights.norm is not None and saved > n_rows * n_tokens + n_heads * d_head:
            shared.readers = self._readers(shared)
        return shared

    def _weights(self, layer: Layer, call: LayerCall) -> _Weights:
        n_heads, d_head = call.z.shape[2:]
        basis = torch.eye(n_heads * d_head, dtype=call.z.dtype, device=call.z.device)
        writes = (layer.out_proj(basis) - layer.out_proj(torch.zeros_like(basis[:1]))).unflatten(0, (n_heads, d_head))
        norm = None
        if layer.post_attn is None and layer.mid_reader is not None and call.mid_readers:
            norm = _measured(layer.mid_reader, call.hidden.shape[-1], writes)
        return _Weights(writes, norm, {}, {})

    def _readers(self, shared: Shared) -> list[_Reader]:
        layer, weights, call = shared.layer, shared.weights, shared.call
        norm, mid_reader = weights.norm, layer.mid_reader
        assert norm is not None and mid_reader is not None
        mid = call.hidden + layer.multiplier * shared.attn_out
        normed = mid_reader(mid)
        scale = norm.scale(mid, normed)
        found = []
        for module in call.mid_readers:
            weight = module.weight
            if not isinstance(weight, Tensor) or weight.dtype != normed.dtype or weight.is_meta:
                continue
            if module not in weights.per_head:
                direction = norm.direction(weights.writes * layer.multiplier)
                weights.per_head[module] = module(direction) - module(torch.zeros_like(direction[:1, :1]))
                constant = module(norm.bias)
                weights.constant[module] = constant if bool(constant.any()) else None
            per_head, constant = weights.per_head[module], weights.constant[module]
            plain = module(normed)
            plain = (plain if constant is None else plain - constant).div_(scale)
            found.append(_Reader(module, plain, per_head, constant))
        return found if all(_holds(shared, reader) for reader in found) else []


def _measured(module: nn.Module, d_model: int, like: Tensor) -> _Norm | None:
    """Return weights, bias and centring of a norm, or None if it is none."""
    zero = torch.zeros(1, 1, d_model, dtype=like.dtype, device=like.device)
    # no coordinate is near zero or near the mean
    signs = 1 - 2 * (torch.arange(d_model, device=like.device) % 2)
    vector = (signs * torch.linspace(1, 2, d_model, device=like.device)).to(like.dtype) + zero
    bias = module(zero)[0, 0]
    own = module(vector)[0, 0] - bias
    moved = module(vector + 1)[0, 0] - bias
    is_centred = bool((moved - own).norm() < 1e-3 * own.norm())
    centred = vector - vector.mean() if is_centred else vector
    # the scale of this vector goes into the weights, whose size does not matter: `scale` is relative to them
    return _Norm(own / centred[0, 0], bias, is_centred)


def _holds(shared: Shared, reader: _Reader) -> bool:
    """Say whether the formula gives what the module returns, on the first row's first tokens without the first head."""
    layer, norm = shared.layer, shared.weights.norm
    assert norm is not None and layer.mid_reader is not None
    some = slice(0, _N_COMPARED)
    z, attn_out = shared.call.z[:1, some, 0], shared.attn_out[:1, some]
    mid = shared.call.hidden[:1, some] + layer.multiplier * (attn_out - z @ shared.weights.writes[0])
    normed = layer.mid_reader(mid)
    want = reader.module(normed)
    got = norm.scale(mid, normed) * (reader.plain[:1, some] - z @ reader.per_head[0])
    got = got if reader.constant is None else got + reader.constant
    return bool((got - want).abs().max() <= _MOST_OFF * want.abs().max())
