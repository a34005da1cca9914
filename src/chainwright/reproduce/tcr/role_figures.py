"""What the paper says about located heads, measured at one key error type.

1. How many heads support right and wrong tokens alike, and how many write both.
2. One head that supports the wrong token is silenced: the best of them at the contexts that located it. What does the
   right token gain at errors that it was not chosen on?
3. Where that puts the right token first: how sure is the model then, compared with right and with wrong predictions?
   And on which heads does the right token depend, compared with predictions that were right to begin with?

Source: TCR (arXiv 2601.21214), section 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from chainwright._config import Positions
from chainwright.diagnose.contexts import SlotContexts, correct_contexts, erroneous_contexts
from chainwright.diagnose.heads.knockout import knockout_effects
from chainwright.diagnose.heads.roles import RoleFinding, head_at
from chainwright.edits import Head, KnockOut, edit
from chainwright.models.anatomy import Anatomy, anatomy, evaluating
from chainwright.models.capture import forward
from chainwright.models.seam import widened
from chainwright.repair.tcr._forced_last import Place, ablated_last, cached_states, kept_cache
from chainwright.repair.tcr._knockout_switch import Switch
from chainwright.repair.tcr.token_repair import entropy_nats
from chainwright.reproduce.tcr.config import ReproduceTCRConfig, role_units_of
from chainwright.traces import Trace

N_BEST = 15  # heads that are compared after a correction, as in the paper
_N_RELOCATED = 2  # corrected contexts in which all heads are silenced again
_ROWS_AT_ONCE = 16


def role_figures(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    traces: Sequence[Trace],
    found: RoleFinding,
    positions: Positions,
) -> dict[str, Any]:
    """Return the figures of one key error type by name.

    Args:
        model: The model that wrote the traces.
        tokenizer: Its tokenizer.
        traces: The traces that the heads were located in.
        found: The roles.
        positions: Where heads are silenced.

    Returns:
        `task`, `type`, the heads of each role, and counts; `writing_shared` of `n_writing` heads; `head`, and
        `gains`, what the right token gains without it at each error it was not chosen on; the mean entropies
        `entropy_right`, `entropy_wrong` and `entropy_corrected` (nats), and `relocated`, the share of the best heads
        that agree, None where nothing is corrected.
    """
    parts = anatomy(model)
    wrong = erroneous_contexts(tokenizer, traces, found.task, found.error_type, 2 * found.n_erroneous)
    right = correct_contexts(traces, wrong, found.n_correct)
    row = _shared(found) | {"task": found.task, "type": found.error_type, "n_right": len(right)}
    if not found.erroneous_processing:
        return row | {"head": None, "gains": [], "relocated": None}
    head = max(((h[0], h[1]) for h in found.erroneous_processing), key=lambda h: float(found.rectification[h]))
    with evaluating(parts.model), torch.no_grad():
        return row | {"head": list(head)} | _without(parts, found, wrong, right, head, positions)


def roles_in(config: ReproduceTCRConfig, done: Mapping[str, Path]) -> list[RoleFinding]:
    """Return the head roles that a study located, by task and error type."""
    folders = [path for unit in role_units_of(config) for path in sorted(done[unit].iterdir()) if path.is_dir()]
    return [RoleFinding.load(folder) for folder in folders]


def _shared(found: RoleFinding) -> dict[str, Any]:
    roles = {name: [tuple(head) for head in getattr(found, name)] for name in _ROLES}
    n = min(10, found.writing_correct.numel())
    writing = [_best(scores, n) for scores in (found.writing_correct, found.writing_erroneous)]
    return {
        **{name: [list(head) for head in heads] for name, heads in roles.items()},
        "n_both": len(set(roles["correct_processing"]) & set(roles["erroneous_processing"])),
        "writing_shared": len(writing[0] & writing[1]),
        "n_writing": n,
        "n_located": found.n_erroneous,
    }


_ROLES = ("answer_writing", "correct_processing", "erroneous_processing", "basic")


def _best(scores: Tensor, n: int) -> set[Head]:
    return {head_at(scores, int(i)) for i in scores.flatten().topk(n).indices}


def _without(
    parts: Anatomy, found: RoleFinding, wrong: SlotContexts, right: SlotContexts, head: Head, positions: Positions
) -> dict[str, Any]:
    whole, silent = (_probs(parts, wrong, chosen, positions) for chosen in (None, head))
    rows = torch.arange(len(wrong))
    gains = silent[rows, wrong.right_ids] - whole[rows, wrong.right_ids]
    seen = {tuple(site) for site in found.sites_erroneous}
    is_held = torch.tensor([tuple(site) not in seen for site in wrong.sites])
    is_corrected = silent.argmax(-1) == wrong.right_ids
    entropy = [float(_entropy(p).mean()) for p in (_probs(parts, right, None, positions), whole)]
    (at,) = is_corrected.nonzero(as_tuple=True)
    return {
        "gains": gains[is_held].tolist(),
        "n_wrong": len(wrong),
        "n_corrected": len(at),
        "entropy_right": entropy[0],
        "entropy_wrong": entropy[1],
        "entropy_corrected": float(_entropy(silent[at]).mean()) if len(at) else None,
        "relocated": _relocated(parts, found, wrong, at.tolist()[:_N_RELOCATED], head, positions) if len(at) else None,
    }


def _entropy(probs: Tensor) -> Tensor:
    return entropy_nats(probs.clamp(min=1e-30).log())


def _probs(parts: Anatomy, contexts: SlotContexts, head: Head | None, positions: Positions) -> Tensor:
    """Return the next-token probabilities `[N, V]`, with one head silenced or none."""
    out = []
    silenced = nullcontext() if head is None else edit(parts.model, KnockOut({head}, positions=positions))
    with silenced:
        for start in range(0, len(contexts), _ROWS_AT_ONCE):
            ids, mask = _rows(parts, contexts.take(slice(start, start + _ROWS_AT_ONCE)))
            out.append(widened(forward(parts, ids, mask, last_only=True)[:, -1]).softmax(-1).cpu())
    return torch.cat(out)


def _rows(parts: Anatomy, contexts: SlotContexts) -> tuple[Tensor, Tensor]:
    width = int(contexts.attention_mask.sum(-1).max())
    return tuple(t[:, -width:].to(parts.device) for t in (contexts.input_ids, contexts.attention_mask))  # type: ignore[return-value]


def _relocated(
    parts: Anatomy, found: RoleFinding, wrong: SlotContexts, rows: list[int], head: Head, positions: Positions
) -> float:
    """Return the share of the best heads for right tokens that are also the best for corrected ones."""
    effects = _effects_without(parts, wrong, rows, head, positions)
    known = found.effect_correct.clone()
    for scores in (effects, known):
        scores[head] = float("-inf")  # silent in one of the two
    n = n_compared(known.numel())
    return len(_best(effects, n) & _best(known, n)) / n


def n_compared(n_heads: int) -> int:
    """Return how many of the best heads are compared after a correction, of so many in all."""
    return min(N_BEST, n_heads // 2)


def _effects_without(parts: Anatomy, wrong: SlotContexts, rows: list[int], head: Head, positions: Positions) -> Tensor:
    """Return what the right token loses without each other head once `head` is silent, mean over rows, `[L, H]`."""
    effects = torch.zeros(parts.n_layers, parts.n_heads)
    for row in rows:
        one = wrong.take(slice(row, row + 1))
        effects += _row_effects(parts, one, head, positions)
    return effects / len(rows)


def _row_effects(parts: Anatomy, one: SlotContexts, head: Head, positions: Positions) -> Tensor:
    ids, mask = _rows(parts, one)
    cache = kept_cache(parts) if positions == "last" else None
    if cache is None:
        with edit(parts.model, KnockOut({head}, positions=positions)):
            return knockout_effects(parts.model, ids, one.right_ids, attention_mask=mask, positions=positions).effect[0]
    every = [(layer, h) for layer in range(parts.n_layers) for h in range(parts.n_heads)]
    switch, column = Switch(parts), ids.shape[1] - 1
    places = [Place(0, column, {head}), *(Place(0, column, {head, other}) for other in every)]
    with switch.attached():
        cached_states(parts, ids, mask, cache)
        probs = ablated_last(parts, switch, ids, mask, cache, places, 0.0).softmax(-1)[:, int(one.right_ids[0])].cpu()
    return (probs[0] - probs[1:]).view(parts.n_layers, parts.n_heads)


__all__ = ["N_BEST", "n_compared", "role_figures", "roles_in"]
