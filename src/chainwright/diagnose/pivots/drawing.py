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

    A temperature that is set without a top-p draws from the whole distribution.

    Raises:
        BadInput: Greedy decoding is to give more than one continuation, or the checkpoint's generation config states
            what Chainwright does not do.
    """
    if config.temperature is not None:
        own = Sampling(temperature=config.temperature, top_p=config.top_p if config.temperature else None)
    elif causal_lm(model).generation_config.do_sample:
        own = Sampling.of_model(model)
        own = own if config.top_p is None else own.replace(top_p=config.top_p)
    else:
        own = Sampling(temperature=_TEMPERATURE, top_p=config.top_p or _TOP_P)
    if own.temperature == 0:
        raise BadInput(
            "At temperature 0 every continuation of a prefix is the same, so its value cannot be estimated; use a "
            "temperature above 0."
        )
    if own.stop:
        raise BadInput(
            f"Continuations do not look for stop strings, and this checkpoint states {list(own.stop)!r}; set the "
            "temperature yourself."
        )
    return own
