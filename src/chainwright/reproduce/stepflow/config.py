"""The settings of the StepFlow study and its ways of decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

from pydantic import Field, model_validator

from chainwright._errors import BadInput
from chainwright.studies.config import CellsConfig, Count, Seeds, Temperature

PLAIN = "none"
REPAIRS = ("both", "bridge", "momentum", "auto layers", "auto heads", "tuned")
CONTROLS = ("planted", "planted, bridge", "planted, auto layers")
# where a model's chains are sometimes right and sometimes wrong
HOPS: Mapping[str, Mapping[str, Sequence[int]]] = {
    "reasoner": {"parity": (12,), "clf": (13,), "moas": (12,)},
    "compass": {"compass": (14, 17, 20)},
    "smollm2-hops": {"parity": (10,), "clf": (8,)},
}


class ReproduceStepFlowConfig(CellsConfig):
    """Everything that the study depends on besides the model's weights; see the fields' descriptions.

    Raises:
        BadInput: A value that could not be run.
    """

    n: Count = Field(default=30, description="Problems per task, hop count and seed.")
    seeds: Seeds = Field(default=(11, 12, 13), description="Seeds of the problems.")
    tune_n: Count = Field(default=24, description="Problems per task and hop count to tune on.")
    tune_seed: int = Field(default=100, description="Seed of the problems to tune on, none of seeds.")
    taus: Sequence[float] = Field(
        default=(0.15, 0.3, 0.6, 0.8), description="Floors that tuning tries, in every single layer."
    )
    alphas: Sequence[float] = Field(
        default=(0.06,), description="Strengths of the momentum that tuning tries, in every single layer."
    )
    tune_layers: int | None = Field(
        default=None,
        ge=0,
        description="Single layers that tuning tries, those where wrong traces lack most attention on the question, "
        "besides the published quarters (default: every layer of models with up to 8, else 2).",
    )
    measured_n: Count = Field(
        default=100, description="Problems per task and hop count whose traces are measured to choose layers."
    )
    n_caused: Count = Field(default=12, description="Traces per task whose step pairs are cut.")
    n_pairs: Count = Field(default=240, description="Step pairs per task that are cut.")
    samples: Sequence[Count] = Field(default=(2, 4, 8), description="Numbers of samples of self-consistency.")
    temperature: Temperature = Field(default=0.7, description="Temperature at which the samples are drawn.")
    control_layer: int | None = Field(
        default=2, description="Layer in which lock-in is planted for the positive control; none skips the control."
    )
    control_strength: float = Field(default=8.0, description="What is subtracted from the attention scores there.")
    control_tau: float = Field(default=0.6, description="Floor of the bridge that is to repair it.")
    control_hops: Count = Field(
        default=8, description="Hop count of the control's problems, which the model solves when nothing is planted."
    )

    @model_validator(mode="after")
    def _tunes_on_other_problems(self) -> Self:
        if self.tune_seed in self.seeds:
            raise BadInput(f"tune_seed {self.tune_seed} is one of the test seeds; do not tune on test problems.")
        return self
