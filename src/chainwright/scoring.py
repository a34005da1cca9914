"""Scoring: what a model thought of each token of a trace, judged from the tokens before it, in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from chainwright._errors import BadTrace
from chainwright.decode.run import in_order
from chainwright.models._probe import evaluating
from chainwright.models.anatomy import Anatomy, anatomy
from chainwright.models.capture import final_states
from chainwright.models.padding import left_pad
from chainwright.models.residual import unembed
from chainwright.prompts.limits import n_positions
from chainwright.traces import Trace

if TYPE_CHECKING:
    from chainwright.repair.base import Repair

LOGITS_AT_ONCE = 2**26
_LONG = 2048
Watch = Callable[[int, Tensor, Tensor], None]
"""Receives a trace's index, positions `[n]` in it (rising, on the CPU), and log-probabilities there `[n, V]`."""


@dataclass(frozen=True)
class TokenScores:
    """What a model gave each token of a trace, judged from the tokens before it.

    The first token has nothing before it: its numbers are NaN and its argmax is -1.

    Attributes:
        logprob: Log-probability of the token at each position, `[T]`, nats.
        entropy: Entropy of the distribution it was drawn from, `[T]`, nats.
        argmax: The likeliest token, `[T]`.
    """

    logprob: Tensor
    entropy: Tensor
    argmax: Tensor


class Corrections(NamedTuple):
    """The logits that a repair puts in place of the model's at some tokens of a trace.

    Attributes:
        positions: The positions in the trace that the logits decide, `[M]`, on the CPU.
        logits: `[M, V]`, float32.
    """

    positions: Tensor
    logits: Tensor


def score(model: nn.Module, trace: Trace, *, repair: Repair | Sequence[Repair] | None = None) -> TokenScores:
    """Return log-probability, entropy and likeliest token at each position of a trace, from one forward pass.

    Args:
        model: A Transformers decoder.
        trace: The trace; its ids must be of this model's vocabulary.
        repair: What decoded it, or several that did together; the scores are those that decoding saw.

    Raises:
        BadTrace: The trace has ids outside the model's vocabulary, or more tokens than the model has
            positions.
        BadInput: Repairs that cannot decode together.
    """
    return score_all(model, [trace], repair=repair, batch_size=1)[0]


def score_all(
    model: nn.Module,
    traces: Sequence[Trace],
    *,
    repair: Repair | Sequence[Repair] | None = None,
    batch_size: int | None = None,
    watch: Watch | None = None,
) -> list[TokenScores]:
    """Return `score` of many traces, several per forward pass.

    Args:
        model: As for `score`.
        traces: The traces.
        repair: As for `score`.
        batch_size: Traces per forward pass; None chooses by their length.
        watch: Called with the distributions that are scored, part by part, for what else is to be read from them.
    """
    parts = anatomy(model)
    for trace in traces:
        check_fits(parts, trace)
    order = sorted(range(len(traces)), key=lambda i: -len(traces[i]))
    scores: dict[int, TokenScores] = {}
    repairs = in_order(repair)
    with evaluating(parts.model), torch.no_grad():
        start = 0
        while start < len(order):
            size = batch_size or usual_scored(len(traces[order[start]]))
            batch = order[start : start + size]
            chosen = [traces[i] for i in batch]
            with ExitStack() as attached:
                for each in repairs:
                    attached.enter_context(each.scoring(model, chosen))
                # at most one of them decides tokens
                corrections = next((made for r in repairs if (made := r.corrections(model, chosen))), [])
                scores.update(zip(batch, _score_batch(parts, chosen, corrections, batch, watch), strict=True))
            start += size
    return [scores[i] for i in range(len(traces))]


def usual_scored(n_tokens: int) -> int:
    """Return how many traces are scored together where no batch size is set, by the tokens of the longest.

    Long ones are scored one by one: padding would need a mask of every token against every other.
    """
    return 1 if n_tokens >= _LONG else max(1, min(64, 2**14 // n_tokens))


def check_fits(parts: Anatomy, trace: Trace) -> None:
    """Raise BadTrace unless the model has the trace's ids in its vocabulary and positions for all of them."""
    outside = [i for i in trace.input_ids.tolist() if not 0 <= i < parts.d_vocab]
    if outside:
        raise BadTrace(
            f"The trace has token id {outside[0]}, but the model's vocabulary has {parts.d_vocab} entries; "
            "score it with the model whose tokenizer made it."
        )
    most = n_positions(parts.model)
    if len(trace) > most:
        raise BadTrace(f"The trace has {len(trace)} tokens, but the model has positions for {most}.")


def entropy_nats(log_probs: Tensor) -> Tensor:
    """Return the entropy of distributions `[..., V]`, nats, in the memory of one more of them."""
    probs = log_probs.exp()
    each: Tensor = torch.special.entr(probs, out=probs)
    return each.sum(-1)


def _score_batch(
    parts: Anatomy, traces: list[Trace], corrections: list[Corrections], indices: list[int], watch: Watch | None
) -> list[TokenScores]:
    ids, mask = left_pad([t.input_ids.tolist() for t in traces], 0, parts.device)
    hidden = final_states(parts, ids, mask)
    logprob, entropy = torch.full(ids.shape, float("nan")), torch.full(ids.shape, float("nan"))
    argmax = torch.full(ids.shape, -1)
    step = max(1, LOGITS_AT_ONCE // (parts.d_vocab * len(traces)))
    for start in range(0, ids.shape[1] - 1, step):
        here = slice(start, min(start + step, ids.shape[1] - 1))
        after = slice(here.start + 1, here.stop + 1)
        logits = unembed(parts, hidden[:, here].flatten(0, 1)).view(len(traces), here.stop - here.start, -1)
        for row, changed in enumerate(corrections):
            columns = changed.positions + ids.shape[1] - len(traces[row]) - after.start
            inside = (columns >= 0) & (columns < logits.shape[1])
            logits[row, columns[inside]] = changed.logits[inside].to(logits)
        log_probs = logits.log_softmax(-1)
        del logits  # as large as the vocabulary times the positions
        logprob[:, after] = log_probs.gather(-1, ids[:, after, None])[..., 0].float().cpu()
        entropy[:, after] = entropy_nats(log_probs).float().cpu()
        argmax[:, after] = log_probs.argmax(-1).cpu()
        for row, index in enumerate(indices if watch is not None else []):
            positions = torch.arange(after.start, after.stop) - (ids.shape[1] - len(traces[row]))
            behind = slice(int((positions <= 0).sum()), None)  # the padding and the first token
            assert watch is not None
            watch(index, positions[behind], log_probs[row, behind])
    return [_cut(len(t), logprob[i], entropy[i], argmax[i]) for i, t in enumerate(traces)]


def _cut(n_tokens: int, logprob: Tensor, entropy: Tensor, argmax: Tensor) -> TokenScores:
    """Return the scores of a row without its padding, and with none for the token that follows the padding."""
    logprob, entropy, argmax = (row[-n_tokens:].clone() for row in (logprob, entropy, argmax))
    logprob[0], entropy[0], argmax[0] = float("nan"), float("nan"), -1
    return TokenScores(logprob, entropy, argmax)
