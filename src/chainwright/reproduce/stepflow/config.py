"""The settings of the StepFlow study and its ways of decoding."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from chainwright import tasks
from chainwright._errors import BadInput, unknown_name

PLAIN = "none"
REPAIRS = ("both", "bridge", "momentum", "auto layers", "tuned")
CONTROLS = ("planted", "planted, bridge", "planted, auto layers")
# where a model's chains are sometimes right and sometimes wrong
HOPS: Mapping[str, Mapping[str, Sequence[int]]] = {
    "reasoner": {"parity": (12,), "clf": (13,), "moas": (12,)},
    "compass": {"compass": (14, 17, 20)},
}


@dataclass(frozen=True)
class ReproduceStepFlowConfig:
    """Everything that the study depends on besides the model's weights.

    Attributes:
        model: Name, folder or Hub id, as it was asked for.
        hops: Hop counts of each task.
        n: Problems a (task, hops, seed).
        seeds: Seeds of the problems.
        tune_n: Problems a (task, hops) to tune on.
        tune_seed: Their seed, none of `seeds`.
        taus: Floors that tuning tries, in every single layer.
        alphas: Strengths of the momentum that tuning tries, in every single layer.
        measured_n: Problems a (task, hops), of the same seed, whose traces are measured to choose layers.
        n_caused: Traces a task whose step pairs are cut.
        n_pairs: Step pairs a task that are cut.
        samples: Numbers of samples of self-consistency.
        temperature: At which they are drawn.
        control_layer: Where lock-in is planted; None leaves the control out.
        control_strength: What is subtracted from the scores there.
        control_tau: The floor of the bridge that is to mend it.
        control_hops: Hop count of the control's problems, which the model solves when nothing is planted.

    Raises:
        BadInput: A value that could not be run.
    """

    model: str
    hops: Mapping[str, Sequence[int]]
    n: int = 30
    seeds: Sequence[int] = (11, 12, 13)
    tune_n: int = 24
    tune_seed: int = 100
    taus: Sequence[float] = (0.15, 0.3, 0.6, 0.8)
    alphas: Sequence[float] = (0.06,)
    measured_n: int = 100
    n_caused: int = 12
    n_pairs: int = 240
    samples: Sequence[int] = (2, 4, 8)
    temperature: float = 0.7
    control_layer: int | None = 2
    control_strength: float = 8.0
    control_tau: float = 0.6
    control_hops: int = 8
    rendering: tasks.Rendering = "short"

    def __post_init__(self) -> None:
        """Refuse what could not be run."""
        if unknown := [task for task in self.hops if task not in tasks.known()]:
            raise unknown_name("task", unknown[0], tasks.known())
        if not self.hops or not self.seeds or min(self.n, self.tune_n, self.measured_n) < 1:
            raise BadInput("A study of StepFlow needs a task with hops, a seed, and at least one problem of each kind.")
        if self.tune_seed in self.seeds:
            raise BadInput(f"tune_seed {self.tune_seed} is one of the test seeds; do not tune on test problems.")

    def record(self) -> dict[str, Any]:
        """Return the config as plain JSON values."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain
