"""Work that the knockouts in one layer share inside that layer, computed once for all its heads.

Silencing head h removes z_h W_h from the attention's output and changes nothing else. So

1. the attention's output is the recorded one minus z_h W_h, a product with d_head rows instead of all heads' rows;
2. where a norm reads the sum and linear modules read the norm, the output of each such module is, up to one scale per
   token, linear in the sum: y' = s' (P - z_h M_h) + c, with P from the baseline pass, M_h = W_h diag(w) V, the norm's
   weights w, the module's weights V, the norm's new scale s' and a constant c.

No norm or MLP is named. Which linear modules read the norm is recorded in the baseline pass; weights, bias and centring
of the norm are measured; and the formula is compared on some tokens with what the modules return. Where it does not
hold, the modules run as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from chainwright.diagnose.heads._sweep.baseline_pass import LayerCall
from chainwright.diagnose.heads._sweep.last_layer_query import LastQuery
from chainwright.diagnose.heads._sweep.segments import picked_rows
from chainwright.models._probe import first_tensor
from chainwright.models.anatomy import Anatomy, Layer
from chainwright.models.layer_halves import returning

_N_COMPARED = 16  # tokens on which the formula is compared with the module
_TOLERANCE = 1e-5  # largest difference, relative to the largest output


class _Norm(NamedTuple):
    """A norm as `scale(x) * weight * (x - mean(x) if is_centred) + bias`."""

    weight: Tensor
    bias: Tensor
    is_centred: bool

    def direction(self, x: Tensor) -> Tensor:
        """Return the norm's output up to its scale and bias."""
        centred = x - x.mean(-1, keepdim=True) if self.is_centred else x
        return torch.mul(centred, self.weight)

    def scale(self, x: Tensor, normed: Tensor) -> Tensor:
        """Return the scale that turned `x` into `normed`, `[..., 1]`, by comparing lengths.

        Read from the norm's own output, so its epsilon and any clamping are included without knowing them.
        """
        size = torch.linalg.vector_norm(self.direction(x), dim=-1, keepdim=True)
        without_bias = normed - self.bias if bool(self.bias.any()) else normed
        scale: Tensor = torch.linalg.vector_norm(without_bias, dim=-1, keepdim=True) / size.clamp(min=1e-30)
        return scale


class _Reader(NamedTuple):
    """A linear module that reads the norm, in the terms of the formula above.

    Attributes:
        module: The module.
        plain: P `[N, T, out]`.
        per_head: M `[H, d, out]`.
        constant: c `[out]`, or None where it is zero.
    """

    module: nn.Module
    plain: Tensor
    per_head: Tensor
    constant: Tensor | None


class _Weights(NamedTuple):
    """The terms that depend on the model alone: W `[H, d, D]`, the norm, and M and c of each module."""

    writes: Tensor
    norm: _Norm | None
    per_head: dict[nn.Module, Tensor]
    constant: dict[nn.Module, Tensor | None]


@dataclass
class Shared:
    """The terms that the variants of one layer share.

    Attributes:
        layer: The layer.
        call: Its call in the baseline pass.
        attn_out: The attention's output there `[N, T, D]`.
        weights: The terms that depend on the model alone.
        readers: The modules whose output is computed by the formula.
    """

    layer: Layer
    call: LayerCall
    attn_out: Tensor
    weights: _Weights
    readers: list[_Reader]

    @contextmanager
    def given(self, rows: Tensor, heads: Tensor) -> Iterator[None]:
        """Make the layer's modules return what they would with one head silenced in each row.

        Args:
            rows: Row of each variant in the baseline pass `[R]`.
            heads: Its silenced head `[R]`; -1 for none.
        """
        z = self._z(rows, heads)
        attn_out = _less(self.attn_out, rows, z, self.weights.writes[heads])
        with ExitStack() as stack:
            stack.enter_context(returning(self.layer.attention, lambda *_, **__: as_output(self.call, attn_out)))
            if self.readers:
                self._give_readers(stack, rows, heads, z)
            yield

    def _z(self, rows: Tensor, heads: Tensor) -> Tensor:
        # head -1 reads the last head's z, which is then set to zero: nothing is subtracted
        z = self.call.z[rows, :, heads]  # (variant, position, d_head)
        return z * (heads >= 0)[:, None, None].to(z.device) if bool((heads < 0).any()) else z

    def _give_readers(self, stack: ExitStack, rows: Tensor, heads: Tensor, z: Tensor) -> None:
        norm, mid_reader = self.weights.norm, self.layer.mid_reader
        assert norm is not None and mid_reader is not None
        scale: list[Tensor] = []

        # the norm itself runs on the variant's own sum, so the only term that is not linear in z is exact
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
    """Return `attn_out` `[R, T, D]` in the form in which the attention module returned its own output."""
    recorded = first_tensor(call.attn_output)
    assert recorded is not None
    attn_out = attn_out if recorded.dim() > 2 else attn_out.flatten(0, 1)
    output = call.attn_output
    return attn_out if isinstance(output, Tensor) else type(output)((attn_out, *output[1:]))


