"""The settings of the TCR study, its ways of decoding, and the units that their traces are in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from chainwright._errors import BadInput, unknown_name
from chainwright.repair.tcr.config import Decision, FitConfig, FitProblems
from chainwright.studies.config import BatchSize, CellsConfig, Count, Hops, NewTokens, Place, Seeds, Temperature

# what the quick profile runs
QUICK = ("none", "TCR", "TCR, vote", "TCR, entropy", "TCR, gold", "remove", "remove, gold", "random head")
WAYS = (
    "none",
    "TCR",
    "TCR, vote",
    "TCR, entropy",
    "TCR, gold",
    "best head, gold",
    "remove",
    "remove, entropy",
    "remove, gold",
    "random head",
    "best single head",
    "DoLa",
)
VARIANTS = ("all", "last", "half")
NO_GOLD = "they need right chains of one wording, which only the short rendering has."
GOLD = ("TCR, gold", "best head, gold", "remove, gold")


def ways_for(rendering: str, *, quick: bool) -> tuple[str, ...]:
    """Return the ways that can be run in a rendering: gold flags need the one right wording of the short one."""
    ways = QUICK if quick else WAYS
    return ways if rendering == "short" else tuple(way for way in ways if way not in GOLD)


class ReproduceTCRConfig(CellsConfig):
    """Everything that the study depends on besides the model's weights; see the fields' descriptions.

    Raises:
        BadInput: A value that could not be run.
    """

    n: Count = Field(default=8, description="Problems per task, hop count and seed.")
    seeds: Seeds = Field(default=(11, 12, 13), description="Seeds of the problems that the figures come from.")
    ways: Sequence[str] = Field(
        default=WAYS, description="Ways of decoding; the first is what the others are compared with."
    )
    variants: Sequence[str] = Field(
        default=VARIANTS,
        description="Knockouts of the ablations: at all positions, at the last, or half of a head at all of them.",
    )
    fit_hops: Hops = Field(default={}, description="Hop counts of the tasks to fit on; the other tasks are held out.")
    fit_n: Count = Field(
        default=FitProblems().n, description="Without a repair: problems per task and hop count to fit one on."
    )
    fit_seed: int = Field(default=FitProblems().seed, description="Seed of the problems to fit on, none of seeds.")
    tau: float = Field(default=0.3, description="Threshold of the entropy detector in nats.")
    decision: Decision = Field(
        default=FitConfig().decision,
        description="Without a repair: how the fitted one decides, by a verifier or by the paper's vote.",
    )
    repair: Place | None = Field(
        default=None, description="Study this repair instead of fitting one: a bundled name, a folder, or a Hub id."
    )
    also: Sequence[str] = Field(
        default=(),
        description="Further TCR repairs to decode with, each a way named after its folder. Their selectors join the "
        "ablations where their candidate heads are the same.",
    )
    temperature: Temperature = 0.0
    max_new_tokens: NewTokens = None
    batch_size: BatchSize = None

    @model_validator(mode="after")
    def _can_be_run(self) -> Self:
        self._check_ways()
        if self.rendering != "short":
            self._check_wording()
        if self.repair is None and not self.fit_hops:
            raise BadInput("Without a repair one is fitted, for which at least one task with hops is needed.")
        if self.repair is not None and "best single head" in self.ways:
            raise BadInput(
                "'best single head' is chosen by figures that only a fit gives, and a repair was passed; leave out "
                "that way (--ways or --quick) or --repair."
            )
        if self.fit_seed in self.seeds:
            raise BadInput(f"fit_seed {self.fit_seed} is one of the test seeds; problems must not be used for both.")
        return self

    def _check_ways(self) -> None:
        if unknown := [way for way in self.ways if way not in WAYS]:
            raise unknown_name("way of decoding", unknown[0], WAYS)
        if unknown := [v for v in self.variants if v not in VARIANTS]:
            raise unknown_name("variant", unknown[0], VARIANTS)
        if not self.ways:
            raise BadInput(f"A study of TCR needs at least one way of decoding; known: {', '.join(WAYS)}.")
        names = self.all_ways()
        if twice := [name for i, name in enumerate(names) if name in names[:i]]:
            raise BadInput(f"{twice[0]!r} names two ways of decoding; pass each once, or rename a repair's folder.")

    def _check_wording(self) -> None:
        """Refuse what needs right chains of one wording in a rendering that has many."""
        if gold := [way for way in self.ways if way in GOLD]:
            raise BadInput(
                f"{gold[0]!r} cannot be run in the {self.rendering} rendering: {NO_GOLD} Leave it out (--ways)."
            )
        if self.variants:
            raise BadInput(
                f"Ablations cannot be run in the {self.rendering} rendering: {NO_GOLD} Leave the variants out."
            )

    def all_ways(self) -> list[str]:
        """Return the ways of decoding, those of further repairs last."""
        return [*self.ways, *(Path(name).name for name in self.also)]


def runs_of(config: ReproduceTCRConfig, way: str) -> list[str]:
    """Return the units with the traces of a way of decoding."""
    names = dict.fromkeys(task for task, _ in config.cells())
    return [f"runs/{slug_of(way)}/{task}-{seed}" for task in names for seed in config.seeds]


def slug_of(way: str) -> str:
    """Return a way's name as part of a unit's id."""
    return way.replace(", ", "-").replace(" ", "-")
