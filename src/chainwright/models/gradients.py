"""Whether gradients flow back through a model, which methods that need them check before they begin."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn

from chainwright._errors import UnsupportedModel
from chainwright.models._probe import evaluating, probe_ids
from chainwright.models.anatomy import Anatomy, frozen
from chainwright.models.seam import Attend, AttentionCall, Handlers, attach, suspended

_KNOWN: weakref.WeakKeyDictionary[Anatomy, str] = weakref.WeakKeyDictionary()


def has_gradients(parts: Anatomy) -> bool:
    """Return whether gradients reach the heads of every layer; measured once per model."""
    return not _known_obstacle(parts)


def _known_obstacle(parts: Anatomy) -> str:
    if parts not in _KNOWN:
        _KNOWN[parts] = _obstacle(parts)
    return _KNOWN[parts]


def check_gradients(parts: Anatomy, what: str, instead: str = "") -> None:
    """Raise UnsupportedModel unless gradients reach the heads of every layer; measured once per model.

    Args:
        parts: Anatomy of the model.
        what: What needs them, the subject of the sentence ("method='gradient'").
        instead: What else to do where they do not flow, ending in ", or "; empty if there is nothing.
    """
    if obstacle := _known_obstacle(parts):
        raise UnsupportedModel(
            f"{what} needs gradients, and none pass {obstacle} of this {parts.model.config.model_type} model "
            f"(quantised weights compute without them); {instead}load the model in an unquantised dtype."
        )


def _obstacle(parts: Anatomy) -> str:
    """Return what gradients do not pass, in words; empty if they reach every layer."""
    gates = [
        torch.ones(parts.n_heads, dtype=parts.model.dtype, device=parts.device, requires_grad=True)
        for _ in parts.layers
    ]

    def gated(call: AttentionCall, attend: Attend) -> Tensor:
        z = attend(call)
        return z * gates[call.layer].to(z)[:, None]

    handlers = Handlers({i: (gated,) for i in range(parts.n_layers)})
    with evaluating(parts.model), suspended(parts.model), frozen(parts.model), torch.enable_grad():
        with attach(parts.model, handlers):
            logits = parts.model(input_ids=probe_ids(parts.model), use_cache=False).logits
        if not logits.requires_grad:
            return f"the {_name_of(parts.model.get_output_embeddings())}"
        reached = torch.autograd.grad(logits.float().sum(), gates, allow_unused=True)
    blocked = [i for i, gradient in enumerate(reached) if gradient is None]
    return f"layer {blocked[-1]}" if blocked else ""


def _name_of(unembedding: nn.Module) -> str:
    return f"unembedding ({type(unembedding).__module__.split('.')[-1]} {type(unembedding).__name__})"
