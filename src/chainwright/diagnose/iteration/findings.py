"""Findings about iteration heads: scores of every head, and their overlap with heads that right results depend on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import pyarrow as pa
from torch import Tensor

from chainwright._errors import BadInput
from chainwright._finding import Finding
from chainwright._registry import register
from chainwright.edits import Head

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from chainwright.figures import Ranked

Link = Literal["input", "previous", "recall"]
LINKS: tuple[Link, ...] = get_args(Link)
MAPS = ("score", "thresholded", "invariance", "null_mean", "null_sd", "p_value")


@register("finding", "IterationScores")
@dataclass(frozen=True, kw_only=True)
class IterationScores(Finding):
    """How much each head behaves like an iteration head. K links, L layers, H heads, C silenced heads.

    Attributes:
        links: The measured links: "input" (from where the result is written to the step's input, in the question or
            restated), "previous" (from there to the result before), "recall" (from where the input is restated to the
            question). A link that no trace has is omitted.
        score: Mean attention on the link, `[K, L, H]`.
        thresholded: Share of the steps with attention above the threshold, `[K, L, H]`.
        invariance: 1 minus the standard deviation over problems at the same step of chains of the same length,
            averaged over steps, `[K, L, H]`; NaN where no two chains have the same length.
        null_mean: Mean attention with the steps shuffled, `[K, L, H]`.
        null_sd: Its standard deviation over shuffles, `[K, L, H]`.
        p_value: Probability that the best of all heads stands out this much under shuffling, `[K, L, H]`.
        checked: The silenced heads as [layer, head].
        checked_for: For each of them, the link for which it is among the best, or "control".
        accuracy: Share of the emitted tokens of each link that are predicted with every head, `[K]`.
        accuracy_without: The same without each silenced head, `[C, K]`.
        exact: Share of the traces with every such token predicted.
        exact_without: The same without each silenced head, `[C]`.
        n_steps: Steps of each link.
        n_traces: Traces measured.
    """

    links: list[str]
    score: Tensor
    thresholded: Tensor
    invariance: Tensor
    null_mean: Tensor
    null_sd: Tensor
    p_value: Tensor
    checked: list[list[int]]
    checked_for: list[str]
    accuracy: Tensor
    accuracy_without: Tensor
    exact: float
    exact_without: Tensor
    n_steps: list[int]
    n_traces: int

    def link(self, link: str) -> int:
        """Return the index of a link; BadInput if it was not measured."""
        if link not in self.links:
            raise BadInput(f"Link {link!r} was not measured on these traces; measured: {', '.join(self.links)}.")
        return self.links.index(link)

    def ranking(self, link: str = "input") -> list[Head]:
        """Return every (layer, head), highest score first; ties keep the order of the heads."""
        scores = self.score[self.link(link)]
        _, order = scores.flatten().sort(descending=True, stable=True)
        return [(int(i) // scores.shape[1], int(i) % scores.shape[1]) for i in order]

    def above_chance(self, link: str = "input", level: float = 0.05) -> list[Head]:
        """Return the heads with a p-value below `level`, highest score first."""
        k = self.link(link)
        return [head for head in self.ranking(link) if float(self.p_value[k][head]) < level]

    def summary(self) -> str:
        """Return the best head of each link, with its score and p-value, one line per link."""
        return "\n".join(self._line(link) for link in self.links)

    def _line(self, link: str) -> str:
        k, best = self.link(link), self.ranking(link)[0]
        shown = (
            f"{link}: L{best[0]}H{best[1]} {float(self.score[k][best]):.2f} (shuffled "
            f"{float(self.null_mean[k][best]):.2f}, p {float(self.p_value[k][best]):.3f}); "
            f"{len(self.above_chance(link))} of {self.score[k].numel()} heads above chance"
        )
        losses = [
            float(self.accuracy[k] - self.accuracy_without[c, k])
            for c, head in enumerate(self.checked)
            if tuple(head) == best and self.checked_for[c] == link
        ]
        return f"{shown}; without it {losses[0]:+.2f} accuracy lost." if losses else f"{shown}."

    def ranked(self, link: str = "input", title: str | None = None) -> Ranked:
        """Return every head with its score and null, best first, in the form that the figures take."""
        from chainwright.figures import Ranked

        k, heads = self.link(link), self.ranking(link)
        maps = (self.score, self.null_mean, self.null_sd)
        return Ranked(link if title is None else title, heads, *([float(m[k][head]) for head in heads] for m in maps))

    def plot(self) -> Figure:
        """Return the best heads of every link next to their scores with shuffled steps."""
        from chainwright import figures

        return figures.head_ranking([self.ranked(link) for link in self.links], columns=3)

    def to_frame(self) -> pa.Table:
        """Return one row per link and head; `accuracy_lost` is None where the head was not silenced."""
        silenced = {tuple(head): c for c, head in enumerate(self.checked)}
        rows = []
        for k, link in enumerate(self.links):
            for rank, head in enumerate(self.ranking(link)):
                c = silenced.get(head)
                rows.append(
                    {
                        "link": link,
                        "rank": rank + 1,
                        "layer": head[0],
                        "head": head[1],
                        **{name: float(getattr(self, name)[k][head]) for name in MAPS},
                        "accuracy_lost": None if c is None else float(self.accuracy[k] - self.accuracy_without[c, k]),
                    }
                )
        return pa.Table.from_pylist(rows)


@register("finding", "IterationOverlap")
@dataclass(frozen=True, kw_only=True)
class IterationOverlap(Finding):
    """How far the best iteration heads are also the heads that right results depend on.

    Attributes:
        link: The link that ranks the iteration heads.
        n: Heads taken from each ranking.
        iteration, processing: The heads, best first, as [layer, head].
        shared: Those in both.
        expected: Number shared by chance.
        p_value: Probability of sharing as many or more by chance (hypergeometric).
        rank_correlation: Spearman's, over all heads.
        rank_p_value: Its p-value.
    """

    link: str
    n: int
    iteration: list[list[int]]
    processing: list[list[int]]
    shared: list[list[int]]
    expected: float
    p_value: float
    rank_correlation: float
    rank_p_value: float

    def summary(self) -> str:
        """Return the overlap in a sentence."""
        return (
            f"{len(self.shared)} of the {self.n} best heads by {self.link!r} are among the {self.n} that right results "
            f"lose most without ({self.expected:.1f} by chance, p {self.p_value:.3f}); rank correlation over all heads "
            f"{self.rank_correlation:+.2f} (p {self.rank_p_value:.3f})."
        )

    def to_frame(self) -> pa.Table:
        """Return one row per head in either ranking."""
        every = sorted({tuple(head) for head in (*self.iteration, *self.processing)})
        return pa.Table.from_pylist(
            [
                {
                    "layer": layer,
                    "head": head,
                    "is_iteration": [layer, head] in self.iteration,
                    "is_processing": [layer, head] in self.processing,
                }
                for layer, head in every
            ]
        )
