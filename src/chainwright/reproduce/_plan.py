"""What a reproduction would take, from the model's config alone: memory and hours, before anything is run or fetched.

The hours are a lower bound by memory traffic: at small batches each forward pass of a large model has to read all of
its weights once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from chainwright import tasks
from chainwright._errors import BadInput
from chainwright.models.load import BUNDLED, bundled_models
from chainwright.repair import TCRConfig

if TYPE_CHECKING:
    from chainwright.reproduce.tcr import ReproduceTCRConfig

_GB = 1e9
# characters a token of English with numbers, about
_CHARACTERS = 3.5
_EXTRA_FORWARDS = 3 * 0.05  # votes, at the flag rate that is expected of a trained detector
_BATCH = 32


@dataclass(frozen=True)
class Estimate:
    """What a study would take.

    Attributes:
        n_parameters: Weights of the model.
        weight_gb: Their size.
        cache_gb: Keys and values of a batch at the longest prompt and answer.
        branch_gb: Most that cached runs without single heads take.
        n_answers: Responses that are decoded.
        n_tokens: Tokens of those responses, about.
        hours: At `bandwidth_gbs`, batch 32, if reading the weights is all that takes time.
        bandwidth_gbs: Memory bandwidth that is assumed, GB/s.
    """

    model: str
    n_parameters: int
    weight_gb: float
    cache_gb: float
    branch_gb: float
    n_answers: int
    n_tokens: int
    hours: float
    bandwidth_gbs: float

    def summary(self) -> str:
        """Return the estimate in words."""
        total = self.weight_gb + self.cache_gb + self.branch_gb
        each = self.n_tokens // max(1, self.n_answers)
        return (
            f"{self.model}: {self.n_parameters:,} weights. Memory about {total:.1f} GB: weights {self.weight_gb:.1f}, "
            f"keys and values of {_BATCH} rows {self.cache_gb:.1f}, cached runs without single heads at most "
            f"{self.branch_gb:.1f}. {self.n_answers} answers of about {each} tokens. At least {self.hours:.2f} hours "
            f"at {self.bandwidth_gbs:.0f} GB/s, if reading the weights is all that takes time; a small model takes far "
            "longer than that, since it waits for everything else."
        )


def estimate(
    config: ReproduceTCRConfig,
    dtype: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    bandwidth_gbs: float = 2000.0,
) -> Estimate:
    """Return what a study would take; only the model's config is read.

    Raises:
        BadInput: The config cannot be had.
    """
    where = str(BUNDLED / config.model) if config.model in bundled_models() else config.model
    try:
        found = AutoConfig.from_pretrained(where, revision=revision, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(found, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInput(f"The config of {config.model!r} cannot be read, so nothing can be planned: {first}") from error
    number = getattr(torch, dtype or str(found.dtype or torch.float32).removeprefix("torch."))
    text = found.get_text_config()
    n_parameters = sum(p.numel() for p in empty.parameters())
    samples = [tasks.sample(task, hops, 1, 0, rendering=config.rendering)[0] for task, hops in config.cells()]
    per = 1.0 if config.rendering == "short" else _CHARACTERS
    answer = [_n_tokens(p.chain, per) for p in samples]
    longest = max(_n_tokens(p.prompt, per) + 1.5 * n for p, n in zip(samples, answer, strict=True))
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    d_head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    per_token = 2 * text.num_hidden_layers * heads * d_head * number.itemsize
    n_each = config.n * len(config.seeds)
    n_tokens = sum(answer) * n_each * (len(config.ways) + len(config.also))
    weights = n_parameters * number.itemsize
    passes = n_tokens / _BATCH + n_tokens * _EXTRA_FORWARDS / 3
    return Estimate(
        model=config.model,
        n_parameters=n_parameters,
        weight_gb=weights / _GB,
        cache_gb=longest * per_token * _BATCH / _GB,
        branch_gb=min(TCRConfig().max_bytes, longest * per_token * _BATCH * 8) / _GB,
        n_answers=len(samples) * n_each * (len(config.ways) + len(config.also)),
        n_tokens=int(n_tokens),
        hours=passes * weights / (bandwidth_gbs * _GB) / 3600,
        bandwidth_gbs=bandwidth_gbs,
    )


def _n_tokens(text: str, characters: float) -> int:
    return len(text.split()) if characters == 1.0 else int(len(text) / characters)
