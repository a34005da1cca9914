"""What the model says at errors of one type with every head in place, and without each of a few heads.

1. The heads that a diagnosis named: the best one, then those that push the wrong token, mend most, or write answers.
2. Every context at such an error, those that the roles were found on and those held out, and as many right ones.
3. One forward pass a head: the likeliest tokens with their probabilities, and that of the right token.

It is the evidence to `head_roles`: which errors a head would mend, one by one, and which right tokens it would break.
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
from chainwright.diagnose.heads.roles import HeadRoles, RoleFinding
from chainwright.edits import KnockOut, edit
from chainwright.models.anatomy import Anatomy, anatomy, evaluating
from chainwright.models.capture import forward
from chainwright.models.load import provenance
from chainwright.models.seam import widened
from chainwright.traces import Trace

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_TOKENS_AT_ONCE = 2**14


@register("finding", "HeadEvidence")
@dataclass(frozen=True, kw_only=True)
class HeadEvidence(Finding):
    """What the model says in N contexts, whole (column 0) and without each of K heads (columns 1 to K).

    Attributes:
        task, error_type: The errors.
        heads: The K heads as [layer, head] pairs, the best first.
        sites: Where each context ends, as [trace, position] of its deciding token.
        is_erroneous: Whether the model is wrong there, bool `[N]`.
        is_seen: Whether the context is one that the roles were found on, bool `[N]`; the others are held out.
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
        """Return whether some failing contexts had no part in finding the roles."""
        return bool((self.is_erroneous & ~self.is_seen).any())

    def counts(self, *, seen: bool) -> list[dict[str, Any]]:
        """Return for each head how many failing contexts it mends and how many right ones it breaks, when silenced.

        Args:
            seen: In the contexts that the roles were found on, or in those held out.
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
        """Return what silencing the first head does in contexts held out, or in all if there are none."""
        first = self.counts(seen=not self.has_held_out)[0]
        where = "held out" if self.has_held_out else "that it was chosen on"
        return (
            f"{self.task}, {self.error_type}: without L{first['layer']}H{first['head']} {first['n_fixed']} of "
            f"{first['n_erroneous']} failing contexts {where} are mended and {first['n_broken']} of "
            f"{first['n_correct']} right ones broken."
        )

    def to_frame(self) -> pa.Table:
        """Return one row for each context and column, with the likeliest token and the probability of the right one."""
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
        """Return the text of a token id that stands in this finding."""
        return self.token_strs[str(int(token_id))]

    def plot(self) -> Figure:
        """Return the shares that each head mends and breaks, in contexts held out if there are any, with intervals."""
        from chainwright.figures import fixed_and_broken

        return fixed_and_broken(self.counts(seen=not self.has_held_out))


def head_evidence(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    traces: Sequence[Trace],
    found: RoleFinding,
    *,
    n: int = 32,
    n_heads: int = 6,
    n_top: int = 5,
) -> HeadEvidence:
    """Return what the model says at errors of one type without each of the heads that a diagnosis named.

    Args:
        model: The model that the traces were made with.
        tokenizer: Its tokenizer.
        traces: All traces, in the order that the roles' sites count in.
        found: The roles at one error type.
        n: Contexts of each kind at most. With twice the number that the roles were found on, and what the diagnosis
            held out beside them, they are the same.
        n_heads: Heads at most.
        n_top: Likeliest tokens to keep.

    Raises:
        BadInput: A number below 1, or the traces have no such error.
    """
    for name, value in (("n", n), ("n_heads", n_heads), ("n_top", n_top)):
        if value < 1:
            raise BadInput(f"{name} must be at least 1; got {value}.")
    wrong = erroneous_contexts(tokenizer, traces, found.task, found.error_type, n)
    right = correct_contexts(traces, wrong, n)
    heads = named_heads(found, n_heads)
    parts = anatomy(model)
    with evaluating(parts.model), torch.no_grad():
        said = [_said(parts, contexts, heads, min(n_top, parts.d_vocab)) for contexts in (wrong, right)]
    p_right, top_ids, p_top = (torch.cat([one[i] for one in said]) for i in range(3))
    right_ids = torch.cat([wrong.right_ids, right.right_ids]).cpu()
    sites = wrong.sites + right.sites
    seen = [tuple(site) for site in found.sites_erroneous + found.sites_correct]
    known = sorted({*top_ids.flatten().tolist(), *right_ids.tolist()})
    return HeadEvidence(
        task=found.task,
        error_type=found.error_type,
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

    After the best head come in turn the erroneous-processing heads, those that mend most, and the correct-processing
    and answer-writing heads.
    """
    n_columns = roles.corrected.shape[1]
    order = (roles.corrected + 1e-3 * roles.rectification).flatten().argsort(descending=True, stable=True)
    mending = [[int(i) // n_columns, int(i) % n_columns] for i in order if roles.corrected.flatten()[i] > 0]
    lists = (roles.erroneous_processing, mending, roles.correct_processing, roles.answer_writing)
    found = [list(roles.best_head)]
    for rank in range(max(len(heads) for heads in lists)):
        found += [list(heads[rank]) for heads in lists if rank < len(heads)]
    return [list(head) for head in dict.fromkeys(tuple(head) for head in found)][:n]


def _said(
    parts: Anatomy, contexts: SlotContexts, heads: Sequence[Sequence[int]], n_top: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the right token's probability `[N, 1 + K]`, and the likeliest tokens and theirs `[N, 1 + K, A]`."""
    at_once = max(1, _TOKENS_AT_ONCE // contexts.input_ids.shape[1])
    found = []
    for start in range(0, len(contexts), at_once):
        part = contexts.take(slice(start, start + at_once))
        probs = torch.stack([_probs(parts, part, head) for head in (None, *heads)], dim=1)  # (row, column, vocabulary)
        right = part.right_ids.to(probs.device)[:, None, None].expand(-1, probs.shape[1], 1)
        best = probs.topk(n_top)
        found.append((probs.gather(-1, right)[..., 0].cpu(), best.indices.cpu(), best.values.cpu()))
    p_right, top_ids, p_top = (torch.cat([one[i] for one in found]) for i in range(3))
    return p_right, top_ids, p_top


def _probs(parts: Anatomy, contexts: SlotContexts, head: Sequence[int] | None) -> Tensor:
    device = parts.model.device
    ids, mask = contexts.input_ids.to(device), contexts.attention_mask.to(device)
    silenced = nullcontext() if head is None else edit(parts.model, KnockOut({(head[0], head[1])}))
    with silenced:
        logits = forward(parts, ids, mask, last_only=True)[:, -1]
    return widened(logits).softmax(-1).float()
