"""How a token is drawn: Transformers' own processors in its order, then noise that depends on seed, row and step alone.

1. The repetition penalty, over the tokens of prompt and response.
2. Temperature, top-k, top-p, min-p.
3. Gumbel noise; the greedy choice of what comes out is a draw from the softmax of what went in.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from chainwright.decode.sampling import Sampling
from chainwright.models.sampling import gumbel_noise


def processors(sampling: Sampling, rows: Sequence[int], seed: int, mask: Tensor) -> LogitsProcessorList:
    """Return what a batch's logits go through before the greedy choice.

    Args:
        sampling: The settings.
        rows: The index of each row among all rows of a run.
        seed: Decides the noise.
        mask: Attention mask of the prompts, padded on the left, `[N, T]`.
    """
    made = LogitsProcessorList()
    if sampling.repetition_penalty not in (None, 1.0):
        n_padding = (mask != 0).int().argmax(dim=1)
        made.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty, prompt_ignore_length=n_padding))
    if sampling.temperature > 0:
        made.append(SeededDraw(rows, sampling, seed, mask.shape[1]))
    return made


class SeededDraw(LogitsProcessor):  # type: ignore[misc]
    """Draws tokens by adding noise, which depends on (seed, row, step) alone, before the greedy choice."""

    def __init__(self, rows: Sequence[int], sampling: Sampling, seed: int, n_prompt: int):
        self.rows, self.seed, self.n_prompt = rows, seed, n_prompt
        self.warpers = [TemperatureLogitsWarper(float(sampling.temperature))]
        if sampling.top_k is not None:
            self.warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p is not None and sampling.top_p < 1:
            self.warpers.append(TopPLogitsWarper(sampling.top_p))
        if sampling.min_p is not None:
            self.warpers.append(MinPLogitsWarper(sampling.min_p))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the logits with noise, minus infinity where nothing is drawn."""
        scores = scores.float()
        for warper in self.warpers:
            scores = warper(input_ids, scores)
        step = input_ids.shape[1] - self.n_prompt
        return scores + gumbel_noise(self.seed, self.rows, step, scores.shape[1], scores.device)
