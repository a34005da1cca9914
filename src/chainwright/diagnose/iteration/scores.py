"""Iteration heads in any trained decoder: heads that attend from where a step's result is written to its input.

1. The slot map of each trace gives the steps (`step_slots`): the positions that emit a result, the tokens of the step's
   input, and the tokens of the result before.
2. One pass per trace reads the attention of those positions only. A head's score is its mean attention there.
3. Null: the steps are shuffled. Each result is paired many times with the input of a random step that its position can
   see, which gives the score expected by chance. There are many heads, so the p-value compares with the best head of
   each shuffle.
4. Causal check: the best heads, and random others as controls, are silenced one at a time, and the share of result
   tokens that are still predicted is counted.

Small models trained on iterative tasks have measures of their own, in `emergence`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

import scipy
import torch
from pydantic import Field
from torch import Tensor, nn

from chainwright._config import Config
from chainwright._errors import BadInput
from chainwright.diagnose._attention_rows import read_rows
from chainwright.diagnose.iteration.findings import LINKS, MAPS, IterationOverlap, IterationScores, Link
from chainwright.diagnose.iteration.step_slots import Step, trace_steps
from chainwright.edits import Head, KnockOut, edit
from chainwright.models.anatomy import Anatomy, anatomy, evaluating
from chainwright.models.load import provenance
from chainwright.traces import Trace
from chainwright.traces.offsets import Tokenizer

_ROWS_TOGETHER = 8  # knockouts that run in one batch


class IterationSettings(Config):
    """How scores are compared with chance, and how many heads are silenced."""

    n_shuffles: int = Field(default=500, ge=1, description="Shuffles of the steps.")
    threshold: float = Field(
        default=0.5, gt=0, lt=1, description="Attention above which a step counts for `thresholded`."
    )
    n_checked: int = Field(default=3, ge=0, description="Best heads of each link that are silenced one at a time.")
    n_controls: int = Field(default=5, ge=0, description="Other heads that are silenced for comparison.")
    seed: int = Field(default=0, description="Seed of the shuffles and of the choice of controls.")


def iteration_scores(
    model: nn.Module,
    tokenizer: Tokenizer,
    traces: Sequence[Trace],
    *,
    settings: IterationSettings | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> IterationScores:
    """Return how much each head behaves like an iteration head on these traces.

    Args:
        model: A Transformers decoder.
        tokenizer: The tokenizer of the traces.
        traces: Traces with a slot map, of one task or of several; each is used up to its first error.
        settings: Shuffles, threshold, heads to silence.
        say: Called with a line of text at each stage.

    Raises:
        BadInput: There are no traces, one has no slot map, or none has a step.
        UnsupportedModel: The model's attention does not run through the seam.

    Note:
        Edits that are attached when it is called stay in force. A position's attention to itself is not counted, since
        it moves no information between positions.

    Source: Iteration Head (arXiv 2406.02128), the measures of section 3 applied to slot maps. Departures: the null and
    the causal check are additions; of a result of several tokens each token counts.
    """
    chosen = settings or IterationSettings()
    if not traces:
        raise BadInput("There are no traces; iteration scores need at least one with a slot map.")
    steps = [trace_steps(tokenizer, trace) for trace in traces]
    if not any(steps):
        raise BadInput("No trace has a step that was read right up to its result, so there is nothing to measure.")
    parts = anatomy(model)
    with evaluating(parts.model):
        say(f"Attention of {sum(map(len, steps))} steps in {len(traces)} traces")
        tallies = {link: _Tally(parts, chosen) for link in LINKS}
        for trace, its_steps in zip(traces, steps, strict=True):
            _read(parts, trace, its_steps, tallies)
        links = [link for link in LINKS if tallies[link].n]
        maps = [tallies[link].maps() for link in links]
        scores = {name: torch.stack([of_link[name] for of_link in maps]) for name in MAPS}
        checked = _heads_to_check(links, scores["score"], chosen)
        say(f"Silencing {len(checked)} heads one at a time")
        causal = _silenced(parts, traces, steps, links, [head for head, _ in checked])
    return IterationScores(
        links=list(links),
        **scores,
        checked=[list(head) for head, _ in checked],
        checked_for=[why for _, why in checked],
        accuracy=causal.right[0],
        accuracy_without=causal.right[1:],
        exact=float(causal.exact[0]),
        exact_without=causal.exact[1:],
        n_steps=[tallies[link].n for link in links],
        n_traces=len(traces),
        config=chosen.record(),
        provenance=provenance(parts.model),
    )


def _queries(step: Step, link: str) -> tuple[int, ...]:
    return step.emits_restated if link == "recall" else step.emits_result


def _targets(step: Step, link: str) -> tuple[int, ...]:
    return {"input": step.inputs + step.restated, "previous": step.previous, "recall": step.inputs}[link]


def _linked(steps: Sequence[Step], link: str) -> list[Step]:
    # if the only target is the emitting position itself no attention is needed: the residual stream already has it
    return [step for step in steps if _queries(step, link) and {*_targets(step, link)} - {*_queries(step, link)}]


def _read(parts: Anatomy, trace: Trace, steps: Sequence[Step], tallies: dict[Link, _Tally]) -> None:
    """Read the attention of one trace and add it to the tally of every link."""
    linked = {link: _linked(steps, link) for link in tallies}
    positions = sorted({i for link, those in linked.items() for step in those for i in _queries(step, link)})
    if not positions:
        return
    weigh, collect, mass = {}, {}, {}
    for link, those in linked.items():
        weigh[link], collect[link] = _weights(parts, trace, those, link)
        shape = (parts.n_layers, parts.n_heads, len(those), len(those))
        mass[link] = torch.zeros(shape, dtype=torch.double)

    def read(layer: int, rows: Tensor, pattern: Tensor) -> None:
        # attention of a position to itself moves no information between positions
        pattern[:, torch.arange(len(rows), device=rows.device), rows] = 0
        for link in linked:
            reached = weigh[link][:, rows] @ (pattern.double() @ collect[link])
            mass[link][layer] += reached.cpu()

    read_rows(parts, trace.input_ids, torch.tensor(positions), read)
    for link, those in linked.items():
        key = (trace.problem.task if trace.problem else "", trace.problem.hops if trace.problem else 0)
        tallies[link].add(mass[link], _visible(those, link), [(*key, step.hop) for step in those])


def _weights(parts: Anatomy, trace: Trace, steps: Sequence[Step], link: str) -> tuple[Tensor, Tensor]:
    """Return the weight of each position among a step's queries `[S, T]`, and which tokens are its targets `[T, S]`."""
    queries = torch.zeros(len(steps), trace.n_tokens, dtype=torch.double)
    targets = torch.zeros(trace.n_tokens, len(steps), dtype=torch.double)
    for i, step in enumerate(steps):
        positions = list(_queries(step, link))
        queries[i, positions] = 1 / len(positions)
        targets[list(_targets(step, link)), i] = 1
    return queries.to(parts.device), targets.to(parts.device)


