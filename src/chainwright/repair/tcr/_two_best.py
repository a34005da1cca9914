"""The model's two likeliest tokens through the logit lens at earlier layers, without the rest of the vocabulary.

1. The two tokens are those of the model's own next-token logits.
2. What a layer puts out goes through the final norm.
3. Two rows of the unembedding give the tokens' logits there. Their mean over the vocabulary is subtracted, which is one
   more row, computed once: only differences of logits mean anything.

A cap or scale that the model puts on its logits is not applied. The log-probabilities of the lens would need the whole
vocabulary at every layer; these numbers cost three inner products and a norm per layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from chainwright._errors import UnsupportedModel
from chainwright.models.anatomy import Anatomy
from chainwright.models.seam import widened

N_FEATURES = 3  # per layer: both logits, and what the first is ahead by


class TwoBest:
    """Reads the two likeliest tokens in hidden states.

    Attributes:
        layers: The layers whose output is read, counted from 0.

    Raises:
        UnsupportedModel: The unembedding is no matrix with one row per token.
    """

    def __init__(self, parts: Anatomy, layers: Sequence[int]):
        self.layers = [i % parts.n_layers for i in layers]
        self.parts = parts
        head = parts.model.get_output_embeddings()
        weight = getattr(head, "weight", None)
        if not isinstance(head, nn.Linear) or weight is None or list(weight.shape) != [parts.d_vocab, parts.d_model]:
            raise UnsupportedModel(
                f"The unembedding of this {parts.model.config.model_type} model is a {type(head).__name__}, not a "
                f"matrix of {parts.d_vocab} x {parts.d_model}, so single rows of it cannot be read; use another "
                "detector (--detector trained)."
            )
        self._weight, self._bias = weight.detach(), None if head.bias is None else head.bias.detach()
        self._mean = widened(self._weight).mean(0)
        self._mean_bias = None if self._bias is None else widened(self._bias).mean()

    def read(self, states: Tensor, logits: Tensor) -> Tensor:
        """Return the two tokens' centred logits at each layer, and their difference, `[N, R, 3]`.

        Args:
            states: What the layers put out, `[N, R, D]`.
            logits: The model's own next-token logits, `[N, V]`.
        """
        best = logits.topk(2, dim=-1).indices.to(self._weight.device)
        inner = states.to(device=self._weight.device, dtype=self._weight.dtype)
        with torch.no_grad():
            normed = widened(self.parts.final_norm(inner)) * self.parts.unembed_scale
            rows = widened(self._weight[best]) - self._mean  # (token, which, model)
            # elementwise, since what a row gets must not depend on how many others there are
            both = (normed[:, :, None] * rows[:, None]).sum(-1)  # (token, layer, which)
        if self._bias is not None and self._mean_bias is not None:
            both = both + (widened(self._bias[best]) - self._mean_bias)[:, None]
        gap = both[..., :1] - both[..., 1:]
        return torch.cat([both, gap], dim=-1).to(logits.device)
