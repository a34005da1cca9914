"""What else the model might have said: the likeliest tokens where it decided or was not sure."""

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
from chainwright.models.anatomy import Anatomy, anatomy, evaluating
from chainwright.models.load import provenance
from chainwright.models.residual import unembed
from chainwright.traces import Trace

_LOGITS_AT_ONCE = 2**26


@register("finding", "Alternatives")
@dataclass(frozen=True, kw_only=True)
class Alternatives(Finding):
    """The likeliest tokens at M places of traces.

    The places are those of response tokens: the first token of each slot, the first wrong token, and wherever the model
    was unsure or something else than its likeliest token stands.

    Attributes:
        trace, position: Where, `[M]` each.
        top_ids: The likeliest tokens, best first, `[M, A]`.
        p_top: Their probabilities, `[M, A]`.
        expected_ids: The token that should stand there, `[M]`; -1 where nobody knows, as outside of slots.
        p_expected: Its probability, `[M]`; NaN where it is not known.
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
        """Return several findings as one, of all their traces one after another.

        Args:
            parts: At least one, made with the same settings.
            n_traces: How many traces each was made of.
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
        """Return how often the expected token is not the likeliest, and how often it is the second then."""
        known = self.expected_ids >= 0
        off = known & (self.top_ids[:, 0] != self.expected_ids)
        second = off & (self.top_ids[:, 1] == self.expected_ids) if self.top_ids.shape[1] > 1 else off & False
        n_traces = len(set(self.trace.tolist()))
        return (
            f"{len(self.trace)} places in {n_traces} traces; at {int(off.sum())} of {int(known.sum())} slots another "
            f"token than the expected is likeliest, and the expected the second then in {int(second.sum())}."
        )

    def to_frame(self) -> pa.Table:
        """Return one row for each place and likely token, with its rank from 0."""
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
        model: The model that the traces were made with.
        tokenizer: Its tokenizer.
        traces: The traces; those without a problem have no slots, but places where the model was unsure.
        n_top: Likeliest tokens to keep.
        least_entropy: Nats from which a token counts as unsure.

    Raises:
        BadInput: No traces, or `n_top` is below 1.
    """
    if not traces or n_top < 1:
        raise BadInput(f"alternatives need a trace and n_top of at least 1; got {len(traces)} traces, n_top {n_top}.")
    parts = anatomy(model)
    with evaluating(parts.model), torch.no_grad():
        found = [_places(parts, tokenizer, trace, min(n_top, parts.d_vocab), least_entropy) for trace in traces]
    top_ids, expected = torch.cat([f.top_ids for f in found]), torch.cat([f.expected_ids for f in found])
    known = sorted({*top_ids.flatten().tolist(), *expected.tolist()} - {-1})
    return Alternatives(
        trace=torch.cat([torch.full_like(f.positions, i) for i, f in enumerate(found)]),
        position=torch.cat([f.positions for f in found]),
        top_ids=top_ids,
        p_top=torch.cat([f.p_top for f in found]),
        expected_ids=expected,
        p_expected=torch.cat([f.p_expected for f in found]),
        token_strs={str(i): tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in known},
        config={"n_top": n_top, "least_entropy": least_entropy},
        provenance=provenance(parts.model),
    )


def expected_tokens(tokenizer: PreTrainedTokenizerBase, trace: Trace) -> dict[int, int]:
    """Return the token that should stand at the first token of each right slot, and at the first wrong token."""
    found = {s.start: int(trace.input_ids[s.start]) for s in trace.slots if s.is_right and s.end > s.start}
    at = trace.first_error_position
    right = None if at is None else right_token(tokenizer, trace)
    if at is not None and right is not None:
        found[at] = right
    return found


def _places(
    parts: Anatomy, tokenizer: PreTrainedTokenizerBase, trace: Trace, n_top: int, least_entropy: float
) -> _Places:
    device = parts.model.device
    ids = trace.input_ids.to(device)
    expected = torch.full_like(ids, -1)
    for at, token in expected_tokens(tokenizer, trace).items():
        expected[at] = token
    is_slot = torch.zeros_like(ids, dtype=torch.bool)
    is_slot[[slot.start for slot in trace.slots if slot.end > slot.start]] = True
    if trace.first_error_position is not None:
        is_slot[trace.first_error_position] = True
    hidden = parts.model.base_model(input_ids=ids[None], use_cache=False).last_hidden_state[0]
    step = max(1, _LOGITS_AT_ONCE // parts.d_vocab)
    found = [_Places(ids[:0], ids[:0, None].expand(0, n_top), hidden.new_empty(0, n_top), ids[:0], hidden.new_empty(0))]
    for start in range(max(1, trace.response_start), len(ids), step):
        where = torch.arange(start, min(start + step, len(ids)), device=device)
        log_probs = unembed(parts, hidden[where - 1]).log_softmax(-1).float()
        is_unsure = torch.special.entr(log_probs.exp()).sum(-1) >= least_entropy
        kept = is_slot[where] | is_unsure | (log_probs.argmax(-1) != ids[where])
        where, log_probs = where[kept], log_probs[kept]
        best, wanted = log_probs.topk(n_top), expected[where]
        p_expected = log_probs.gather(-1, wanted.clamp(min=0)[:, None])[:, 0].exp()
        p_expected = p_expected.masked_fill(wanted < 0, float("nan"))
        found.append(_Places(where, best.indices, best.values.exp(), wanted, p_expected))
    return _Places(*(torch.cat(column).cpu() for column in zip(*found, strict=True)))
