"""The settings of TCR: how a fitted one decodes, and which problems it is fitted on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import Field

from chainwright._config import Config
from chainwright._errors import BadInput
from chainwright.models.capture import Positions

Decision = Literal["vote", "verify"]


@dataclass(frozen=True)
class TCRConfig:
    """How a fitted TCR decodes.

    Attributes:
        decision: "vote": heads ranked by the selector vote, as in the paper. "verify": all candidate heads are
            silenced, each alone, and the verifier decides between the model's first and second choice.
        n_votes: Heads that are silenced at a flagged token, each alone, for a vote.
        positions: Silence them at all positions of the row's past and present, or only at the last.
        scale: What their outputs are multiplied by: 0 silences, 0.5 halves.
        max_bytes: What the cached runs without single heads may take together, besides the pass that is running.

    Raises:
        BadInput: A value outside its range.
    """

    n_votes: int = 3
    positions: Positions = "all"
    scale: float = 0.0
    max_bytes: int = 2**30
    decision: Decision = "vote"

    def __post_init__(self) -> None:
        """Refuse what could not be decoded with."""
        for name in ("n_votes", "max_bytes"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} must be at least 1; got {getattr(self, name)}.")
        if self.positions not in get_args(Positions):
            raise BadInput(f"positions must be 'all' or 'last'; got {self.positions!r}.")
        if self.decision not in get_args(Decision):
            raise BadInput(f"decision must be 'vote' or 'verify'; got {self.decision!r}.")


class FitProblems(Config):
    """The problems that a TCR is fitted and tuned on; figures are taken from others."""

    task: str = Field(default="parity,mdm,llc,clf,moas", description="Tasks to fit on, separated by commas.")
    n: int = Field(default=80, ge=1, description="Problems per task and hop count.")
    seed: int = Field(default=100, description="Seed of the problems, none of the test seeds.")
