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
from chainwright.diagnose.contexts import right_token
from chainwright.models._probe import evaluating
from chainwright.models.anatomy import Anatomy, anatomy
from chainwright.models.capture import final_states
from chainwright.models.load import provenance
from chainwright.models.residual import unembed
from chainwright.scoring import check_fits
from chainwright.traces import Trace

_LOGITS_AT_ONCE = 2**26


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
    if not traces or n_top < 1:
        raise BadInput(f"alternatives needs a trace and n_top of at least 1; got {len(traces)} traces, n_top {n_top}.")
    parts = anatomy(model)
    for trace in traces:
        check_fits(parts, trace)
    with evaluating(parts.model), torch.no_grad():
        places = [_places(parts, tokenizer, trace, min(n_top, parts.d_vocab), least_entropy) for trace in traces]
    top_ids, expected = torch.cat([p.top_ids for p in places]), torch.cat([p.expected_ids for p in places])
    known = sorted({*top_ids.flatten().tolist(), *expected.tolist()} - {-1})
    return Alternatives(
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


def expected_tokens(tokenizer: PreTrainedTokenizerBase, trace: Trace) -> dict[int, int]:
    """Return the right token, by position, at the start of each slot that is right and at the first wrong token."""
    expected = {s.start: int(trace.input_ids[s.start]) for s in trace.slots if s.is_right and s.end > s.start}
    position = trace.first_error_position
    right = None if position is None else right_token(tokenizer, trace)
    if position is not None and right is not None:
        expected[position] = right
    return expected


def _places(
    parts: Anatomy, tokenizer: PreTrainedTokenizerBase, trace: Trace, n_top: int, least_entropy: float
) -> _Places:
    device = parts.device
    ids = trace.input_ids.to(device)
    expected = torch.full_like(ids, -1)
    for position, token in expected_tokens(tokenizer, trace).items():
        expected[position] = token
    is_slot = torch.zeros_like(ids, dtype=torch.bool)
    is_slot[[slot.start for slot in trace.slots if slot.end > slot.start]] = True
    if trace.first_error_position is not None:
        is_slot[trace.first_error_position] = True
    hidden = final_states(parts, ids[None])[0]
    step = max(1, _LOGITS_AT_ONCE // parts.d_vocab)
    # starts with an empty part, so that a response without any such place gives empty tensors of the right shapes
    places = [
        _Places(ids[:0], ids[:0, None].expand(0, n_top), hidden.new_empty(0, n_top), ids[:0], hidden.new_empty(0))
    ]
    for start in range(max(1, trace.response_start), len(ids), step):
        where = torch.arange(start, min(start + step, len(ids)), device=device)
        log_probs = unembed(parts, hidden[where - 1]).log_softmax(-1).float()
        is_unsure = torch.special.entr(log_probs.exp()).sum(-1) >= least_entropy
        is_shown = is_slot[where] | is_unsure | (log_probs.argmax(-1) != ids[where])
        where, log_probs = where[is_shown], log_probs[is_shown]
        best, wanted = log_probs.topk(n_top), expected[where]
        p_expected = log_probs.gather(-1, wanted.clamp(min=0)[:, None])[:, 0].exp()
        p_expected = p_expected.masked_fill(wanted < 0, float("nan"))
        places.append(_Places(where, best.indices, best.values.exp(), wanted, p_expected))
    return _Places(*(torch.cat(column).cpu() for column in zip(*places, strict=True)))