def _visible(steps: Sequence[Step], link: str) -> Tensor:
    """Return whether a step's first query can see all targets of another step, `[S, S]`."""
    first = torch.tensor([min(_queries(step, link)) for step in steps])
    last = torch.tensor([max(_targets(step, link)) for step in steps])
    # a step's own targets always count, even where one of them lies within its result
    return (last[None] <= first[:, None]) | torch.eye(len(steps), dtype=torch.bool)


@dataclass
class _Tally:
    """The attention of one link collected over traces, and its sums under shuffling."""

    parts: Anatomy
    settings: IterationSettings
    n: int = 0
    entries: list[Tensor] = field(default_factory=list)
    keys: list[tuple[str, int, int]] = field(default_factory=list)
    shuffled: Tensor | None = None
    generator: torch.Generator | None = None

    def add(self, mass: Tensor, visible: Tensor, keys: Sequence[tuple[str, int, int]]) -> None:
        """Add the `[L, H, S, S]` attention between the steps of one trace."""
        if not len(visible):
            return
        if self.generator is None:
            self.generator = torch.Generator().manual_seed(self.settings.seed)
        self.n += len(visible)
        self.keys += keys
        own = mass.diagonal(dim1=-2, dim2=-1)
        self.entries.append(own.permute(2, 0, 1))
        drawn = torch.multinomial(
            visible.double(), self.settings.n_shuffles, replacement=True, generator=self.generator
        )
        reached = mass.gather(-1, drawn.expand(*mass.shape[:2], -1, -1)).sum(-2).permute(2, 0, 1)
        self.shuffled = reached if self.shuffled is None else self.shuffled + reached

    def maps(self) -> dict[str, Tensor]:
        """Return every map by name, `[L, H]` in float32."""
        assert self.shuffled is not None
        entries, null = torch.cat(self.entries), self.shuffled / self.n
        score, mean, sd = entries.mean(0), null.mean(0), null.std(0, unbiased=False)
        maps = {
            "score": score,
            "thresholded": (entries > self.settings.threshold).double().mean(0),
            "invariance": self._invariance(entries),
            "null_mean": mean,
            "null_sd": sd,
            "p_value": _p_values(score, null, mean, sd),
        }
        return {name: value.float() for name, value in maps.items()}

    def _invariance(self, entries: Tensor) -> Tensor:
        groups: dict[tuple[str, int, int], list[int]] = {}
        for i, key in enumerate(self.keys):
            groups.setdefault(key, []).append(i)
        spreads = [entries[rows].std(0, unbiased=False) for rows in groups.values() if len(rows) > 1]
        if not spreads:
            return torch.full(entries.shape[1:], float("nan"))
        return 1 - torch.stack(spreads).mean(0)


def _p_values(score: Tensor, null: Tensor, mean: Tensor, sd: Tensor) -> Tensor:
    """Return family-wise p-values: each head is compared with the head that stands out most in each shuffle."""
    floor = sd.clamp(min=1e-12)
    stands_out = torch.where(sd > 1e-12, (score - mean) / floor, torch.zeros_like(score))
    most = torch.where(sd > 1e-12, (null - mean) / floor, torch.zeros_like(null)).flatten(1).amax(1)
    return (1 + (most[:, None, None] >= stands_out).sum(0)) / (1 + len(null))


