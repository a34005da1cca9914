"""The tokens that the model could have written instead: the likeliest ones at slots and where it was unsure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from chainwright._errors import BadInput
from chainwright._finding import Finding
from chainwright._registry import register
from chainwright.diagnose.right_tokens import right_token
from chainwright.models.anatomy import anatomy
from chainwright.models.load import provenance
from chainwright.scoring import TokenScores, entropy_nats, score_all
from chainwright.traces import Trace


@register("finding", "Alternatives")
@dataclass(frozen=True, kw_only=True)
class Alternatives(Finding):
    """The likeliest tokens at M places of traces.

    The places are response tokens: the first token of each slot, the first wrong token, and every token where the model
    was unsure or wrote something other than its likeliest token.

    Attributes:
        trace, position: The place, `[M]` each.
        top_ids: The likeliest tokens, best first, `[M, A]`.
        p_top: Their probabilities, `[M, A]`.
        expected_ids: The right token, `[M]`; -1 where it is unknown, as outside slots.
        p_expected: Its probability, `[M]`; NaN where it is unknown.
        token_strs: The text of each token id in the tensors above.
    """

    trace: Tensor
    position: Tensor
    top_ids: Tensor
    p_top: Tensor
    expected_ids: Tensor
    p_expected: Tensor
    token_strs: Mapping[str, str]

    @classmethod
    def joined(cls, parts: Sequence[Alternatives], n_traces: Sequence[int]) -> Alternatives:
        """Return several findings as one, with their traces numbered consecutively.

        Args:
            parts: At least one finding, all made with the same settings.
            n_traces: How many traces each was made from.
        """
        starts = [sum(n_traces[:i]) for i in range(len(n_traces))]
        names = ("position", "top_ids", "p_top", "expected_ids", "p_expected")
        columns = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        return cls(
            trace=torch.cat([part.trace + start for part, start in zip(parts, starts, strict=True)]),
            **columns,
            token_strs={token: text for part in parts for token, text in part.token_strs.items()},
            config=parts[0].config,
            provenance=parts[0].provenance,
        )

    def summary(self) -> str:
        """Return how often the expected token is not the likeliest, and how often it is then the second likeliest."""
        known = self.expected_ids >= 0
        off = known & (self.top_ids[:, 0] != self.expected_ids)
        second = off & (self.top_ids[:, 1] == self.expected_ids) if self.top_ids.shape[1] > 1 else off & False
        n_traces = len(set(self.trace.tolist()))
        return (
            f"{len(self.trace)} places in {n_traces} traces. At {int(off.sum())} of {int(known.sum())} slots the "
            f"expected token is not the likeliest; in {int(second.sum())} of these it is the second likeliest."
        )

    def to_frame(self) -> pa.Table:
        """Return one row per place and likely token, with its rank from 0."""
        n_places, n_top = self.top_ids.shape
        return pa.table(
            {
                "trace": self.trace.repeat_interleave(n_top).tolist(),
                "position": self.position.repeat_interleave(n_top).tolist(),
                "rank": list(range(n_top)) * n_places,
                "token": [self.token_strs[str(i)] for i in self.top_ids.flatten().tolist()],
                "p": self.p_top.flatten().tolist(),
            }
        )


class _Places(NamedTuple):
    positions: Tensor
    top_ids: Tensor
    p_top: Tensor
    expected_ids: Tensor
    p_expected: Tensor


def alternatives(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    traces: Sequence[Trace],
    *,
    n_top: int = 5,
    least_entropy: float = 0.1,
) -> Alternatives:
    """Return the likeliest tokens at the slots of traces, and wherever the model was unsure.

    Args:
        model: The model that generated the traces.
        tokenizer: Its tokenizer.
        traces: The traces; those without a problem have no slots, only places where the model was unsure.
        n_top: Likeliest tokens to return per place.
        least_entropy: Entropy in nats from which the model counts as unsure.

    Raises:
        BadInput: No traces, or `n_top` is below 1.
        BadTrace: A trace has tokens that the model does not have, or more than it has positions for.
    """
    return score_with_alternatives(model, tokenizer, traces, n_top=n_top, least_entropy=least_entropy)[1]


def score_with_alternatives(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    traces: Sequence[Trace],
    *,
    n_top: int = 5,
    least_entropy: float = 0.1,
) -> tuple[list[TokenScores], Alternatives]:
    """Return `score_all` and `alternatives` of traces, from the same forward passes.

    Raises:
        BadInput: As `alternatives`.
        BadTrace: As `alternatives`.
    """
    if not traces or n_top < 1:
        raise BadInput(f"alternatives needs a trace and n_top of at least 1; got {len(traces)} traces, n_top {n_top}.")
    parts = anatomy(model)
    chosen = [_Chosen(tokenizer, trace, min(n_top, parts.d_vocab), least_entropy) for trace in traces]
    scores = score_all(model, traces, watch=lambda index, *seen: chosen[index].add(*seen))
    places = [one.places() for one in chosen]
    top_ids, expected = torch.cat([p.top_ids for p in places]), torch.cat([p.expected_ids for p in places])
    known = sorted({*top_ids.flatten().tolist(), *expected.tolist()} - {-1})
    found = Alternatives(
        trace=torch.cat([torch.full_like(p.positions, i) for i, p in enumerate(places)]),
        position=torch.cat([p.positions for p in places]),
        top_ids=top_ids,
        p_top=torch.cat([p.p_top for p in places]),
        expected_ids=expected,
        p_expected=torch.cat([p.p_expected for p in places]),
        token_strs={str(i): tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in known},
        config={"n_top": n_top, "least_entropy": least_entropy},
        provenance=provenance(parts.model),
    )
    return scores, found


def expected_tokens(tokenizer: PreTrainedTokenizerBase, trace: Trace) -> dict[int, int]:
    """Return the right token, by position, at the start of each slot that is right and at the first wrong token."""
    expected = {s.start: int(trace.input_ids[s.start]) for s in trace.slots if s.is_right and s.end > s.start}
    position = trace.first_error_position
    right = None if position is None else right_token(tokenizer, trace)
    if position is not None and right is not None:
        expected[position] = right
    return expected


class _Chosen:
    """The places of one trace that are shown, picked from its distributions as they come."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, trace: Trace, n_top: int, least_entropy: float):
        self.ids, self.first = trace.input_ids, trace.response_start
        self.n_top, self.least_entropy = n_top, least_entropy
        self.expected = torch.full_like(self.ids, -1)
        for position, token in expected_tokens(tokenizer, trace).items():
            self.expected[position] = token
        self.is_slot = torch.zeros_like(self.ids, dtype=torch.bool)
        self.is_slot[[slot.start for slot in trace.slots if slot.end > slot.start]] = True
        if trace.first_error_position is not None:
            self.is_slot[trace.first_error_position] = True
        # starts with an empty part, so that a response without any such place gives empty tensors of the right shapes
        none = self.ids[:0]
        empty = torch.empty(0)
        self.parts = [_Places(none, none[:, None].expand(0, n_top), empty[:, None].expand(0, n_top), none, empty)]

    def add(self, positions: Tensor, log_probs: Tensor) -> None:
        """Pick from the distributions at some positions, `[n]` and `[n, V]`."""
        inside = slice(int((positions < self.first).sum()), None)  # positions rise
        where, log_probs = positions[inside], log_probs[inside].float()
        if not len(where):
            return
        is_unsure = entropy_nats(log_probs).cpu() >= self.least_entropy
        is_shown = self.is_slot[where] | is_unsure | (log_probs.argmax(-1).cpu() != self.ids[where])
        where, log_probs = where[is_shown], log_probs[is_shown.to(log_probs.device)]
        best, wanted = log_probs.topk(self.n_top), self.expected[where]
        p_expected = log_probs.gather(-1, wanted.clamp(min=0)[:, None].to(log_probs.device))[:, 0].exp().cpu()
        p_expected = p_expected.masked_fill(wanted < 0, float("nan"))
        self.parts.append(_Places(where, best.indices.cpu(), best.values.exp().cpu(), wanted, p_expected))

    def places(self) -> _Places:
        """Return all places, in the order of the trace."""
        return _Places(*(torch.cat(column) for column in zip(*self.parts, strict=True)))
