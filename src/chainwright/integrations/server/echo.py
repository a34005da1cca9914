"""Log-probabilities of the tokens of a prompt, as `chainwright.score` gives them: what harnesses score answers with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from chainwright._errors import ChainwrightError
from chainwright.integrations.server.choice import Failure, Likely, likeliest
from chainwright.integrations.server.lane import failure_of
from chainwright.repair.base import Repair
from chainwright.scoring import score_all
from chainwright.traces import Trace


@dataclass(eq=False)
class Echo:
    """A prompt that is scored.

    Attributes:
        ids: Its tokens.
        repairs: The repairs that act.
        response_start: How many of the tokens are the question; what follows is judged as a repair would decode it.
        n_likely: How many of the likeliest tokens are reported at each place.
        on_done: Called in the engine's thread when it is done.
        logprobs: Log-probability of each token, None of the first.
        likely: The likeliest tokens at each place, none at the first.
        failure: What went wrong, if something did.
    """

    ids: Sequence[int]
    repairs: tuple[str, ...]
    response_start: int
    n_likely: int
    on_done: Callable[[Echo], None]
    logprobs: list[float | None] = field(default_factory=list)
    likely: list[tuple[Likely, ...]] = field(default_factory=list)
    failure: Failure | None = None


def read_echoes(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, repairs: Mapping[str, Repair], echoes: Sequence[Echo]
) -> None:
    """Score prompts with the same repairs, and report each as done."""
    found: dict[int, dict[int, tuple[Likely, ...]]] = {i: {} for i in range(len(echoes))}

    def watch(index: int, positions: Tensor, log_probs: Tensor) -> None:
        n = echoes[index].n_likely
        if n:
            for place, scores in zip(positions.tolist(), log_probs.float(), strict=True):
                found[index][place] = likeliest(scores, n)

    try:
        traces = [Trace.from_ids(tokenizer, list(echo.ids), echo.response_start) for echo in echoes]
        chosen = [repairs[name] for name in echoes[0].repairs]
        scores = score_all(model, traces, repair=chosen, watch=watch)
    except ChainwrightError as error:
        _fail(echoes, Failure(400, str(error)))
        return
    except Exception as error:  # as in decoding: the clients are answered, and the thread serves on
        _fail(echoes, failure_of(error))
        return
    for i, (echo, own) in enumerate(zip(echoes, scores, strict=True)):
        echo.logprobs = [None if torch.isnan(value) else float(value) for value in own.logprob]
        echo.likely = [found[i].get(place, ()) for place in range(len(echo.ids))]
        echo.on_done(echo)


def _fail(echoes: Sequence[Echo], failure: Failure) -> None:
    for echo in echoes:
        echo.failure = failure
        echo.on_done(echo)