def _less(plain: Tensor, rows: Tensor, z: Tensor, per_head: Tensor) -> Tensor:
    """Return `plain[rows] - z per_head`, `[R, T, out]`."""
    # variants of one row: expand is free, indexing would copy
    return torch.baddbmm(picked_rows(plain, rows).expand(len(rows), -1, -1), z, per_head, alpha=-1)


class Sharing:
    """Computes the shared terms of a layer; those that depend on the model alone are reused between groups."""

    def __init__(self, parts: Anatomy):
        self.parts = parts
        self.weights: dict[int, _Weights] = {}
        self.last_query = LastQuery(parts.layers[-1])

    def of_layer(self, layer: int, call: LayerCall, n_variants: int) -> Shared | None:
        """Return the terms that `n_variants` variants of a layer share, or None where that would round too much.

        In half precision the recorded output and the head's part would each be rounded before they are subtracted.
        """
        recorded, block = first_tensor(call.attn_output), self.parts.layers[layer]
        if recorded is None or recorded.dtype not in (torch.float32, torch.float64):
            return None
        attn_out = recorded.reshape(*call.z.shape[:2], -1)
        weights = self.weights.get(layer)
        if weights is None:
            weights = self.weights[layer] = self._measure_weights(block, call)
        shared = Shared(block, call, attn_out, weights, [])
        n_rows, n_tokens, n_heads, d_head = call.z.shape
        # token products saved over all variants, against those spent once on P and on M
        saved = n_variants * n_tokens * (1 - d_head / attn_out.shape[-1])
        if weights.norm is not None and saved > n_rows * n_tokens + n_heads * d_head:
            shared.readers = self._readers(shared)
        return shared

    def _measure_weights(self, layer: Layer, call: LayerCall) -> _Weights:
        n_heads, d_head = call.z.shape[2:]
        # the projection of each unit vector, minus that of zero, gives W in any layout and with any adapter
        shape = (n_heads * d_head, n_heads, d_head)
        basis = torch.eye(n_heads * d_head, dtype=call.z.dtype, device=call.z.device).view(shape)
        writes = layer.project(basis) - layer.project(torch.zeros_like(basis[:1]))
        writes = writes.view(n_heads, d_head, -1)
        norm = None
        if layer.post_attn is None and layer.mid_reader is not None and call.mid_readers:
            norm = _measured_norm(layer.mid_reader, call.hidden.shape[-1], writes)
        return _Weights(writes, norm, {}, {})

    def _readers(self, shared: Shared) -> list[_Reader]:
        layer, weights, call = shared.layer, shared.weights, shared.call
        norm, mid_reader = weights.norm, layer.mid_reader
        assert norm is not None and mid_reader is not None
        mid = call.hidden + layer.multiplier * shared.attn_out
        normed = mid_reader(mid)
        scale = norm.scale(mid, normed)
        readers = []
        for module in call.mid_readers:
            weight = module.weight
            # quantised or offloaded weights are left to the module itself
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
            readers.append(_Reader(module, plain, per_head, constant))
        return readers if all(_holds(shared, reader) for reader in readers) else []


def _measured_norm(module: nn.Module, d_model: int, like: Tensor) -> _Norm:
    """Return weights, bias and centring of a norm; whether it is one is left to the check of the whole formula."""
    zero = torch.zeros(1, 1, d_model, dtype=like.dtype, device=like.device)
    # every weight is a quotient by this vector, so none of its coordinates is near zero or near the mean
    signs = 1 - 2 * (torch.arange(d_model, device=like.device) % 2)
    vector = (signs * torch.linspace(1, 2, d_model, device=like.device)).to(like.dtype) + zero
    bias = module(zero)[0, 0]
    own = module(vector)[0, 0] - bias
    moved = module(vector + 1)[0, 0] - bias
    is_centred = bool((moved - own).norm() < 1e-3 * own.norm())
    centred = vector - vector.mean() if is_centred else vector
    # the norm's scale for this vector ends up in the weights, which is harmless: `scale` is measured relative to them
    return _Norm(own / centred[0, 0], bias, is_centred)


def _holds(shared: Shared, reader: _Reader) -> bool:
    """Return whether the formula gives what the module returns: first row, first tokens, first head silenced."""
    layer, norm = shared.layer, shared.weights.norm
    assert norm is not None and layer.mid_reader is not None
    some = slice(0, _N_COMPARED)
    z, attn_out = shared.call.z[:1, some, 0], shared.attn_out[:1, some]
    mid = shared.call.hidden[:1, some] + layer.multiplier * (attn_out - z @ shared.weights.writes[0])
    normed = layer.mid_reader(mid)
    want = reader.module(normed)
    got = norm.scale(mid, normed) * (reader.plain[:1, some] - z @ reader.per_head[0])
    got = got if reader.constant is None else got + reader.constant
    return bool((got - want).abs().max() <= _TOLERANCE * want.abs().max())
