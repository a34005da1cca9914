"""The settings of the study of logit flow; importing them does not import PyTorch."""

from __future__ import annotations

from pydantic import Field

from chainwright._config import Config
from chainwright.studies.config import Count, Place


class ReproduceLogitFlowConfig(Config):
    """Everything that the study depends on besides the model's weights; see the fields' descriptions."""

    model: Place = Field(
        default="smollm2", description="A pretrained model, asked real facts, or one of a made-up world."
    )
    n: Count = Field(default=100, description="Maximum number of answers of each kind that are followed.")
    seed: int = Field(default=0, description="Decides which, where there are more.")
