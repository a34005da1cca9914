"""What an instrument of a diagnosis is, and what it works with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedTokenizerBase

from chainwright._finding import Finding
from chainwright.studies.diagnosis.config import DiagnoseConfig
from chainwright.studies.plan import Job, Results


@dataclass(frozen=True)
class Bench:
    """The model, its tokenizer and the settings: what every instrument works with."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    config: DiagnoseConfig


class Instrument(ABC):
    """One measurement of a diagnosis.

    To add one, from inside or outside of the package, register a subclass under the kind "instrument"; its name may
    then be among `DiagnoseConfig.instruments`. What it writes is a part of the study, and what `findings` returns is a
    part of the diagnosis and its report.

    Attributes:
        name: The name it is registered under.
        needs: Instruments whose results it reads.
        groups: What its unit ids begin with; no other instrument's may begin so.
        order: Where its units come among those of other instruments, lower ones first; they count up in tens.
    """

    name: str
    needs: tuple[str, ...] = ()
    groups: tuple[str, ...]
    order: int = 60

    def is_asked(self, config: DiagnoseConfig) -> bool:
        """Return whether a diagnosis has this instrument."""
        return self.name in config.instruments

    @abstractmethod
    def units(self, config: DiagnoseConfig, done: Results) -> list[str]:
        """Return the ids of its units that are computed already or can be, given the finished ones."""

    @abstractmethod
    def compute(self, bench: Bench, job: Job) -> None:
        """Compute one of its units; see `Plan.compute`."""

    @abstractmethod
    def title(self, config: DiagnoseConfig, unit: str) -> str:
        """Return the name that is shown for a unit while it is computed."""

    def findings(self, config: DiagnoseConfig, done: Results) -> list[Finding]:
        """Return its findings in a finished study; none if every unit was skipped."""
        return []
