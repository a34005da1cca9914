"""StepFlow as a study: every way of decoding on the same problems, self-consistency, and a positive control.

    measured/...                 bridge masses, step maps and their causal check (`measures.py`)
    repair                       layers and strengths tuned on problems of their own
    runs/<way>/<task>-<seed>     traces of one way of decoding
    samples/<task>-<seed>/<k>    sampled traces; self-consistency takes their most frequent answer
    control/<way>                traces with planted lock-in, without and with a repair
    comparison                   the table of the ways

The cost of a way is counted in decoded tokens: k samples cost k times one. Each run notes its processor seconds. Where
a repair has nowhere to act its traces are those of the plain model, and nothing is decoded again.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
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
from chainwright.models.anatomy import anatomy
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

COST = "cost.json"
_FEW_LAYERS, _TRIED_LAYERS = 8, 2  # models with more layers are tuned on the published quarters and so many single ones


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
        first = [measures.TRACES]
        if not done.are_finished(first):
            return first
        first += [measures.BRIDGES, measures.STEPS, *map(measures.causes_unit, self.asked.hops)]
        if self.asked.control_layer is not None:
            first.append("control-layers")
        if not done.are_finished(first):
            return first
        first += ["repair", *(f"runs/{PLAIN}/{cell}" for cell in self._cells())]
        first += [f"samples/{cell}/{k}" for cell in self._cells() for k in range(max(self.asked.samples))]
        if not done.are_finished(first):
            return first
        runs = [f"runs/{way.replace(' ', '-')}/{cell}" for way in REPAIRS for cell in self._cells()]
        runs += [f"tuned-samples/{cell}/{k}" for cell in self._cells() for k in range(2)]
        if self.asked.control_layer is not None:
            runs += [_control_unit(way) for way in CONTROLS]
        return [*first, *runs, *(["comparison"] if done.are_finished(runs) else [])]

    def _cells(self) -> list[str]:
        return cells_of(self.asked)

    def compute(self, job: Job) -> None:
        """Compute one unit."""
        kind, *rest = job.unit.split("/")
        if kind == "repair":
            self._tune(job.done).save_pretrained(job.out / "repair")
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
            # one sample of the tuned repair, or of the plain model
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
        if (same := self._same_without(job, repair)) is not None:
            shutil.copy(same / "traces.parquet", job.out / "traces.parquet")
            return
        options: dict[str, Any] = {"temperature": temperature, "seed": seed, "progress": False}
        started = time.process_time()
        traces = generate(self.model, self.tokenizer, problems, repair=repair, **options)
        seconds = time.process_time() - started
        write_json(job.out / COST, {"cpu_seconds": seconds, "n_tokens": sum(len(t.response_ids) for t in traces)})
        write_traces(job.out / "traces.parquet", traces)

    def _same_without(self, job: Job, repair: Repair | None) -> Path | None:
        """Return the unit that decoded the same without a repair, if this one has nowhere to act."""
        if not isinstance(repair, StepFlow) or any(repair.layers(anatomy(self.model).n_layers)):
            return None
        kind, _, rest = job.unit.partition("/")
        plain = f"runs/{PLAIN}/{rest.partition('/')[2]}" if kind == "runs" else f"samples/{rest}"
        return job.done[plain]

    def _sample(self, task: str, n: int, seed: int) -> list[tasks.Problem]:
        counts, rendering = self.asked.hops[task], self.asked.rendering
        return [p for hops in counts for p in tasks.sample(task, int(hops), n, seed, rendering=rendering)]

    def _problems(self, cell: str) -> list[tasks.Problem]:
        task, _, seed = cell.rpartition("-")
        return self._sample(task, self.asked.n, int(seed))

    def _to_learn_from(self, n: int) -> list[tasks.Problem]:
        """Return `n` problems of each cell to tune or measure on, none of which is tested on."""
        return [p for task in self.asked.hops for p in self._sample(task, n, self.asked.tune_seed)]

    def _tune(self, done: Results) -> StepFlow:
        asked, n_layers = self.asked, anatomy(self.model).n_layers
        sets: list[tuple[int, ...]] | None = None
        if asked.tune_layers is not None or n_layers > _FEW_LAYERS:
            n = _TRIED_LAYERS if asked.tune_layers is None else asked.tune_layers
            quarters = StepFlow().layers(n_layers)
            sets = [quarters.bridge, quarters.momentum, *((layer,) for layer in measures.lacking_layers(done, n))]
        options: dict[str, Any] = {"taus": asked.taus, "alphas": asked.alphas, "layer_sets": sets}
        return StepFlow.tune(self.model, self.tokenizer, self._to_learn_from(asked.tune_n), **options)

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
        if way == "auto heads":
            return StepFlow(None, (), bridge_heads=measures.chosen_heads(done))
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

    def _compare(self, job: Job) -> None:
        traces = {way: traces_of(self.asked, job.done, way) for way in self.ways}
        costs = {way: {"decodings": n_decodings(way)} for way in self.ways}
        replace(compare(traces), costs=costs).save(job.out / "comparison")
        flips(traces, self.tokenizer).save(job.out / "flips")
        if self.asked.control_layer is not None:
            control = {way: read_traces(job.done[_control_unit(way)] / "traces.parquet") for way in CONTROLS}
            compare(control).save(job.out / "control")
        plain = traces[PLAIN]
        fixed = {way: fixed_errors(plain, traces[way]) for way in ("both", "auto layers", "auto heads", "tuned")}
        write_json(job.out / "errors.json", fixed)

    @classmethod
    def findings(cls, study: Study) -> list[Finding]:
        """Return both comparisons, the flips, and the tables."""
        return tables_of(ReproduceStepFlowConfig.from_record(study.manifest.config), study.results)


def cells_of(config: ReproduceStepFlowConfig) -> list[str]:
    """Return the cells of the test problems, a task and seed each."""
    return [f"{task}-{seed}" for task in config.hops for seed in config.seeds]


def traces_of(config: ReproduceStepFlowConfig, done: Mapping[str, Path], way: str) -> list[Trace]:
    """Return the traces of a way of decoding, all cells after each other."""
    return [trace for cell in cells_of(config) for trace in _of_cell(done, way, cell)]


def _of_cell(done: Mapping[str, Path], way: str, cell: str) -> list[Trace]:
    if "self-consistency" not in way:
        return read_traces(done[f"runs/{way.replace(' ', '-')}/{cell}"] / "traces.parquet")
    folder = "tuned-samples" if way.startswith("tuned") else "samples"
    drawn = [read_traces(done[f"{folder}/{cell}/{k}"] / "traces.parquet") for k in range(int(way.rpartition(" ")[2]))]
    return [_majority(group) for group in zip(*drawn, strict=True)]


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


__all__ = ["CONTROLS", "ReproduceStepFlow", "ReproduceStepFlowConfig", "fixed_errors", "n_decodings", "traces_of"]