def _heads_to_check(links: Sequence[str], scores: Tensor, settings: IterationSettings) -> list[tuple[Head, str]]:
    """Return the best heads of each link and random controls, each with its link or "control"."""
    n_heads = scores.shape[-1]
    best = []
    for link, score in zip(links, scores, strict=True):
        order = score.flatten().sort(descending=True, stable=True).indices[: settings.n_checked]
        best += [((int(i) // n_heads, int(i) % n_heads), link) for i in order]
    taken = {head for head, _ in best}
    rest = [(layer, head) for layer in range(scores.shape[1]) for head in range(n_heads) if (layer, head) not in taken]
    controls = Random(settings.seed).sample(rest, min(settings.n_controls, len(rest)))
    return best + [(head, "control") for head in sorted(controls)]


@dataclass(frozen=True)
class _Causal:
    """Shares of predicted tokens `[1 + C, K]` and of whole traces `[1 + C]`; the first row has every head."""

    right: Tensor
    exact: Tensor


@torch.no_grad()
def _silenced(
    parts: Anatomy, traces: Sequence[Trace], steps: Sequence[Sequence[Step]], links: Sequence[str], heads: list[Head]
) -> _Causal:
    """Return the shares predicted right with every head, and with each of `heads` silenced."""
    variants: list[set[Head]] = [set(), *({head} for head in heads)]
    right, total = torch.zeros(len(variants), len(links)), torch.zeros(len(links))
    exact, n_traces = torch.zeros(len(variants)), 0
    for trace, those in zip(traces, steps, strict=True):
        emits = [sorted({i for step in _linked(those, link) for i in _queries(step, link)}) for link in links]
        positions = sorted({i for row in emits for i in row})
        if not positions:
            continue
        hits = _hits(parts, trace, positions, variants)
        place = {position: i for i, position in enumerate(positions)}
        for k, row in enumerate(emits):
            right[:, k] += hits[:, [place[i] for i in row]].sum(1)
            total[k] += len(row)
        exact += hits.all(1)
        n_traces += 1
    return _Causal(right / total, exact / n_traces)


def _hits(parts: Anatomy, trace: Trace, positions: list[int], variants: Sequence[set[Head]]) -> Tensor:
    """Return whether the token after each position is predicted without each set of heads, `[V, P]`."""
    device = parts.device
    ids, index = trace.input_ids.to(device), torch.tensor(positions, device=device)
    cuts = [*range(0, len(variants), _ROWS_TOGETHER), len(variants)]
    hits = []
    for start, end in pairwise(cuts):
        rows = ids.expand(end - start, -1)
        with edit(parts.model, KnockOut(list(variants[start:end])), strict=False):
            logits = parts.model(input_ids=rows, use_cache=False, logits_to_keep=index).logits
        hits.append(logits.argmax(-1).eq(ids[index + 1]).cpu())
    return torch.cat(hits)


def iteration_overlap(
    scores: IterationScores, effect: Tensor, *, link: Link = "input", n: int | None = None
) -> IterationOverlap:
    """Return how far the best iteration heads are also those without which right tokens lose most probability.

    Args:
        scores: From `iteration_scores`.
        effect: Probability that right tokens lose without each head, `[L, H]`: `HeadRoles.effect_correct`, or the mean
            of `knockout_effects` over contexts.
        link: The link that ranks the iteration heads.
        n: How many heads to take from each ranking; None means 2%, but at least three, as in head roles.

    Raises:
        BadInput: The maps have different shapes, the link was not measured, or `n` is not between 1 and all heads.
    """
    of_link = scores.score[scores.link(link)]
    if effect.shape != of_link.shape:
        raise BadInput(
            f"The effects have {list(effect.shape)} layers and heads, the scores {list(of_link.shape)}; take both from "
            "the same model."
        )
    n_heads = of_link.numel()
    count = max(3, round(0.02 * n_heads)) if n is None else n
    count = min(count, n_heads) if n is None else count
    if not 1 <= count <= n_heads:
        raise BadInput(f"n must be from 1 to all {n_heads} heads; got {count}.")
    first, second = (_best(values, count) for values in (of_link, effect))
    shared = [head for head in first if head in second]
    ranks = scipy.stats.spearmanr(of_link.flatten().numpy(), effect.flatten().numpy())
    return IterationOverlap(
        link=link,
        n=count,
        iteration=first,
        processing=second,
        shared=shared,
        expected=count * count / n_heads,
        p_value=float(scipy.stats.hypergeom.sf(len(shared) - 1, n_heads, count, count)),
        rank_correlation=float(ranks.statistic),
        rank_p_value=float(ranks.pvalue),
        config=dict(scores.config),
        provenance=dict(scores.provenance),
    )


def _best(values: Tensor, n: int) -> list[list[int]]:
    order = values.flatten().sort(descending=True, stable=True).indices[:n]
    return [[int(i) // values.shape[1], int(i) % values.shape[1]] for i in order]


__all__ = ["LINKS", "IterationOverlap", "IterationScores", "IterationSettings", "iteration_overlap", "iteration_scores"]
