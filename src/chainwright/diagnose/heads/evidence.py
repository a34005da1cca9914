"""The model's predictions at errors of one type, with every head in place and without each of a few heads.

1. The heads come from a diagnosis: the best one, then those that support the wrong token, fix most, or write answers.
2. The contexts are those at such errors, both the ones that the roles were found on and held-out ones, and as many
   right ones.
3. One forward pass per head gives the likeliest tokens with their probabilities, and that of the right token.

It is the evidence behind `head_roles`: which errors silencing a head would fix, one by one, and which right tokens it
would break.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from chainwright._errors import BadInput
from chainwright._finding import Finding
from chainwright._registry import register
from chainwright.diagnose.contexts import SlotContexts, correct_contexts, erroneous_contexts
from chainwright.diagnose.heads._sweep.baseline_pass import LONG
from chainwright.diagnose.heads.roles import HeadRoles, RoleFinding
from chainwright.edits import KnockOut, edit
from chainwright.models.anatomy import Anatomy, anatomy, evaluating
from chainwright.models.capture import forward
from chainwright.models.load import provenance
from chainwright.models.seam import widened
from chainwright.traces import Trace

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

TOKENS_AT_ONCE = 2**14


@register("finding", "HeadEvidence")
@dataclass(frozen=True, kw_only=True)
class HeadEvidence(Finding):
    """Predictions in N contexts with all heads (column 0) and without each of K heads (columns 1 to K).

    Attributes:
        task, error_type: Which errors the contexts end at.
        heads: The K heads as [layer, head] pairs, the best first.
        sites: Where each context ends, as [trace, position] of the token it decides.
        is_erroneous: Whether the model is wrong there, bool `[N]`.
        is_seen: Whether the roles were found on this context, bool `[N]`; the others are held out.
        right_ids: The right token, `[N]`.
        p_right: Its probability, `[N, 1 + K]`.
        top_ids: The likeliest tokens, best first, `[N, 1 + K, A]`.
        p_top: Their probabilities, `[N, 1 + K, A]`.
        token_strs: The text of each token id in the tensors above.
    """

    task: str
    error_type: str
    heads: list[list[int]]
    sites: list[list[int]]
    is_erroneous: Tensor
    is_seen: Tensor
    right_ids: Tensor
    p_right: Tensor
    top_ids: Tensor
    p_top: Tensor
    token_strs: Mapping[str, str]

    @property
    def is_right(self) -> Tensor:
        """Return where the right token comes first, bool `[N, 1 + K]`."""
        return self.top_ids[..., 0] == self.right_ids[:, None]

    @property
    def has_held_out(self) -> bool:
        """Return whether some erroneous contexts were not used to find the roles."""
        return bool((self.is_erroneous & ~self.is_seen).any())

    def counts(self, *, seen: bool) -> list[dict[str, Any]]:
        """Return for each head how many erroneous contexts silencing it fixes, and how many right ones it breaks.

        Args:
            seen: Count the contexts that the roles were found on (True) or the held-out ones (False).
        """
        chosen = self.is_seen == seen
        wrong, right = self.is_right[chosen & self.is_erroneous], self.is_right[chosen & ~self.is_erroneous]
        return [
            {
                "layer": layer,
                "head": head,
                "n_erroneous": len(wrong),
                "n_fixed": int(wrong[:, k].sum()),
                "n_correct": len(right),
                "n_broken": int((~right[:, k]).sum()),
            }
            for k, (layer, head) in enumerate(self.heads, start=1)
        ]

    def summary(self) -> str:
        """Return the effect of silencing the first head in held-out contexts, or in the others if there are none."""
        first = self.counts(seen=not self.has_held_out)[0]
        where = "held out" if self.has_held_out else "that it was chosen on"
        return (
            f"{self.task}, {self.error_type}: without L{first['layer']}H{first['head']}, {first['n_fixed']} of "
            f"{first['n_erroneous']} wrong contexts {where} are fixed and {first['n_broken']} of "
            f"{first['n_correct']} right ones broken."
        )

    def to_frame(self) -> pa.Table:
        """Return one row per context and column: the likeliest token, the right one, and their probabilities."""
        names: list[tuple[int | None, int | None]] = [(None, None), *((layer, head) for layer, head in self.heads)]
        rows = [
            {
                "trace": trace,
                "position": position,
                "is_erroneous": bool(self.is_erroneous[i]),
                "is_seen": bool(self.is_seen[i]),
                "layer": layer,
                "head": head,
                "right": self.text(self.right_ids[i]),
                "first": self.text(self.top_ids[i, k, 0]),
                "p_right": float(self.p_right[i, k]),
                "p_first": float(self.p_top[i, k, 0]),
            }
            for i, (trace, position) in enumerate(self.sites)
            for k, (layer, head) in enumerate(names)
        ]
        return pa.Table.from_pylist(rows)

    def text(self, token_id: Tensor | int) -> str:
        """Return the text of a token id that occurs in this finding."""
        return self.token_strs[str(int(token_id))]

    def plot(self) -> Figure:
        """Return the shares that silencing each head fixes and breaks, in held-out contexts if any, with intervals."""
        from chainwright.figures import fixed_and_broken

        return fixed_and_broken(self.counts(seen=not self.has_held_out))


def head_evidence(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    traces: Sequence[Trace],
    finding: RoleFinding,
    *,
    n: int = 32,
    n_heads: int = 6,
    n_top: int = 5,
) -> HeadEvidence:
    """Return the model's predictions at errors of one type without each of the heads that a diagnosis named.

    Args:
        model: The model that generated the traces.
        tokenizer: Its tokenizer.
        traces: All traces, in the order in which the roles' sites number them.
        finding: The roles at one error type.
        n: At most so many contexts of each kind. Twice the number that the diagnosis used gives its own contexts, those
            that the roles were found on and those that it held out.
        n_heads: At most so many heads.
        n_top: Likeliest tokens to record per prediction.

    Raises:
        BadInput: A number is below 1, or the traces have no error of this type.
    """
    for name, value in (("n", n), ("n_heads", n_heads), ("n_top", n_top)):
        if value < 1:
            raise BadInput(f"{name} must be at least 1; got {value}.")
    wrong = erroneous_contexts(tokenizer, traces, finding.task, finding.error_type, n)
    right = correct_contexts(traces, wrong, n)
    heads = named_heads(finding, n_heads)
    parts = anatomy(model)
    with evaluating(parts.model), torch.no_grad():
        by_kind = [_predictions(parts, contexts, heads, min(n_top, parts.d_vocab)) for contexts in (wrong, right)]
    p_right, top_ids, p_top = (torch.cat(column) for column in zip(*by_kind, strict=True))
    right_ids = torch.cat([wrong.right_ids, right.right_ids]).cpu()
    sites = wrong.sites + right.sites
    seen = [tuple(site) for site in finding.sites_erroneous + finding.sites_correct]
    known = sorted({*top_ids.flatten().tolist(), *right_ids.tolist()})
    return HeadEvidence(
        task=finding.task,
        error_type=finding.error_type,
        heads=heads,
        sites=sites,
        is_erroneous=torch.arange(len(sites)) < len(wrong),
        is_seen=torch.tensor([tuple(site) in seen for site in sites]),
        right_ids=right_ids,
        p_right=p_right,
        top_ids=top_ids,
        p_top=p_top,
        token_strs={str(i): tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in known},
        config={"n": n, "n_heads": n_heads, "n_top": n_top},
        provenance=provenance(parts.model),
    )


def named_heads(roles: HeadRoles, n: int) -> list[list[int]]:
    """Return up to `n` heads that are worth a closer look, the best first.

    After the best head come, in turn, the top heads of four lists: erroneous-processing heads, those whose silencing
    fixes most contexts, correct-processing heads, and answer-writing heads.
    """
    n_columns = roles.corrected.shape[1]
    order = (roles.corrected + 1e-3 * roles.rectification).flatten().argsort(descending=True, stable=True)
    fixing = [[int(i) // n_columns, int(i) % n_columns] for i in order if roles.corrected.flatten()[i] > 0]
    lists = (roles.erroneous_processing, fixing, roles.correct_processing, roles.answer_writing)
    chosen = [list(roles.best_head)]
    for rank in range(max(len(heads) for heads in lists)):
        chosen += [list(heads[rank]) for heads in lists if rank < len(heads)]
    return [list(head) for head in dict.fromkeys(tuple(head) for head in chosen)][:n]


def _predictions(
    parts: Anatomy, contexts: SlotContexts, heads: Sequence[Sequence[int]], n_top: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the right token's probability `[N, 1 + K]`, and the likeliest tokens with theirs `[N, 1 + K, A]`."""
    n_columns = contexts.input_ids.shape[1]
    # long contexts run one by one, which needs no mask of every token against every other
    at_once = 1 if n_columns >= LONG else max(1, TOKENS_AT_ONCE // n_columns)
    batches = []
    for start in range(0, len(contexts), at_once):
        part = contexts.take(slice(start, start + at_once))
        probs = torch.stack([_probs(parts, part, head) for head in (None, *heads)], dim=1)  # (row, column, vocabulary)
        right = part.right_ids.to(probs.device)[:, None, None].expand(-1, probs.shape[1], 1)
        best = probs.topk(n_top)
        batches.append((probs.gather(-1, right)[..., 0].cpu(), best.indices.cpu(), best.values.cpu()))
    p_right, top_ids, p_top = (torch.cat(column) for column in zip(*batches, strict=True))
    return p_right, top_ids, p_top


def _probs(parts: Anatomy, contexts: SlotContexts, head: Sequence[int] | None) -> Tensor:
    device = parts.device
    is_used = contexts.attention_mask.any(0)
    ids, mask = contexts.input_ids[:, is_used].to(device), contexts.attention_mask[:, is_used].to(device)
    silenced = nullcontext() if head is None else edit(parts.model, KnockOut({(head[0], head[1])}))
    with silenced:
        logits = forward(parts, ids, mask, last_only=True)[:, -1]
    return widened(logits).softmax(-1).float()
