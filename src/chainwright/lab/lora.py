"""LoRA on frozen half-precision weights, written for a processor: what PEFT computes, in fewer and larger products.

1. The frozen weight stays in its own number type; A and B are float32, as PEFT keeps them.
2. The backward pass is written out, so that nothing is computed for the frozen weights, and each low-rank term is
   added to the product it belongs to instead of being a tensor of its own.
3. Queries that share keys and values go through one product, which is several times as fast backwards as PyTorch's
   fused attention on a processor at the lengths of short chains.

The adapter is written in PEFT's layout, and PEFT reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from chainwright._errors import BadInput
from chainwright.models.adapters import WEIGHTS

_ATTENTION = "chainwright_layout"
_PREFIX = "base_model.model."


class _LowRank(torch.autograd.Function):
    """x W' + s (x A') B' with gradients for x, A and B alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        flat, a, b = x.reshape(-1, x.shape[-1]), a.to(x.dtype), (b * scale).to(x.dtype)
        low = flat @ a.T
        out = (flat @ weight.T).addmm_(low, b.T)
        ctx.save_for_backward(flat, weight, a, b, low)
        ctx.scale, ctx.shape = scale, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        flat, weight, a, b, low = ctx.saved_tensors
        gradient = gradients[0].reshape(-1, gradients[0].shape[-1])
        of_low = gradient @ b
        of_x = (gradient @ weight).addmm_(of_low, a).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return of_x, None, (of_low.T @ flat).float(), (gradient.T @ low).float() * ctx.scale, None


