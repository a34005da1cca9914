"""The experiments of the TCR paper as a study: every way of decoding on the same problems, and the ablations.

    fit/<task>                  traces of the model alone to fit on
    roles/<task>                head roles at each key error type of them, and what the paper says about such heads
    repair                      the fitted repair, its candidate heads and what was measured while fitting
    runs/<way>/<task>-<seed>    traces of one way of decoding at every hop count, and its counts
    forced/<variant>            what single heads do at every token of the right chains of the same problems
    ablations                   the table of ablations, from the forced chains
    errors                      where right chains have many wordings: what the parts do at first errors
    comparison                  the table of the ways

Fitting uses problems of `fit_seed`, of which every few are kept for tuning; the figures come from problems of `seeds`
alone. A chain of greedy decoding is right as a whole exactly if the model, put before each right prefix, chooses right
each time: so the ablations need no decoding. In renderings with many right wordings there are no ablations, and gold
flags are the first errors of the model alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from chainwright import tasks
from chainwright._errors import BadInput
from chainwright._files import read_json, write_json
from chainwright._finding import Finding
from chainwright._registry import register
from chainwright.decode.run import generate
from chainwright.diagnose.heads.roles import RoleFinding
from chainwright.evaluation.comparison import compare
from chainwright.evaluation.flips import flips
from chainwright.models.anatomy import anatomy
from chainwright.repair.base import Repair
from chainwright.repair.tcr.candidate_heads import Candidates, located_roles
from chainwright.repair.tcr.config import FitConfig
from chainwright.repair.tcr.detector import GoldDetector
from chainwright.repair.tcr.fit import choice_scores, fit_tcr, look
from chainwright.repair.tcr.flag_log import logged_flags
from chainwright.repair.tcr.repair import TCR
from chainwright.repair.tcr.training_data import lessons_of
from chainwright.reproduce.tcr.ablations import ablation_rows, load_outcomes, save_outcomes, selector_rows
from chainwright.reproduce.tcr.config import (
    GOLD,
    ReproduceTCRConfig,
    fit_runs_of,
    role_units_of,
    runs_of,
    slug_of,
    way_of,
)
from chainwright.reproduce.tcr.first_errors import first_error_rows
from chainwright.reproduce.tcr.role_figures import role_figures, roles_in
from chainwright.reproduce.tcr.tables import tables_of
from chainwright.reproduce.tcr.ways import decoding_with, gold_detector, repair_for
from chainwright.studies import Job, Results, Study
from chainwright.studies.model_plan import ModelPlan
from chainwright.tasks.cells import sample_cells
from chainwright.traces import Trace, read_traces, write_traces


@register("study", "reproduce tcr")
class ReproduceTCR(ModelPlan[ReproduceTCRConfig]):
    """The plan of the study."""

    kind, settings = "reproduce tcr", ReproduceTCRConfig

    def units(self, done: Results) -> Sequence[str]:
        """Return what the repair is fitted on, the repair, then every run and variant, then the tables."""
        fitting = [*fit_runs_of(self.asked), *role_units_of(self.asked), "repair"]
        runs = [i for way in self.asked.all_ways() for i in runs_of(self.asked, way)]
        forced = [f"forced/{variant}" for variant in self.asked.variants]
        judged = [] if self.asked.is_gold_known or "none" not in self.asked.ways else ["errors"]
        tables = [*(["ablations"] if forced else []), *judged, "comparison"]
        if not done.are_finished(["repair"]):
            return fitting
        return [*fitting, *runs, *forced, *(tables if done.are_finished([*runs, *forced]) else [])]

    def needs(self, unit: str) -> Sequence[str]:
        """Return what is listed together with a unit and read by it: what is fitted on, and the model's own traces."""
        kind, _, rest = unit.partition("/")
        if kind == "roles":
            return [f"fit/{rest}"]
        if unit == "repair":
            return [*fit_runs_of(self.asked), *role_units_of(self.asked)]
        if kind == "forced":
            return runs_of(self.asked, self.asked.ways[0])
        slug, _, cell = rest.partition("/")
        is_gold = kind == "runs" and slug in map(slug_of, GOLD) and not self.asked.is_gold_known
        return [f"runs/{slug_of('none')}/{cell}"] if is_gold else []

    def compute(self, job: Job) -> None:
        """Compute one unit."""
        kind, _, rest = job.unit.partition("/")
        if kind == "fit":
            problems = self._problems_to_fit(rest)
            write_traces(job.out / "traces.parquet", self._decoded(problems, None, self.asked.fit_seed))
        elif kind == "roles":
            self._locate(job, rest)
        elif kind == "repair":
            self._fit(job)
        elif kind == "runs":
            self._run(job, rest)
        elif kind == "forced":
            self._force(job, rest)
        elif kind == "ablations":
            write_json(job.out / "rows.json", self._ablations(job.done))
        elif kind == "errors":
            self._judge(job)
        else:
            self._compare(job)

    def _ablations(self, done: Results) -> dict[str, list[dict[str, Any]]]:
        tcr = self._repair(done)
        also = {way_of(name): decoding_with(name) for name in self.asked.also}
        others = {way: one for way, one in also.items() if isinstance(one, TCR) and one.heads == tcr.heads}
        selectors = {"": tcr.selector, **{way: one.selector for way, one in others.items()}}
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
        traces = [t for unit in fit_runs_of(self.asked) for t in read_traces(job.done[unit] / "traces.parquet")]
        roles = {(found.task, found.error_type): found for found in roles_in(self.asked, job.done)}
        fitted = fit_tcr(self.model, self.tokenizer, traces, config=self.asked.fitting(), roles=roles, tick=job.tick)
        TCR.from_fit(fitted).save_pretrained(job.out / "repair")
        fitted.candidates.save(job.out / "candidates")
        write_json(job.out / "figures.json", fitted.figures)

    def _problems_to_fit(self, task: str) -> list[tasks.Problem]:
        asked = self.asked
        return sample_cells({task: sorted(set(asked.fit_hops[task]))}, asked.fit_n, asked.fit_seed, asked.rendering)

    def _locate(self, job: Job, task: str) -> None:
        """Locate heads at the key error types of a task; one without enough errors gets none."""
        traces = read_traces(job.done[f"fit/{task}"] / "traces.parquet")
        candidates = self.asked.fitting().candidates
        try:
            roles = located_roles(self.model, self.tokenizer, traces, candidates, job.tick)
        except BadInput:  # where no task has enough, fitting says so
            roles = {}
        rows = []
        for i, ((_, kind), found) in enumerate(roles.items()):
            finding = RoleFinding.of(task, kind, found)
            finding.save(job.out / str(i))
            rows.append(role_figures(self.model, self.tokenizer, traces, finding, candidates.positions))
        write_json(job.out / "rows.json", rows)

    def _judge(self, job: Job) -> None:
        """Look at the tokens of the model's own responses with the parts of the repair."""
        repair = self._repair(job.done)
        config = FitConfig(layers=repair.layers, lens_layers=repair.lens_layers, scale=repair.scale)
        config = config.replace(candidates=config.candidates.replace(positions=repair.positions))
        lessons = lessons_of(self.tokenizer, self._traces(job.done, "none"))
        if not lessons:
            write_json(job.out / "rows.json", {})
            return
        found = look(anatomy(self.model), lessons, repair.heads, config, job.tick)
        save_outcomes(found, job.out)
        rows = first_error_rows(found, repair, self.asked.tau) if len(found.doubtful) else {}
        selector = selector_rows(found, {"": choice_scores(repair.selector, found)}) if rows else []
        write_json(job.out / "rows.json", {**rows, **({"selector": selector} if selector else {})})

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
        repair = self._way(way, job.done, problems, f"runs/none/{cell}")
        # DoLa looks at every token
        with logged_flags(None if way == "DoLa" else repair) as flag_log:
            traces = self._decoded(problems, repair, int(seed))
        write_traces(job.out / "traces.parquet", traces)
        if flag_log is not None:
            write_json(job.out / "flagged.json", flag_log.tokens(traces))
        # times differ from run to run; they are in the study's log
        counts = {} if repair is None else asdict(repair.cost)
        write_json(job.out / "counts.json", {k: v for k, v in counts.items() if isinstance(v, int)})

    def _decoded(self, problems: list[tasks.Problem], repair: Repair | None, seed: int) -> list[Trace]:
        return generate(
            self.model,
            self.tokenizer,
            problems,
            repair=repair,
            asking=self.asked.asking,
            max_new_tokens=self.asked.max_new_tokens,
            batch_size=self.asked.batch_size,
            temperature=self.asked.temperature,
            seed=seed,
            progress=False,
        )

    def _way(self, way: str, done: Results, problems: list[tasks.Problem], plain: str) -> Repair | None:
        """Return the repair that a way decodes with, None for the model alone; `plain` is the unit of its traces."""
        if way == "none":
            return None
        if others := [name for name in self.asked.also if way_of(name) == way]:
            return decoding_with(others[0])
        gold = None
        if way in GOLD and self.asked.is_gold_known:
            gold = gold_detector(self.tokenizer, problems)
        elif way in GOLD:
            gold = GoldDetector.of_traces(self.tokenizer, read_traces(done[plain] / "traces.parquet"))
        n_layers = anatomy(self.model).n_layers
        return repair_for(way, self._repair(done), n_layers, self._candidates(done), self.asked.tau, gold)

    def _force(self, job: Job, variant: str) -> None:
        repair = self._repair(job.done)
        config = FitConfig(
            layers=repair.layers, lens_layers=repair.lens_layers, scale=0.5 if variant == "half" else 0.0
        )
        candidates = config.candidates.replace(positions="last" if variant == "last" else "all")
        config = config.replace(candidates=candidates)
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
        return tables_of(study)


__all__ = ["ReproduceTCR"]
