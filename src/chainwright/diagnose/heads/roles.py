"""Which heads write answers, which support the right token, and which support the wrong one.

1. Answer-writing heads: highest direct score on the predicted token, on right and on wrong contexts separately.
2. Every head is silenced at all positions in every context. Where the model is right, the right token's loss of
   probability is the head's correct-processing effect; where it is wrong, the wrong token's loss is its
   erroneous-processing effect.
3. Basic heads, without which the predicted token nearly vanishes in both sets, get neither role.
4. Rectification: the probability that the right token gains in wrong contexts without the head.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from torch import Tensor, nn

from chainwright._config import Positions
from chainwright._errors import BadInput, unknown_name
from chainwright._finding import Finding
from chainwright._registry import register
from chainwright.diagnose.contexts import SlotContexts
from chainwright.diagnose.heads._sweep.baseline_pass import groups, is_edited
from chainwright.diagnose.heads._sweep.run import knock_out_each
from chainwright.diagnose.heads.lens import answer_writing_scores, in_vocabulary
from chainwright.diagnose.heads.role_sweep import RolesConfig, RoleSweep, Tick, sweep_sets, tracked
from chainwright.edits import Head
from chainwright.models.anatomy import Anatomy, anatomy, evaluating
from chainwright.models.capture import check_ids
from chainwright.models.load import provenance

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


_MAPS = (
    "writing_correct",
    "writing_erroneous",
    "effect_correct",
    "effect_erroneous",
    "rectification",
    "corrected",
    "kept",
)

_TOKENS_AT_ONCE = 2**14  # that are read together for what heads write


@register("finding", "HeadRoles")
@dataclass(frozen=True, kw_only=True)
class HeadRoles(Finding):
    """Scores and roles of every head for one kind of slot. All tensors are `[L, H]` means over contexts.

    Attributes:
        writing_correct: Answer-writing score on the predicted token where the model is right.
        writing_erroneous: The same where it is wrong.
        effect_correct: Probability that the right token loses without the head, where the model is right.
        effect_erroneous: Probability that the wrong token loses without the head, where the model is wrong.
        rectification: Probability that the right token gains without the head, where the model is wrong.
        corrected: Share of wrong contexts in which the right token comes first without the head.
        kept: Share of right contexts in which the right token still comes first without the head.
        answer_writing, correct_processing, erroneous_processing, basic: The heads of each role, best first,
            as [layer, head] pairs.
        n_correct, n_erroneous: Contexts in each set.
        sites_correct, sites_erroneous: Where each context ends, as [trace, position] of the token it decides; empty
            if unknown.
        right_correct, right_erroneous: The right token of each context, `[N]`.
        first_correct, first_erroneous: The token that comes first in each context without the head, `[N, L, H]`.
        p_right: Probability of the right token in each erroneous context without the head, `[N, L, H]`.
        p_right_whole: The same with every head in place, `[N]`.
        is_measured: Which heads were silenced, `[L, H]`. The others' effects are estimates; they count as changing no
            first token and get no role but that of writing answers. The last seven are None in findings from older
            versions.
    """

    writing_correct: Tensor
    writing_erroneous: Tensor
    effect_correct: Tensor
    effect_erroneous: Tensor
    rectification: Tensor
    corrected: Tensor
    kept: Tensor
    answer_writing: list[list[int]]
    correct_processing: list[list[int]]
    erroneous_processing: list[list[int]]
    basic: list[list[int]]
    n_correct: int
    n_erroneous: int
    sites_correct: list[list[int]] = field(default_factory=list)
    sites_erroneous: list[list[int]] = field(default_factory=list)
    right_correct: Tensor | None = None
    right_erroneous: Tensor | None = None
    first_correct: Tensor | None = None
    first_erroneous: Tensor | None = None
    p_right: Tensor | None = None
    p_right_whole: Tensor | None = None
    is_measured: Tensor | None = None

    def summary(self) -> str:
        """Return the heads of each role and the effect of silencing the best head, in words."""
        best = self.best_head
        estimated = 0 if self.is_measured is None else int((~self.is_measured).sum())
        rest = f" {estimated} of {self.corrected.numel()} heads were estimated, not measured." if estimated else ""
        return (
            f"{self.n_erroneous} wrong against {self.n_correct} right contexts. Erroneous-processing: "
            f"{_named(self.erroneous_processing)}. Correct-processing: {_named(self.correct_processing)}. Basic: "
            f"{_named(self.basic)}. Silencing L{best[0]}H{best[1]} alone puts the right token first in "
            f"{float(self.corrected[best]):.0%} of the wrong contexts and leaves it first in "
            f"{float(self.kept[best]):.0%} of the right ones.{rest}"
        )

    @property
    def best_head(self) -> Head:
        """Return the head whose silencing fixes most and breaks least: highest `corrected + kept - 1`.

        Ties are broken by rectification, then by order. It is the best of many heads on few contexts, so its shares
        are optimistic; see `check_head`.
        """
        worth = self.corrected.double() + self.kept
        worth = (worth if self.is_measured is None else worth.masked_fill(~self.is_measured, -1)).flatten()
        best = (worth > worth.max() - 1e-6).nonzero()[:, 0]
        gains = self.rectification.flatten()[best]
        return head_at(self.kept, int(best[int((gains == gains.max()).nonzero()[0, 0])]))

    def to_frame(self) -> pa.Table:
        """Return one row per head with its scores and roles."""
        n_layers, n_heads = self.rectification.shape
        every = [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
        roles = ("answer_writing", "correct_processing", "erroneous_processing", "basic")
        table = {"layer": [layer for layer, _ in every], "head": [head for _, head in every]}
        for name in _MAPS:
            table[name] = getattr(self, name).flatten().tolist()
        for role in roles:
            members = {tuple(head) for head in getattr(self, role)}
            table[f"is_{role}"] = [head in members for head in every]
        return pa.table(table)

    @property
    def maps(self) -> dict[str, Tensor]:
        """Return the measurements of all heads by name, `[L, H]` each."""
        return {name: getattr(self, name) for name in _MAPS}

    @property
    def members(self) -> dict[str, list[list[int]]]:
        """Return the heads of each role as [layer, head] pairs, and the best head as "best"."""
        roles = ("answer_writing", "correct_processing", "erroneous_processing", "basic")
        return {role: getattr(self, role) for role in roles} | {"best": [list(self.best_head)]}

    def plot(self, name: str | Collection[str] = _MAPS) -> Figure:
        """Return head maps, layer against head.

        Args:
            name: One measurement, such as "rectification", or several; by default all.

        Raises:
            BadInput: There is no such measurement.
        """
        from chainwright.figures import head_map, head_maps

        names = [name] if isinstance(name, str) else list(name)
        if unknown := [n for n in names if n not in _MAPS]:
            raise unknown_name("measurement", unknown[0], _MAPS)
        if isinstance(name, str):
            return head_map(self.maps, self.members, name)
        return head_maps(self.maps, self.members, names)


@dataclass(frozen=True)
class HeadCheck:
    """The effect of silencing one head in contexts that it was not chosen on.

    Attributes:
        head: [layer, head].
        corrected: Share of the wrong contexts in which the right token comes first without it.
        kept: Share of the right contexts in which the right token still comes first without it.
        n_erroneous, n_correct: Contexts of each kind.
    """

    head: list[int]
    corrected: float
    kept: float
    n_erroneous: int
    n_correct: int


@register("finding", "RoleFinding")
@dataclass(frozen=True, kw_only=True)
class RoleFinding(HeadRoles):
    """Head roles at one key error type of one task, with a check of the best head on held-out contexts.

    Attributes:
        task: The task.
        error_type: The key error type.
        check: What silencing the best head does in contexts it was not chosen on; None where there were too few to
            hold some out.
    """

    task: str
    error_type: str
    check: HeadCheck | None = None

    def __post_init__(self) -> None:
        """Read the check from plain values, as a saved finding has them."""
        saved: Any = self.check
        if isinstance(saved, Mapping):
            object.__setattr__(self, "check", HeadCheck(**saved))

    @classmethod
    def of(cls, task: str, error_type: str, roles: HeadRoles, check: HeadCheck | None = None) -> RoleFinding:
        """Return a finding with the scores and roles of `roles`, labelled with their task and error type."""
        values = {f.name: getattr(roles, f.name) for f in fields(HeadRoles)}
        return cls(task=task, error_type=error_type, check=check, **values)

    def summary(self) -> str:
        """Return the task, the error type and the roles in words."""
        return f"{self.task}, {self.error_type}: {super().summary()}"


def head_at(scores: Tensor, flat_index: int) -> Head:
    """Return the (layer, head) of an index into a flattened `[L, H]` map."""
    return flat_index // scores.shape[1], flat_index % scores.shape[1]


def _named(heads: list[list[int]]) -> str:
    return ", ".join(f"L{layer}H{head}" for layer, head in heads) or "none"


def head_roles(
    model: nn.Module,
    correct: SlotContexts,
    erroneous: SlotContexts,
    *,
    config: RolesConfig | None = None,
    tick: Tick | None = None,
    max_bytes: int | None = None,
) -> HeadRoles:
    """Return the roles of all heads at one kind of slot.

    Args:
        model: A Transformers decoder.
        correct: Contexts whose next token the model gets right (see `correct_contexts`).
        erroneous: Contexts whose next token it gets wrong (see `erroneous_contexts`), with the right token of each in
            `right_ids`.
        config: Sizes of the roles, and how the heads are measured; by default exactly in small models, and screened in
            large ones. The finding's config says what was chosen.
        tick: Called with the knockouts that are done and their number, to show progress.
        max_bytes: Memory for what is kept and for what runs side by side, each; None chooses by device.

    Raises:
        BadInput: A set is empty, an erroneous context's right token is the predicted one, or a correct context's
            is not.

    Note:
        Edits that are attached when it is called stay in force.

    Source: TCR (arXiv 2601.21214), section 3. Departures: large models are screened (docs/benchmarks.md); a role gets
    at least three heads if as many have a positive effect, and no others; "near zero" for basic heads is a tenth of the
    mean probability.
    """
    settings = config or RolesConfig()
    _check_sets(correct, erroneous)
    parts = anatomy(model)
    for contexts in (correct, erroneous):
        in_vocabulary(parts, "input_ids of contexts", contexts.input_ids)
    with evaluating(parts.model):
        return _roles(parts, correct, erroneous, settings, tick, max_bytes)


def _check_sets(correct: SlotContexts, erroneous: SlotContexts) -> None:
    for name, contexts in (("correct", correct), ("erroneous", erroneous)):
        if len(contexts) == 0:
            raise BadInput(f"The set of {name} contexts is empty; head roles need at least one context of each kind.")
        check_ids(contexts.input_ids, contexts.attention_mask)
    if bool((erroneous.predicted_ids == erroneous.right_ids).any()):
        raise BadInput("Some erroneous context has the right token as its predicted one.")
    if bool((correct.predicted_ids != correct.right_ids).any()):
        raise BadInput("Some correct context has another token than the right one as its predicted one.")


def _roles(
    parts: Anatomy,
    correct: SlotContexts,
    erroneous: SlotContexts,
    config: RolesConfig,
    tick: Tick | None,
    max_bytes: int | None,
) -> HeadRoles:
    right, wrong, is_measured, read, config = sweep_sets(parts, correct, erroneous, config, tick, max_bytes)
    effect_correct = (right.baseline[:, None, None, 0] - right.probs[..., 0]).mean(0)
    effect_erroneous = (wrong.baseline[:, None, None, 0] - wrong.probs[..., 0]).mean(0)
    rectification = (wrong.probs[..., 1] - wrong.baseline[:, None, None, 1]).mean(0)
    is_basic = _falls(right, config) & _falls(wrong, config) & is_measured
    writing = read or (_writing(parts, correct), _writing(parts, erroneous))
    n_top = max(config.at_least, round(config.share * is_basic.numel()))
    has_no_role = is_basic | ~is_measured
    return HeadRoles(
        writing_correct=writing[0],
        writing_erroneous=writing[1],
        effect_correct=effect_correct,
        effect_erroneous=effect_erroneous,
        rectification=rectification,
        corrected=_puts_first(wrong, erroneous.right_ids),
        kept=_puts_first(right, correct.right_ids),
        answer_writing=_top((writing[0] + writing[1]) / 2, config.n_answer_writing, torch.zeros_like(is_basic)),
        correct_processing=_top(effect_correct, n_top, has_no_role),
        erroneous_processing=_top(effect_erroneous, n_top, has_no_role),
        basic=[list(head_at(is_basic, int(i))) for i in is_basic.flatten().nonzero()[:, 0]],
        n_correct=len(correct),
        n_erroneous=len(erroneous),
        sites_correct=correct.sites,
        sites_erroneous=erroneous.sites,
        right_correct=correct.right_ids.cpu(),
        right_erroneous=erroneous.right_ids.cpu(),
        first_correct=right.argmax,
        first_erroneous=wrong.argmax,
        p_right=wrong.probs[..., 1].float(),
        p_right_whole=wrong.baseline[:, 1].float(),
        is_measured=is_measured,
        config=config.record(),
        provenance=provenance(parts.model),
    )


def check_head(
    model: nn.Module,
    correct: SlotContexts,
    erroneous: SlotContexts,
    head: Head,
    *,
    positions: Positions = "all",
) -> HeadCheck:
    """Return the shares of contexts that silencing one head fixes and keeps right.

    Use contexts on which the head was not chosen.

    Raises:
        BadInput: There is no such head, or the sets are not as `head_roles` requires.
    """
    _check_sets(correct, erroneous)
    parts = anatomy(model)
    layer, index = parts.check_head(*head)
    wanted = torch.zeros(1, parts.n_layers, parts.n_heads, dtype=torch.bool)
    wanted[:, layer, index] = True
    shares = []
    with evaluating(parts.model):
        for contexts in (erroneous, correct):
            every = wanted.expand(len(contexts), -1, -1)
            first = knock_out_each(parts, tracked(parts, contexts), every, positions).argmax[:, layer, index]
            shares.append(float((first == contexts.right_ids.cpu()).float().mean()))
    return HeadCheck([layer, index], shares[0], shares[1], len(erroneous), len(correct))


def _writing(parts: Anatomy, contexts: SlotContexts) -> Tensor:
    moved = tracked(parts, contexts)
    # an attached edit may treat rows differently, so they stay together
    some = [moved] if is_edited(parts) else [group.contexts for group in groups(moved, _TOKENS_AT_ONCE)]
    scores = [
        answer_writing_scores(parts.model, each.input_ids, each.tracked[:, 0], attention_mask=each.mask)
        for each in some
    ]
    return torch.cat(scores).mean(0)


def _falls(swept: RoleSweep, config: RolesConfig) -> Tensor:
    return swept.probs[..., 0].mean(0) < config.basic_below * swept.baseline[:, 0].mean()


def _puts_first(swept: RoleSweep, token_ids: Tensor) -> Tensor:
    return (swept.argmax == token_ids.cpu()[:, None, None]).float().mean(0)


def _top(scores: Tensor, n: int, is_excluded: Tensor) -> list[list[int]]:
    """Return the best heads with a positive score as [layer, head] pairs; ties keep the order of the heads."""
    usable = scores.masked_fill(is_excluded, float("-inf")).flatten()
    values, order = usable.sort(descending=True, stable=True)
    return [list(head_at(scores, int(i))) for i, value in zip(order[:n], values[:n], strict=True) if value > 0]