class LoRALinear(nn.Module):
    """A frozen linear layer without bias, plus `alpha / rank` times the product of two trained matrices.

    Args:
        linear: The layer whose weight stays frozen.
        rank: Columns of A and rows of B.
        alpha: Scale of their product, times the rank.
    """

    weight: Tensor

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.register_buffer("weight", linear.weight.detach(), persistent=False)
        bound = linear.in_features**-0.5
        self.lora_A = nn.Parameter(torch.empty(rank, linear.in_features).uniform_(-bound, bound))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank))
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output."""
        out: Tensor = _LowRank.apply(x, self.weight, self.lora_A, self.lora_B, self.scale)  # type: ignore[no-untyped-call]
        return out


class Adapter(nn.Module):
    """The trained matrices of a model, and nothing else of it.

    Args:
        model: Gets a `LoRALinear` in place of every linear layer inside its layers, and attention in one product per
            group of queries; its own weights are frozen.
        rank: As `LoRALinear`.
        alpha: As `LoRALinear`.
        seed: Seed of the starting weights.

    Raises:
        BadInput: A linear layer has a bias, which this does not train.
    """

    def __init__(self, model: PreTrainedModel, *, rank: int, alpha: float, seed: int):
        super().__init__()
        self.rank, self.alpha = rank, alpha
        torch.manual_seed(seed)
        model.requires_grad_(False)
        self.parts = nn.ModuleDict()
        for name, linear in list(_linear_layers(model)):
            if "bias" in dict(linear.named_parameters()):
                raise BadInput(f"Layer {name} has a bias; LoRA is trained here on linear layers without one.")
            owner, _, last = name.rpartition(".")
            self.parts[name.replace(".", "/")] = part = LoRALinear(linear, rank, alpha)
            setattr(model.get_submodule(owner), last, part)
        AttentionInterface.register(_ATTENTION, _layout_attention)
        AttentionMaskInterface.register(_ATTENTION, _no_mask)
        model.set_attn_implementation(_ATTENTION)

    def save(self, folder: Path, base: str) -> None:
        """Write the adapter in bfloat16, as PEFT lays it out, into a folder that exists."""
        from peft import LoraConfig  # takes a second, and only what is saved needs it

        tensors = {name: weight.detach().to(torch.bfloat16).cpu().contiguous() for name, weight in self._by_peft_name()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        names = sorted({name.rpartition("/")[2] for name in self.parts})
        LoraConfig(
            r=self.rank, lora_alpha=self.alpha, target_modules=names, task_type="CAUSAL_LM", inference_mode=True,
            base_model_name_or_path=base,
        ).save_pretrained(str(folder))  # fmt: skip

    def load(self, folder: Path) -> None:
        """Take the weights of an adapter that was written before, by `save` or by PEFT.

        Raises:
            BadInput: There is none, it is damaged, or it belongs to another model or has another rank.
        """
        try:
            tensors: Mapping[str, Tensor] = load_file(folder / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise BadInput(f"{folder} holds no adapter that can be read ({error}); it needs {WEIGHTS}.") from error
        own = dict(self._by_peft_name())
        shapes = {name: tuple(weight.shape) for name, weight in own.items()}
        if shapes != (got := {name: tuple(weight.shape) for name, weight in tensors.items()}):
            name = min(name for name in {*shapes, *got} if shapes.get(name) != got.get(name))
            raise BadInput(
                f"The adapter in {folder} does not fit this model: {name} has shape {got.get(name, 'none')}, expected "
                f"{shapes.get(name, 'none')}; start from an adapter of the same base and rank."
            )
        with torch.no_grad():
            for name, weight in own.items():
                weight.copy_(tensors[name])

    def _by_peft_name(self) -> Iterator[tuple[str, nn.Parameter]]:
        for path, part in self.parts.items():
            name = _PREFIX + path.replace("/", ".")
            assert isinstance(part, LoRALinear)
            yield f"{name}.lora_A.weight", part.lora_A
            yield f"{name}.lora_B.weight", part.lora_B


def _linear_layers(model: PreTrainedModel) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the name and layer of every linear layer but the unembedding, as PEFT's "all-linear" does."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not model.get_output_embeddings():
            yield name, module


def _no_mask(*_: Any, **__: Any) -> None:
    """Build no mask: `Layout` holds those that its attention needs."""


class Layout(NamedTuple):
    """How a batch lies in one sequence: tokens that all rows begin with, then the rest of each row in turn.

    Attributes:
        n_common: Number of common tokens.
        n_rows: Number of rows.
        width: Tokens of each row after the common ones, padding on the right included.
    """

    n_common: int
    n_rows: int
    width: int

    def positions(self) -> Tensor:
        """Return the place of each token in its own row, `[1, n_common + n_rows * width]`."""
        rest = torch.arange(self.n_common, self.n_common + self.width).repeat(self.n_rows)
        return torch.cat([torch.arange(self.n_common), rest])[None]


def _layout_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
    scaling: float, layout: Layout, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Return the heads' outputs for a batch in one sequence; each row attends to the common tokens and to itself."""
    n_common, n_rows, width = layout
    query = query * scaling
    parts = [(t[:, :, :n_common], _per_row(t[:, :, n_common:], n_rows, width)) for t in (query, key, value)]
    (query_0, query_1), (key_0, key_1), (value_0, value_1) = parts
    key_1 = torch.cat([key_0.expand(n_rows, -1, -1, -1), key_1], dim=2)
    value_1 = torch.cat([value_0.expand(n_rows, -1, -1, -1), value_1], dim=2)
    rest = _attend(query_1, key_1, value_1).permute(0, 2, 1, 3).reshape(1, n_rows * width, *query.shape[1::2])
    if not n_common:
        return rest, None
    return torch.cat([_attend(query_0, key_0, value_0).transpose(1, 2), rest], dim=1), None


def _per_row(heads: Tensor, n_rows: int, width: int) -> Tensor:
    """Return `[1, H, n_rows * width, D]` as `[n_rows, H, width, D]`."""
    return heads.view(heads.shape[1], n_rows, width, heads.shape[-1]).transpose(0, 1)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return causal attention; all queries that share a key-value head go through one product."""
    n_rows, n_heads, n_queries, d_head = query.shape
    n_kv_heads, n_keys = key.shape[1:3]
    scores = query.reshape(n_rows, n_kv_heads, -1, d_head) @ key.transpose(-1, -2)
    hidden = scores.new_full((n_queries, n_keys), -torch.inf).triu(1 + n_keys - n_queries)
    scores = scores.view(n_rows, n_heads, n_queries, n_keys).add_(hidden)
    pattern = scores.softmax(-1).view(n_rows, n_kv_heads, -1, n_keys)
    return (pattern @ value).view(n_rows, n_heads, n_queries, d_head)
