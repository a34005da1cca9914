"""How continuations are drawn where no one says: as the checkpoint's generation config does, else at 0.6 and 0.95."""

from __future__ import annotations

from torch import nn

from chainwright._errors import BadInput
from chainwright.decode.sampling import Sampling
from chainwright.diagnose.pivots.config import PivotConfig
from chainwright.models.seam import causal_lm

_TEMPERATURE, _TOP_P = 0.6, 0.95


def drawn_as(model: nn.Module, config: PivotConfig) -> Sampling:
    """Return how continuations are drawn: by the config, or else by the checkpoint.

    A temperature without a top-p draws from the whole distribution.

    Raises:
        BadInput: Greedy decoding is to give more than one continuation.
    """
    own = causal_lm(model).generation_config
    draws = bool(getattr(own, "do_sample", False))
    temperature = config.temperature
    if temperature is not None:
        top_p, top_k = config.top_p, None
    else:
        temperature = (getattr(own, "temperature", None) if draws else None) or _TEMPERATURE
        top_p = config.top_p or ((getattr(own, "top_p", None) or 1.0) if draws else _TOP_P)
        top_k = (getattr(own, "top_k", None) or None) if draws else None
    if temperature == 0:
        raise BadInput(
            "At temperature 0 every continuation of a prefix is the same, so its value cannot be estimated; use a "
            "temperature above 0."
        )
    return Sampling(temperature=float(temperature), top_p=None if top_p in (None, 1.0) else top_p, top_k=top_k)
