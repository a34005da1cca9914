"""The circuit of an iterative task in a small transformer, and how it forms while the model trains.

A sequence is `[task] x_1..x_n [end of input] s_1..s_n`; e = n + 1 is where the input ends. Every head of every layer is
measured for two patterns:

- end-of-input: queries e+1..2e-1 (the written states) attend to key e, which shows how long the input was;
- diagonal: query e+j, which is about to write s_(j+1), attends to key 1+j, its input, for j = 0..e-2.

Each has a score (mean attention there, the paper's "peakiness"), the share of entries above one half, and an
invariance: 1 minus the standard deviation over sequences of each entry, averaged over entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
import torch
from torch import Tensor

from chainwright._errors import BadInput, unknown_name
from chainwright._finding import Finding
from chainwright._registry import register
from chainwright.edits import Head

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from chainwright.figures import HeatMap, Run

View = Literal["curves", "maps"]
THRESHOLD = 0.5
KINDS = ("end_of_input", "diagonal")
MEASURES = ("score", "thresholded", "invariance")


@dataclass(frozen=True)
class CircuitMeasures:
    """The measures of every head for one length; each `[L, H]`.

    Attributes:
        end_of_input: Mean attention of the written states on the end of the input.
        end_of_input_thresholded: Share of those entries above one half.
        end_of_input_invariance: 1 minus their standard deviation over sequences, averaged over positions.
        diagonal: Mean attention from where s_t is about to be written to x_t.
        diagonal_thresholded: As above, for the diagonal.
        diagonal_invariance: As above, for the diagonal.
    """

    end_of_input: Tensor
    end_of_input_thresholded: Tensor
    end_of_input_invariance: Tensor
    diagonal: Tensor
    diagonal_thresholded: Tensor
    diagonal_invariance: Tensor

    def stacked(self) -> Tensor:
        """Return all measures as `[2 kinds, 3 measures, L, H]`, in the order of `KINDS` and `MEASURES`."""
        flat = [
            self.end_of_input,
            self.end_of_input_thresholded,
            self.end_of_input_invariance,
            self.diagonal,
            self.diagonal_thresholded,
            self.diagonal_invariance,
        ]
        return torch.stack(flat).reshape(len(KINDS), len(MEASURES), *self.diagonal.shape)


def circuit_measures(attention: Tensor, length: int) -> CircuitMeasures:
    """Return the measures of every head from stored attention.

    Args:
        attention: Attention weights of N sequences of one length, `[L, N, H, T, T]` as `capture` returns them; T is at
            least 2 n + 2, later positions are ignored.
        length: n, the number of inputs.

    Raises:
        BadInput: The attention has the wrong shape, or is too short for the length.

    Note:
        The standard deviation is that of the N sequences themselves (divided by N), so it is 0 for one sequence.

    Source: Iteration Head (arXiv 2406.02128), section 3 and appendix.
    """
    if attention.dim() != 5 or attention.shape[-1] != attention.shape[-2]:
        raise BadInput(f"attention must have the shape [L, N, H, T, T]; got {list(attention.shape)}.")
    if length < 1 or attention.shape[-1] < 2 * length + 2:
        raise BadInput(
            f"A sequence of length {length} has {2 * length + 2} tokens up to its last state, and a length is at "
            f"least 1; the attention covers {attention.shape[-1]} tokens."
        )
    end, j = length + 1, torch.arange(length, device=attention.device)
    at_end = attention[..., end + 1 : 2 * end, end]
    diagonal = attention[..., end + j, 1 + j]
    return CircuitMeasures(*_three(at_end), *_three(diagonal))


def _three(entries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return score, thresholded score and invariance, `[L, H]` each, of entries `[L, N, H, n]`."""
    entries = entries.double()
    spread = entries.std(dim=1, unbiased=False).mean(-1)
    return entries.mean((1, 3)).float(), (entries > THRESHOLD).double().mean((1, 3)).float(), (1 - spread).float()


