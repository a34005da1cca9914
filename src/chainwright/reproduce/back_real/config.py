"""The settings of the study of back attention beside a pretrained model; importing them does not import PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from chainwright._config import Config
from chainwright._errors import BadInput
from chainwright.studies.config import Count, Place, Seeds

Kind = Literal["facts", "arithmetic", "word-problems"]


class ReproduceBackRealConfig(Config):
    """Everything that the study depends on besides the model's weights; see the fields' descriptions."""

    model: Place = Field(default="smollm2", description="A pretrained model, which stays frozen.")
    kind: Kind = Field(
        default="facts", description="Two-hop 'facts', one-digit composite 'arithmetic', or 'word-problems' from files."
    )
    files: Sequence[str] = Field(default=(), description="Files of word problems, such as MultiArith and SVAMP.")
    source: int = Field(default=6, ge=0, description="Source layer of every variant outside of the sweep.")
    sweep: Sequence[int] = Field(default=(), description="Other source layers, on the first seed alone.")
    seeds: Seeds = Field(default=(0,), description="Seeds of split and training of back attention and of LoRA.")
    d_back: Count = Field(default=64, description="Size of queries, keys and values.")
    every: Count = Field(default=4, description="Of the depths above the source, every how many are read.")
    start: float = Field(default=0.1, ge=0, description="Size of what is written before the first step; see fit.")
    n_steps: Count = Field(default=60, description="Steps of each fit.")
    batch_size: Count = Field(default=8, description="Rows per step.")
    lr: float = Field(default=2e-3, gt=0, description="Highest learning rate of back attention.")
    n: Count = Field(default=200, description="Maximum number of held-out problems of each part.")

    @model_validator(mode="after")
    def _has_files(self) -> Self:
        if (self.kind == "word-problems") != bool(self.files):
            raise BadInput(
                "Word problems come from files, and nothing else does: pass --file with --kind word-problems."
            )
        if self.source in self.sweep:
            raise BadInput(f"The sweep's layers are those besides the source; {self.source} is in both.")
        return self
