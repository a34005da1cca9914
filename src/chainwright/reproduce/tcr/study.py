"""The experiments of the TCR paper as a study: every way of decoding on the same problems, and the ablations.

    repair                      the fitted repair, its candidate heads and what was measured while fitting
    runs/<way>/<task>-<seed>    traces of one way of decoding at every hop count, and its counts
    forced/<variant>            what single heads do at every token of the right chains of the same problems
    ablations                   the table of ablations, from the forced chains
    comparison                  the table of the ways

Fitting uses problems of `fit_seed`, of which every few are kept for tuning; the figures come from problems of `seeds`
alone. A chain of greedy decoding is right as a whole exactly if the model, put before each right prefix, chooses right
each time: so the ablations need no decoding.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from torch import nn
from transformers import PreTrainedTokenizerBase

from chainwright import tasks
from chainwright._errors import BadInput, unknown_name
from chainwright._files import read_json, write_json
from chainwright._finding import Finding
from chainwright.decode import generate
from chainwright.evaluation.comparison import compare
from chainwright.evaluation.flips import flips
from chainwright.models.anatomy import anatomy
from chainwright.models.load import load_as, provenance
from chainwright.prompts import prompt_ids
from chainwright.repair.base import Repair
from chainwright.repair.tcr.baselines import BestHead, DoLa, RemoveAndResample
from chainwright.repair.tcr.candidate_heads import Candidates
from chainwright.repair.tcr.detector import EntropyDetector, GoldDetector
from chainwright.repair.tcr.fit import FitConfig, fit_tcr_on_problems, look
from chainwright.repair.tcr.flag_log import NotingDetector
from chainwright.repair.tcr.repair import TCR, Decision
from chainwright.repair.tcr.selector import FixedSelector, NeverAbstains, RandomSelector, Selector
from chainwright.repair.tcr.token_repair import Detector
from chainwright.repair.tcr.training_data import lesson_ids, lessons_of
from chainwright.reproduce.tcr.ablations import ablation_rows, load_outcomes, save_outcomes
from chainwright.studies import Job, Plan, Results, Study
from chainwright.studies.manifest import Manifest
from chainwright.tasks.cells import sample_cells
from chainwright.traces import Trace, read_traces, write_traces

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


class ReproduceTCR(Plan):
    """The plan of the study."""

    kind, again = "reproduce tcr", "chainwright study run {folder}"

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, config: ReproduceTCRConfig):
        self.model = model
        self.tokenizer = tokenizer
        self.asked = config
        self.config = config.record()
        self.source = provenance(anatomy(model).model)

    @classmethod
    def resumed(cls, known: Manifest, *, device: str | None = None, trust_remote_code: bool = False) -> ReproduceTCR:
        """Return the plan of a study that was begun; loads its model."""
        loaded = load_as(known.model, device=device, trust_remote_code=trust_remote_code)
        return cls(loaded.model, loaded.tokenizer, ReproduceTCRConfig(**known.config))

    def units(self, done: Results) -> Sequence[str]:
        """Return the repair, then every run and variant, then the tables."""
        runs = [i for way in self.asked.all_ways() for i in runs_of(self.asked, way)]
        forced = [f"forced/{variant}" for variant in self.asked.variants]
        tables = [*(["ablations"] if forced else []), "comparison"]
        if not done.are_finished(["repair"]):
            return ["repair"]
        return ["repair", *runs, *forced, *(tables if done.are_finished([*runs, *forced]) else [])]

    def compute(self, job: Job) -> None:
        """Compute one unit."""
        kind, _, rest = job.unit.partition("/")
        if kind == "repair":
            self._fit(job)
        elif kind == "runs":
            self._run(job, rest)
        elif kind == "forced":
            self._force(job, rest)
        elif kind == "ablations":
            write_json(job.out / "rows.json", self._ablations(job.done))
        else:
            self._compare(job)

    def _ablations(self, done: Results) -> dict[str, list[dict[str, Any]]]:
        tcr = self._repair(done)
        others = {Path(name).name: TCR.from_pretrained(name) for name in self.asked.also}
        selectors = {"": tcr.selector, **{k: o.selector for k, o in others.items() if o.heads == tcr.heads}}
        found = {v: load_outcomes(done[f"forced/{v}"]) for v in self.asked.variants}
        return ablation_rows(found, tcr, selectors, self._candidates(done), self.asked.tau)

    def _fit(self, job: Job) -> None:
        if self.asked.repair is not None:
            found = Repair.from_pretrained(self.asked.repair)
            if not isinstance(found, TCR):
                raise BadInput(f"{self.asked.repair} is a {found.kind} repair; give one of kind tcr, or none to fit.")
            found.check_model(self.model)
            found.save_pretrained(job.out / "repair")
            return
        fitted = fit_tcr_on_problems(
            self.model,
            self.tokenizer,
            self._problems_to_fit(),
            config=FitConfig(decision=self.asked.decision),
            max_new_tokens=self.asked.max_new_tokens,
            tick=job.tick,
        )
        fitted.repair.save_pretrained(job.out / "repair")
        fitted.candidates.save(job.out / "candidates")
        write_json(job.out / "figures.json", fitted.figures)

    def _problems_to_fit(self) -> list[tasks.Problem]:
        asked = self.asked
        cells = {task: sorted(set(asked.fit_hops[task])) for task in tasks.names() if task in asked.fit_hops}
        return sample_cells(cells, asked.fit_n, asked.fit_seed, asked.rendering)

    def _repair(self, done: Results) -> TCR:
        return TCR.from_pretrained(done["repair"] / "repair")

    def _candidates(self, done: Results) -> Candidates | None:
        path = done["repair"] / "candidates"
        return Candidates.load(path) if path.exists() else None

    def _problems(self, task: str, seed: int) -> list[tasks.Problem]:
        counts = [hops for name, hops in self.asked.cells() if name == task]
        asked = self.asked
        return [p for hops in counts for p in tasks.sample(task, hops, asked.n, seed, rendering=asked.rendering)]

    def _run(self, job: Job, rest: str) -> None:
        slug, _, cell = rest.partition("/")
        way = next(w for w in self.asked.all_ways() if slug_of(w) == slug)
        task, _, seed = cell.partition("-")
        problems = self._problems(task, int(seed))
        repair = self._way(way, job.done, problems)
        noted = None if way == "DoLa" else NotingDetector.put_into(repair)  # which looks at every token
        traces = generate(
            self.model,
            self.tokenizer,
            problems,
            repair=repair,
            max_new_tokens=self.asked.max_new_tokens,
            batch_size=self.asked.batch_size,
            temperature=self.asked.temperature,
            seed=int(seed),
            progress=False,
        )
        write_traces(job.out / "traces.parquet", traces)
        if noted is not None:
            write_json(job.out / "flagged.json", noted.tokens(traces))
        # times differ from run to run; they are in the study's log
        counts = {} if repair is None else asdict(repair.cost)
        write_json(job.out / "counts.json", {k: v for k, v in counts.items() if isinstance(v, int)})

    def _way(self, way: str, done: Results, problems: list[tasks.Problem]) -> Repair | None:
        """Return the repair of a way of decoding."""
        if way == "none":
            return None
        if others := [name for name in self.asked.also if Path(name).name == way]:
            return TCR.from_pretrained(others[0])
        tcr = self._repair(done)
        if way == "DoLa":
            return DoLa(anatomy(self.model).n_layers, end_ids=tcr.end_ids)
        flagged_by, _, detectors = way.partition(", ")
        options: dict[str, Detector] = {
            "": tcr.detector,
            "vote": tcr.detector,
            "entropy": EntropyDetector(self.asked.tau),
        }
        if detectors == "gold":
            options["gold"] = gold_detector(self.tokenizer, problems)
        detector = options[detectors]
        if flagged_by == "remove":
            return RemoveAndResample(detector, layers=tcr.layers, end_ids=tcr.end_ids)
        if flagged_by == "best head":
            assert isinstance(detector, GoldDetector)
            return BestHead(tcr.heads, detector, end_ids=tcr.end_ids)
        return _with(tcr, detector, way, self._candidates(done))

    def _force(self, job: Job, variant: str) -> None:
        repair = self._repair(job.done)
        config = FitConfig(layers=repair.layers, scale=0.5 if variant == "half" else 0.0)
        candidates = replace(config.candidates, positions="last" if variant == "last" else "all")
        config = replace(config, candidates=candidates)
        traces = self._gold_traces(job.done)
        found = look(anatomy(self.model), lessons_of(self.tokenizer, traces), repair.heads, config, job.tick)
        save_outcomes(found, job.out)

    def _gold_traces(self, done: Results) -> list[Trace]:
        """Return the traces of the first way, which carry problems and prompts."""
        return self._traces(done, self.asked.ways[0])

    def _traces(self, done: Results, way: str) -> list[Trace]:
        return [trace for unit in runs_of(self.asked, way) for trace in read_traces(done[unit] / "traces.parquet")]

    def _flags(self, done: Results, way: str) -> list[list[int]] | None:
        """Return which response tokens a way looked at again, trace by trace; None for a way without a detector."""
        paths = [done[unit] / "flagged.json" for unit in runs_of(self.asked, way)]
        return [row for path in paths for row in read_json(path)] if all(p.exists() for p in paths) else None

    def _compare(self, job: Job) -> None:
        traces = {way: self._traces(job.done, way) for way in self.asked.all_ways()}
        compare(traces).save(job.out / "comparison")
        flagged = {way: found for way in self.asked.all_ways() if (found := self._flags(job.done, way)) is not None}
        flips(traces, self.tokenizer, flagged=flagged).save(job.out / "flips")

    @classmethod
    def findings(cls, study: Study) -> list[Finding]:
        """Return the comparison with its costs, the flips, and the tables of ablations and of the fit."""
        from chainwright.reproduce.tcr.tables import found_in

        return found_in(study)


def runs_of(config: ReproduceTCRConfig, way: str) -> list[str]:
    """Return the units with the traces of a way of decoding."""
    names = dict.fromkeys(task for task, _ in config.cells())
    return [f"runs/{slug_of(way)}/{task}-{seed}" for task in names for seed in config.seeds]


def slug_of(way: str) -> str:
    """Return a way's name as part of a unit's id."""
    return way.replace(", ", "-").replace(" ", "-")


def _with(tcr: TCR, detector: Detector, way: str, candidates: Candidates | None) -> TCR:
    """Return the repair with another detector and another decision.

    With entropy or gold flags it is the paper's: three heads vote.
    """
    selector: Selector = tcr.selector
    config, n = tcr.config, len(tcr.heads)
    if way == "TCR, vote":
        config = replace(config, decision="vote")
    elif way == "TCR, entropy":
        config = replace(config, decision="vote", n_votes=3)
    elif way == "TCR, gold":
        selector, config = NeverAbstains(tcr.selector), replace(config, decision="vote", n_votes=3)
    elif way == "random head":
        selector, config = RandomSelector(n), replace(config, decision="vote", n_votes=1)
    elif way == "best single head":
        selector, config = FixedSelector(n, [best_single(tcr, candidates)]), replace(config, decision="vote", n_votes=1)
    return TCR(
        tcr.heads, selector, detector,
        config=config, layers=tcr.layers, end_ids=tcr.end_ids, verifier=tcr.verifier,
    )  # fmt: skip


def best_single(tcr: TCR, candidates: Candidates | None) -> int:
    """Return which of the heads mends most and breaks least on the fitting problems."""
    assert candidates is not None, "the config refuses this way without a fit"
    worth = {(r["layer"], r["head"]): r["fixed"] + r["kept"] for r in candidates.rows}
    return max(range(len(tcr.heads)), key=lambda k: worth.get(tcr.heads[k], -1.0))


def gold_detector(tokenizer: PreTrainedTokenizerBase, problems: Sequence[tasks.Problem]) -> GoldDetector:
    """Return the detector that knows the right chains of these problems.

    Raises:
        BadInput: A problem in another rendering than the short one, which has many right wordings.
    """
    if any(problem.rendering != "short" for problem in problems):
        raise BadInput(
            "Gold flags need the short rendering, in which a chain has one right wording; leave the gold ways out "
            "(--ways) for this model."
        )
    return GoldDetector({tuple(prompt_ids(tokenizer, p)): lesson_ids(tokenizer, p) for p in problems})


__all__ = ["WAYS", "ReproduceTCR", "ReproduceTCRConfig", "gold_detector", "ways_for"]
