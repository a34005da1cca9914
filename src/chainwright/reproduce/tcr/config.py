"""The settings of the TCR study, its ways of decoding, and the units that their traces are in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from chainwright import tasks
from chainwright._config import Positions
from chainwright._errors import BadInput, unknown_name
from chainwright.prompts.asking import Asking
from chainwright.repair.tcr.config import CandidateConfig, Decision, FitConfig, FitProblems
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
_LATER = ("asking", "detector", "positions", "n_contexts", "n_lessons")


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
    detector: Literal["trained", "lens", "entropy"] = Field(
        default=FitConfig().detector,
        description="Without a repair: the detector of the fitted one, as in `fit tcr`.",
    )
    positions: Positions = Field(
        default=CandidateConfig().positions,
        description="Without a repair: silence heads at all positions, or only at the last.",
    )
    n_contexts: Count = Field(
        default=CandidateConfig().n_contexts,
        description="Without a repair: wrong, and as many right, contexts of each key error type that locate heads.",
    )
    n_lessons: Count = Field(
        default=CandidateConfig().n_lessons,
        description="Without a repair: lessons on which the errors that each located head fixes are counted.",
    )
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
        description="Further repairs to decode with, each a way named after its folder: 'A+B' decodes with both, and "
        "'stepflow' is StepFlow with its published settings. Selectors of TCR repairs join the ablations where their "
        "candidate heads are the same.",
    )
    asking: Asking | None = Field(default=None, description="How problems are asked; default: as they are written.")
    temperature: Temperature = 0.0
    max_new_tokens: NewTokens = None
    batch_size: BatchSize = None

    @model_validator(mode="after")
    def _can_be_run(self) -> Self:
        self._check_ways()
        if self.rendering != "short" and self.variants:
            raise BadInput(
                f"Ablations cannot be run in the {self.rendering} rendering: {NO_GOLD} Leave the variants out."
            )
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
        if self.rendering != "short" and "none" not in self.ways and (gold := [w for w in self.ways if w in GOLD]):
            raise BadInput(
                f"{gold[0]!r} flags the first errors of the model alone, which in the {self.rendering} rendering "
                "only decoding shows; add the way 'none' (--ways), or leave this one out."
            )
        names = self.all_ways()
        if twice := [name for i, name in enumerate(names) if name in names[:i]]:
            raise BadInput(f"{twice[0]!r} names two ways of decoding; pass each once, or rename a repair's folder.")

    def record(self) -> dict[str, Any]:
        """Return every setting as plain values; those that came later only if they are set.

        So a study that was begun before is resumed.
        """
        usual = {name: type(self).model_fields[name].default for name in _LATER}
        return {k: v for k, v in super().record().items() if k not in usual or v != usual[k]}

    @property
    def is_gold_known(self) -> bool:
        """Return whether a problem has one right chain, so that every token of it can be judged."""
        return self.rendering == "short"

    def fitting(self) -> FitConfig:
        """Return how a repair is fitted."""
        candidates = CandidateConfig(
            positions=self.positions,
            n_contexts=self.n_contexts,
            n_lessons=self.n_lessons,
            # asked to locate heads on fewer errors, it takes types that have so few
            min_errors=min(CandidateConfig().min_errors, self.n_contexts),
        )
        return FitConfig(decision=self.decision, detector=self.detector, candidates=candidates)

    def all_ways(self) -> list[str]:
        """Return the ways of decoding, those of further repairs last."""
        return [*self.ways, *(way_of(name) for name in self.also)]


def runs_of(config: ReproduceTCRConfig, way: str) -> list[str]:
    """Return the units with the traces of a way of decoding."""
    names = dict.fromkeys(task for task, _ in config.cells())
    return [f"runs/{slug_of(way)}/{task}-{seed}" for task in names for seed in config.seeds]


def slug_of(way: str) -> str:
    """Return a way's name as part of a unit's id."""
    return way.replace(", ", "-").replace(" ", "-").replace("+", "-and-")


def way_of(names: str) -> str:
    """Return the way of decoding with a further repair, or with several: "runs/a+tcr-reasoner" is "a+tcr-reasoner"."""
    return "+".join(Path(name.strip()).name for name in names.split("+"))


def fit_runs_of(config: ReproduceTCRConfig) -> list[str]:
    """Return the units with the traces that a repair is fitted on, one per task; none where a repair is passed."""
    return [] if config.repair is not None else [f"fit/{task}" for task in tasks.known() if task in config.fit_hops]


def role_units_of(config: ReproduceTCRConfig) -> list[str]:
    """Return the units with the head roles of each task that a repair is fitted on."""
    return [unit.replace("fit/", "roles/") for unit in fit_runs_of(config)]