@register("finding", "Emergence")
@dataclass(frozen=True, kw_only=True)
class Emergence(Finding):
    """Accuracy and circuit of a small model at every checkpoint of its training.

    C checkpoints, K tasks, N lengths, L layers, H heads, T tokens of the longest sequence.

    Attributes:
        steps: Optimizer steps done at each checkpoint, `[C]`; the first is 0, before training.
        loss: Mean training loss since the previous checkpoint, `[C]`; NaN at the first.
        tasks: Names of the tasks.
        lengths: The lengths that have held-out sequences.
        accuracy: Share of held-out sequences with every state and the end right, `[C, K, N]`.
        token_accuracy: Share of their states that are right, given the right ones before, `[C, K, N]`.
        measures: `[C, K, N, 2, 3, L, H]`: kinds of head (end-of-input, diagonal) by measures (score, thresholded,
            invariance). NaN without a chain of thought, which writes no states from which to attend.
        maps: Attention of every head, averaged over the held-out sequences of the longest length,
            `[C, K, L, H, T, T]`.
        n_sequences: Held-out sequences of each task and length, `[K, N]`.
    """

    steps: Tensor
    loss: Tensor
    tasks: list[str]
    lengths: list[int]
    accuracy: Tensor
    token_accuracy: Tensor
    measures: Tensor
    maps: Tensor
    n_sequences: Tensor

    def exact(self, task: str | None = None) -> Tensor:
        """Return the share of exact sequences of a task at each checkpoint, mean over lengths, `[C]`."""
        return self.accuracy[:, self._task(task)].mean(-1)

    def scores(self, kind: str, task: str | None = None, measure: str = "score") -> Tensor:
        """Return a measure of a kind of head at each checkpoint, mean over lengths, `[C, L, H]`."""
        return self.measures[:, self._task(task), :, KINDS.index(kind), MEASURES.index(measure)].mean(1)

    def best_head(self, kind: str, task: str | None = None) -> Head:
        """Return the (layer, head) with the highest score of a kind at the last checkpoint."""
        last = self.scores(kind, task)[-1].nan_to_num(0.0)
        index = int(last.flatten().argmax())
        return index // last.shape[1], index % last.shape[1]

    def curve(self, kind: str, task: str | None = None, measure: str = "score") -> Tensor:
        """Return a measure, at every checkpoint, of the head that is best at the last one, `[C]`."""
        layer, head = self.best_head(kind, task)
        return self.scores(kind, task, measure)[:, layer, head]

    def first_step(self, level: float, task: str | None = None) -> int | None:
        """Return the first step at which the share of exact sequences reached `level`, or None."""
        reached = (self.exact(task) >= level).nonzero()
        return int(self.steps[reached[0, 0]]) if len(reached) else None

    def _task(self, task: str | None) -> int:
        name = self.tasks[0] if task is None else task
        if name not in self.tasks:
            raise BadInput(f"There are no measures of task {name!r}; measured: {', '.join(self.tasks)}.")
        return self.tasks.index(name)

    @property
    def label(self) -> str:
        """Return a name for this training: task, length, seed, and every setting that is not the default."""
        config = self.config
        parts = [" and ".join(self.tasks), f"length {config.get('max_length', self.lengths[-1])}"]
        if not config.get("chain_of_thought", True):
            parts.append("no chain")
        if config.get("start_from"):
            parts.append("after another task")
        if config.get("positions", "learned") != "learned":
            parts.append(f"positions {config['positions']}")
        parts += [
            f"{config[name]} {unit}" for name, unit in (("n_layers", "layers"), ("d_model", "wide")) if name in config
        ]
        return ", ".join([*parts, f"seed {config.get('seed', 0)}"])

    @property
    def has_circuit(self) -> bool:
        """Return whether the model writes states, from which the circuit attends: not without a chain of thought."""
        return not bool(self.measures.isnan().all())

    def run(self, task: str | None = None) -> Run:
        """Return the curves of a task in the form that the figures take."""
        from chainwright.figures import Run

        curves = {"exact": self.exact(task).tolist()}
        if self.has_circuit:
            curves |= {kind: self.curve(kind, task).tolist() for kind in KINDS}
        return Run(self.label, self.steps.tolist(), curves)

    def plot(self, view: View = "curves", task: str | None = None) -> Figure:
        """Return a figure of one task.

        Args:
            view: "curves" for accuracy and both scores by step, "maps" for the attention of both heads with a slider
                over checkpoints.
            task: Which task; None for the first.

        Raises:
            BadInput: The view or task is unknown, or "maps" of a training without a chain of thought.
        """
        from chainwright import figures

        name = self.tasks[self._task(task)]
        if view == "curves":
            return figures.emergence_curves({name: [self.run(task)]})
        if view != "maps":
            raise unknown_name("view", view, ("curves", "maps"))
        if not self.has_circuit:
            raise BadInput("This model was trained without a chain of thought, so there is no circuit to draw.")
        return figures.circuit_maps(self._heat_maps(task), self.steps.tolist(), self.token_strs)

    def _heat_maps(self, task: str | None) -> list[HeatMap]:
        from chainwright.figures import HeatMap

        heads = {kind: self.best_head(kind, task) for kind in KINDS}
        maps = self.maps[:, self._task(task)]
        return [
            HeatMap(f"L{layer}H{head}, {kind.replace('_', '-')} head", maps[:, layer, head].round(decimals=3).tolist())
            for kind, (layer, head) in heads.items()
        ]

    @property
    def token_strs(self) -> list[str]:
        """Return a label for each position of a sequence of the greatest length: x1, =, s1, ..."""
        n = self.lengths[-1]
        states = [f"s{t}" for t in range(1, n + 1)] if self.has_circuit else [f"s{n}"]
        return ["task", *(f"x{t}" for t in range(1, n + 1)), "=", *states, "end"]

    def summary(self) -> str:
        """Return the accuracy and the best heads at the last checkpoint, one line per task."""
        return "\n".join(self._line(task) for task in self.tasks)

    def _line(self, task: str) -> str:
        shown = (
            f"{task}: {float(self.exact(task)[-1]):.3f} of held-out sequences exact after {int(self.steps[-1])} steps"
        )
        if not self.has_circuit:
            return f"{shown}, without a chain of thought."
        heads = []
        for kind in KINDS:
            layer, head = self.best_head(kind, task)
            heads.append(f"{kind.replace('_', '-')} L{layer}H{head} {float(self.curve(kind, task)[-1]):.2f}")
        return f"{shown}; {', '.join(heads)}."

    def to_frame(self) -> pa.Table:
        """Return one row per checkpoint, task and length, with the measures of the heads that are best at the end."""
        return pa.Table.from_pylist(
            [
                self._row(c, task, k, i)
                for c in range(len(self.steps))
                for k, task in enumerate(self.tasks)
                for i in range(len(self.lengths))
            ]
        )

    def _row(self, c: int, task: str, k: int, i: int) -> Mapping[str, float | int | str]:
        row: dict[str, float | int | str] = {
            "step": int(self.steps[c]),
            "loss": float(self.loss[c]),
            "task": task,
            "length": self.lengths[i],
            "n": int(self.n_sequences[k, i]),
            "accuracy": float(self.accuracy[c, k, i]),
            "token_accuracy": float(self.token_accuracy[c, k, i]),
        }
        for which, kind in enumerate(KINDS):
            head = self.best_head(kind, task)
            row[f"{kind}_head"] = f"L{head[0]}H{head[1]}"
            for m, measure in enumerate(MEASURES):
                row[f"{kind}_{measure}"] = float(self.measures[c, k, i, which, m, head[0], head[1]])
        return row


__all__ = ["KINDS", "MEASURES", "THRESHOLD", "CircuitMeasures", "Emergence", "circuit_measures"]
