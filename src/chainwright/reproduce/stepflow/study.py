"""StepFlow as a study: every way of decoding on the same problems, self-consistency, and a positive control.

    repair                       layers and strengths tuned on problems of their own
    measured/...                 bridge masses, step maps and their causal check (`stepflow_measures.py`)
    runs/<way>/<task>-<seed>     traces of one way of decoding
    samples/<task>-<seed>/<k>    sampled traces; self-consistency takes their most frequent answer
    control/<way>                traces with planted lock-in, without and with a repair
    comparison                   the table of the ways

The cost of a way is counted in decoded tokens: k samples cost k times one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from chainwright import tasks
from chainwright._errors import BadInput
from chainwright._files import read_json, write_json
from chainwright._finding import Finding
from chainwright._registry import register
from chainwright.decode.run import generate
from chainwright.diagnose.steps.lock_in import bridge_mass, compare_bridges
from chainwright.evaluation.comparison import compare
from chainwright.evaluation.flips import flips
from chainwright.repair.base import Repair
from chainwright.repair.stepflow.layers import ChosenLayers, choose_layers
from chainwright.repair.stepflow.planted_lock_in import PlantedLockIn
from chainwright.repair.stepflow.repair import StepFlow
from chainwright.reproduce.stepflow import measures
from chainwright.reproduce.stepflow.config import CONTROLS, PLAIN, REPAIRS, ReproduceStepFlowConfig
from chainwright.reproduce.stepflow.tables import tables_of
from chainwright.studies import Job, Results, Study
from chainwright.studies.model_plan import ModelPlan
from chainwright.traces import Trace, read_traces, write_traces


@register("study", "reproduce stepflow")
class ReproduceStepFlow(ModelPlan[ReproduceStepFlowConfig]):
    """The plan of the study."""

    kind, settings = "reproduce stepflow", ReproduceStepFlowConfig

    @property
    def ways(self) -> list[str]:
        """Return the ways of decoding, the plain one first."""
        voted = [f"self-consistency {k}" for k in self.asked.samples]
        return [PLAIN, *REPAIRS, *voted, "tuned + self-consistency 2"]

    def units(self, done: Results) -> Sequence[str]:
        """Return the units that choose settings, then the runs, then the table."""
        first = ["repair", measures.TRACES]
        if not done.are_finished(first):
            return first
        first += [measures.BRIDGES, measures.STEPS, *map(measures.causes_unit, self.asked.hops)]
        runs = [f"runs/{way.replace(' ', '-')}/{cell}" for way in (PLAIN, *REPAIRS) for cell in self._cells()]
        runs += [f"samples/{cell}/{k}" for cell in self._cells() for k in range(max(self.asked.samples))]
        runs += [f"tuned-samples/{cell}/{k}" for cell in self._cells() for k in range(2)]
        if self.asked.control_layer is not None:
            first.append("control-layers")
            runs += [_control_unit(way) for way in CONTROLS]
        if not done.are_finished(first):
            return first
        return [*first, *runs, *(["comparison"] if done.are_finished(runs) else [])]

    def _cells(self) -> list[str]:
        return [f"{task}-{seed}" for task in self.asked.hops for seed in self.asked.seeds]

    def compute(self, job: Job) -> None:
        """Compute one unit."""
        kind, *rest = job.unit.split("/")
        if kind == "repair":
            self._tune().save_pretrained(job.out / "repair")
        elif kind == "measured":
            self._measure(job)
        elif kind == "control-layers":
            self._choose_for_control(job)
        elif kind == "comparison":
            self._compare(job)
        elif kind == "control":
            self._write(job, self._control_problems(), self._control(rest[0], job.done))
        elif kind == "runs":
            self._write(job, self._problems(rest[1]), self._repair(rest[0].replace("-", " "), job.done))
        else:
            repair = self._repair("tuned", job.done) if kind == "tuned-samples" else None
            seed = 1000 * int(rest[0].rpartition("-")[2]) + int(rest[1])
            self._write(job, self._problems(rest[0]), repair, self.asked.temperature, seed)

    def _write(
        self,
        job: Job,
        problems: list[tasks.Problem],
        repair: Repair | None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        options: dict[str, Any] = {"temperature": temperature, "seed": seed, "progress": False}
        traces = generate(self.model, self.tokenizer, problems, repair=repair, **options)
        write_traces(job.out / "traces.parquet", traces)

    def _sample(self, task: str, n: int, seed: int) -> list[tasks.Problem]:
        counts, rendering = self.asked.hops[task], self.asked.rendering
        return [p for hops in counts for p in tasks.sample(task, int(hops), n, seed, rendering=rendering)]

    def _problems(self, cell: str) -> list[tasks.Problem]:
        task, _, seed = cell.rpartition("-")
        return self._sample(task, self.asked.n, int(seed))

    def _to_learn_from(self, n: int) -> list[tasks.Problem]:
        """Return `n` problems of each cell to tune or measure on, none of which is tested on."""
        return [p for task in self.asked.hops for p in self._sample(task, n, self.asked.tune_seed)]

    def _tune(self) -> StepFlow:
        problems = self._to_learn_from(self.asked.tune_n)
        return StepFlow.tune(self.model, self.tokenizer, problems, taus=self.asked.taus, alphas=self.asked.alphas)

    def _measure(self, job: Job) -> None:
        if job.unit == measures.TRACES:
            self._write(job, self._to_learn_from(self.asked.measured_n), None)
        elif job.unit == measures.BRIDGES:
            measures.write_bridges(self.model, job)
        elif job.unit == measures.STEPS:
            measures.write_steps(self.model, job)
        else:
            measures.write_causes(self.model, job, self.asked.n_caused, self.asked.n_pairs)

    def _repair(self, way: str, done: Results) -> StepFlow | None:
        """Return the repair of a way of decoding."""
        if way == PLAIN:
            return None
        if way == "tuned":
            return StepFlow.from_pretrained(done["repair"] / "repair")
        if way == "auto layers":
            return StepFlow(*measures.chosen_layers(done))
        return StepFlow(() if way == "momentum" else None, () if way == "bridge" else None)

    def _control_problems(self) -> list[tasks.Problem]:
        asked = self.asked
        hops, n = asked.control_hops, asked.n * len(asked.seeds)
        return tasks.sample("clf", hops, n, asked.seeds[0], rendering=asked.rendering)

    def _control(self, way: str, done: Results) -> PlantedLockIn:
        asked = self.asked
        assert asked.control_layer is not None
        if way == "planted-auto-layers":
            repair = StepFlow(*read_json(done["control-layers"] / "layers.json").values())
        else:
            layers = (asked.control_layer,) if way == "planted-bridge" else ()
            repair = StepFlow(layers, (), asked.control_tau)
        return PlantedLockIn(repair, asked.control_layer, asked.control_strength)

    def _choose_for_control(self, job: Job) -> None:
        """Write the layers chosen from wrong traces of the model with planted lock-in and right ones without it."""
        asked = self.asked
        problems = tasks.sample("clf", asked.control_hops, asked.measured_n, asked.tune_seed, rendering=asked.rendering)
        planted = self._control("planted", job.done)
        broken = generate(self.model, self.tokenizer, problems, repair=planted, progress=False)
        whole = generate(self.model, self.tokenizer, problems, progress=False)
        wrong = [trace for trace in broken if trace.first_error is not None]
        right = [trace for trace in whole if trace.first_error is None]
        masses = []
        for trace in wrong:
            with planted.scoring(self.model, [trace]):
                masses.append(bridge_mass(self.model, trace))
        masses += [bridge_mass(self.model, trace) for trace in right]
        try:
            chosen = choose_layers(compare_bridges([*wrong, *right], masses, whole=True))
        except BadInput:
            chosen = ChosenLayers((), (), ())
        write_json(job.out / "layers.json", chosen._asdict())

    def traces(self, done: Results, way: str) -> list[Trace]:
        """Return the traces of a way, all cells after each other."""
        return [trace for cell in self._cells() for trace in self._of_cell(done, way, cell)]

    def _of_cell(self, done: Results, way: str, cell: str) -> list[Trace]:
        if "self-consistency" not in way:
            return read_traces(done[f"runs/{way.replace(' ', '-')}/{cell}"] / "traces.parquet")
        folder = "tuned-samples" if way.startswith("tuned") else "samples"
        drawn = [
            read_traces(done[f"{folder}/{cell}/{k}"] / "traces.parquet") for k in range(int(way.rpartition(" ")[2]))
        ]
        return [_majority(group) for group in zip(*drawn, strict=True)]

    def _compare(self, job: Job) -> None:
        traces = {way: self.traces(job.done, way) for way in self.ways}
        costs = {way: {"decodings": n_decodings(way)} for way in self.ways}
        replace(compare(traces), costs=costs).save(job.out / "comparison")
        flips(traces, self.tokenizer).save(job.out / "flips")
        if self.asked.control_layer is not None:
            control = {way: read_traces(job.done[_control_unit(way)] / "traces.parquet") for way in CONTROLS}
            compare(control).save(job.out / "control")
        plain = traces[PLAIN]
        fixed = {way: fixed_errors(plain, traces[way]) for way in ("both", "auto layers", "tuned")}
        write_json(job.out / "errors.json", fixed)

    @classmethod
    def findings(cls, study: Study) -> list[Finding]:
        """Return both comparisons, the flips, and the tables."""
        return tables_of(ReproduceStepFlowConfig.from_record(study.manifest.config), study.results)


def n_decodings(way: str) -> int:
    """Return how many responses a way decodes for one answer."""
    return int(way.rpartition(" ")[2]) if "self-consistency" in way else 1


def _control_unit(way: str) -> str:
    return f"control/{way.replace(', ', '-').replace(' ', '-')}"


def _majority(group: Sequence[Trace]) -> Trace:
    """Return the first of the traces that give the answer that most of them give; ties go to the first."""
    answers = [_answer(trace) for trace in group]
    counts = Counter(answers)
    best = max(counts.values())
    return next(trace for trace, answer in zip(group, answers, strict=True) if counts[answer] == best)


def _answer(trace: Trace) -> str:
    lines = (trace.response or "").strip().splitlines()
    return lines[-1].strip() if lines else ""


def fixed_errors(plain: Sequence[Trace], other: Sequence[Trace]) -> list[dict[str, Any]]:
    """Return for each type of first error how many chains had it, were fixed, and how many newly got it."""
    had: Counter[str] = Counter()
    fixed: Counter[str] = Counter()
    new: Counter[str] = Counter()
    for before, after in zip(plain, other, strict=True):
        if before.first_error is not None:
            had[before.first_error.error_type] += 1
            fixed[before.first_error.error_type] += after.first_error is None
        elif after.first_error is not None:
            new[after.first_error.error_type] += 1
    return [
        {"first error": name, "without": had[name], "fixed": fixed[name], "new": new[name]}
        for name in sorted({*had, *new}, key=lambda name: -had[name])
    ]


__all__ = ["CONTROLS", "ReproduceStepFlow", "ReproduceStepFlowConfig", "fixed_errors", "n_decodings"]
