"""The settings of the TCR study, its ways of decoding, and the units that their traces are in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from chainwright import tasks
from chainwright._errors import BadInput, unknown_name
from chainwright.repair.tcr.config import Decision

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


@dataclass(frozen=True)
class ReproduceTCRConfig:
    """Everything that the study depends on besides the model's weights.

    Attributes:
        model: Name, folder or Hub id, as it was asked for.
        hops: Hop counts of each task that is decoded.
        n: Problems a (task, hops, seed).
        seeds: Seeds of the problems that the figures come from.
        ways: Ways of decoding (see `WAYS`); the first is what the others are compared with.
        variants: Knockouts that the ablations look at: at "all" positions, the "last", or "half" of a head at all.
        fit_hops: Hop counts of the tasks that are fitted on; the others are held out.
        fit_n: Problems a (task, hops) to fit and tune on.
        fit_seed: Their seed, which is none of `seeds`.
        rendering: "short" for models trained by Chainwright, "natural" for instruction models.
        tau: Entropy threshold of the entropy detector, nats.
        decision: How the fitted repair decides, "verify" or "vote" (see `TCRConfig`).
        repair: A repair to study instead of fitting one; None fits.
        also: Further TCR repairs that are decoded with as they are, each a way under its name (the last part of a
            folder's). Their selectors join the ablations where their candidate heads are the same.

    Raises:
        BadInput: A value that could not be run.
    """

    model: str
    hops: Mapping[str, Sequence[int]]
    n: int = 8
    seeds: Sequence[int] = (11, 12, 13)
    ways: Sequence[str] = WAYS
    variants: Sequence[str] = VARIANTS
    fit_hops: Mapping[str, Sequence[int]] = field(default_factory=dict)
    fit_n: int = 80
    fit_seed: int = 100
    rendering: tasks.Rendering = "short"
    tau: float = 0.3
    decision: Decision = "verify"
    repair: str | None = None
    also: Sequence[str] = ()
    temperature: float = 0.0
    max_new_tokens: int | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        """Refuse what could not be run, before anything is."""
        if unknown := [t for t in (*self.hops, *self.fit_hops) if t not in tasks.names()]:
            raise unknown_name("task", unknown[0], tasks.names())
        if unknown := [way for way in self.ways if way not in WAYS]:
            raise unknown_name("way of decoding", unknown[0], WAYS)
        if unknown := [v for v in self.variants if v not in VARIANTS]:
            raise unknown_name("variant", unknown[0], VARIANTS)
        if self.rendering != "short" and (gold := [way for way in self.ways if way in GOLD]):
            raise BadInput(
                f"{gold[0]!r} cannot be run in the {self.rendering} rendering: {NO_GOLD} Leave it out (--ways)."
            )
        if self.rendering != "short" and self.variants:
            raise BadInput(
                f"Ablations cannot be run in the {self.rendering} rendering: {NO_GOLD} Leave the variants out."
            )
        if self.decision not in get_args(Decision):
            raise unknown_name("decision", self.decision, get_args(Decision))
        names = self.all_ways()
        if twice := [name for i, name in enumerate(names) if name in names[:i]]:
            raise BadInput(f"{twice[0]!r} names two ways of decoding; give each once, or rename a repair's folder.")
        if not self.cells() or not self.seeds or not self.ways:
            raise BadInput("A study of TCR needs at least one task with hops, one seed and one way of decoding.")
        if self.repair is None and not self.fit_hops:
            raise BadInput("Without a repair one is fitted, for which at least one task with hops is needed.")
        if self.repair is not None and "best single head" in self.ways:
            raise BadInput(
                "'best single head' is chosen by figures that only a fit gives, and a repair was named; leave that way "
                "out (--ways or --quick), or leave --repair out."
            )
        if self.fit_seed in self.seeds:
            raise BadInput(f"fit_seed {self.fit_seed} is one of the test seeds; problems must not be used for both.")
        for name in ("n", "fit_n"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} must be at least 1; got {getattr(self, name)}.")

    def record(self) -> dict[str, Any]:
        """Return the config as plain JSON values."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def all_ways(self) -> list[str]:
        """Return the ways of decoding, those of further repairs last."""
        return [*self.ways, *(Path(name).name for name in self.also)]

    def cells(self) -> list[tuple[str, int]]:
        """Return every (task, hops), tasks in their usual order."""
        return [(task, int(h)) for task in tasks.names() if task in self.hops for h in sorted(set(self.hops[task]))]


def runs_of(config: ReproduceTCRConfig, way: str) -> list[str]:
    """Return the units with the traces of a way of decoding."""
    names = dict.fromkeys(task for task, _ in config.cells())
    return [f"runs/{slug_of(way)}/{task}-{seed}" for task in names for seed in config.seeds]


def slug_of(way: str) -> str:
    """Return a way's name as part of a unit's id."""
    return way.replace(", ", "-").replace(" ", "-")
