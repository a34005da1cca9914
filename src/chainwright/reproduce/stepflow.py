"""StepFlow as a study: every way of decoding on the same problems, beside self-consistency, and the positive control.

    repair                       layers and strengths tuned on problems of their own
    maps                         step maps of some right traces, and the layers that they speak for
    runs/<way>/<task>-<seed>     traces of one way of decoding
    samples/<task>-<seed>/<k>    drawn traces, of which self-consistency takes the answer that most give
    control/<way>                traces with planted lock-in, without and with the bridge on its layer
    comparison                   the table of the ways

The cost of a way is counted in decoded tokens: k samples cost k times one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from chainwright import tasks
from chainwright._errors import BadInput, unknown_name
from chainwright._files import read_json, write_json
from chainwright._finding import Finding
from chainwright._flips import flips
from chainwright.decode import AttachesToModel, generate
from chainwright.diagnose.saliency import step_saliency
from chainwright.evaluation import compare
from chainwright.models.anatomy import anatomy
from chainwright.models.load import provenance
from chainwright.repair.control import PlantedLockIn
from chainwright.repair.stepflow import StepFlow, choose_layers
from chainwright.studies import Job, Plan, Results, Study
from chainwright.traces import Trace, read_traces, write_traces

PLAIN = "none"
REPAIRS = ("both", "bridge", "momentum", "auto layers", "tuned")
CONTROLS = ("planted", "planted, bridge")


@dataclass(frozen=True)
class ReproduceStepFlowConfig:
    """Everything that the study depends on besides the model's weights.

    Attributes:
        model: Name, folder or Hub id, as it was asked for.
        hops: Hop counts of each task.
        n: Problems a (task, hops, seed).
        seeds: Seeds of the problems.
        tune_n: Problems a (task, hops) to tune on.
        tune_seed: Their seed, none of `seeds`.
        taus: Floors that tuning tries, in every single layer.
        alphas: Strengths of the momentum that tuning tries, in every single layer.
        n_maps: Traces whose step maps choose the layers.
        samples: Numbers of samples of self-consistency.
        temperature: At which they are drawn.
        control_layer: Where lock-in is planted.
        control_strength: What is subtracted from the scores there.
        control_tau: The floor of the bridge that is to mend it.
        control_hops: Hop count of the control's problems, which the model solves when nothing is planted.

    Raises:
        BadInput: A value that could not be run.
    """

    model: str
    hops: Mapping[str, Sequence[int]] = field(default_factory=lambda: {"parity": (12,), "clf": (13,), "moas": (12,)})
    n: int = 15
    seeds: Sequence[int] = (11, 12, 13)
    tune_n: int = 12
    tune_seed: int = 100
    taus: Sequence[float] = (0.15, 0.3, 0.4)
    alphas: Sequence[float] = (0.06,)
    n_maps: int = 24
    samples: Sequence[int] = (2, 4, 8)
    temperature: float = 0.7
    control_layer: int = 2
    control_strength: float = 8.0
    control_tau: float = 0.6
    control_hops: int = 8
    rendering: tasks.Rendering = "short"

    def __post_init__(self) -> None:
        """Refuse what could not be run."""
        if unknown := [task for task in self.hops if task not in tasks.names()]:
            raise unknown_name("task", unknown[0], tasks.names())
        if not self.hops or not self.seeds or min(self.n, self.tune_n, self.n_maps) < 1:
            raise BadInput("A study of StepFlow needs a task with hops, a seed, and at least one problem of each kind.")
        if self.tune_seed in self.seeds:
            raise BadInput(f"tune_seed {self.tune_seed} is one of the test seeds; do not tune on test problems.")

    def record(self) -> dict[str, Any]:
        """Return the config as plain JSON values."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


class ReproduceStepFlow(Plan):
    """The plan of the study."""

    kind, again = "reproduce stepflow", "chainwright reproduce stepflow --out {folder}"

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, config: ReproduceStepFlowConfig):
        self.model = model
        self.tokenizer = tokenizer
        self.asked = config
        self.config = config.record()
        self.source = provenance(anatomy(model).model)

    @property
    def ways(self) -> list[str]:
        """Return the ways of decoding, the plain one first."""
        voted = [f"self-consistency {k}" for k in self.asked.samples]
        return [PLAIN, *REPAIRS, *voted, "tuned + self-consistency 2"]

    def units(self, done: Results) -> Sequence[str]:
        """Return what chooses the settings, then the runs, then the table."""
        first = ["repair", "maps"]
        if not done.are_finished(first):
            return first
        runs = [f"runs/{way.replace(' ', '-')}/{cell}" for way in (PLAIN, *REPAIRS) for cell in self._cells()]
        runs += [f"samples/{cell}/{k}" for cell in self._cells() for k in range(max(self.asked.samples))]
        runs += [f"tuned-samples/{cell}/{k}" for cell in self._cells() for k in range(2)]
        runs += [f"control/{way.replace(', ', '-')}" for way in CONTROLS]
        return [*first, *runs, *(["comparison"] if done.are_finished(runs) else [])]

    def _cells(self) -> list[str]:
        return [f"{task}-{seed}" for task in self.asked.hops for seed in self.asked.seeds]

    def compute(self, job: Job) -> None:
        """Compute one unit."""
        kind, *rest = job.unit.split("/")
        if kind == "repair":
            self._tune().save_pretrained(job.out / "repair")
        elif kind == "maps":
            self._map(job)
        elif kind == "comparison":
            self._compare(job)
        elif kind == "control":
            self._write(job, self._control_problems(), self._control(rest[0]))
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
        repair: AttachesToModel | None,
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

    def _tune(self) -> StepFlow:
        problems = [p for task in self.asked.hops for p in self._sample(task, self.asked.tune_n, self.asked.tune_seed)]
        return StepFlow.tune(self.model, self.tokenizer, problems, taus=self.asked.taus, alphas=self.asked.alphas)

    def _map(self, job: Job) -> None:
        n_each = -(-self.asked.n_maps // len(self.asked.hops))
        problems = [p for task in self.asked.hops for p in self._sample(task, n_each, self.asked.tune_seed)]
        maps = step_saliency(self.model, generate(self.model, self.tokenizer, problems, progress=False))
        chosen = choose_layers(maps)
        measures = [one.measures.by_layer() for one in maps]
        means = {name: sum(m[name] for m in measures).div(len(maps)).tolist() for name in ("lock_in", "decay_share")}  # type: ignore[union-attr]
        write_json(job.out / "layers.json", {"bridge": chosen.bridge, "momentum": chosen.momentum, **means})

    def _repair(self, way: str, done: Results) -> StepFlow | None:
        """Return the repair of a way of decoding."""
        if way == PLAIN:
            return None
        if way == "tuned":
            return StepFlow.from_pretrained(done["repair"] / "repair")
        if way == "auto layers":
            found = read_json(done["maps"] / "layers.json")
            return StepFlow(found["bridge"], found["momentum"])
        return StepFlow(() if way == "momentum" else None, () if way == "bridge" else None)

    def _control_problems(self) -> list[tasks.Problem]:
        asked = self.asked
        hops, n = asked.control_hops, asked.n * len(asked.seeds)
        return tasks.sample("clf", hops, n, asked.seeds[0], rendering=asked.rendering)

    def _control(self, way: str) -> PlantedLockIn:
        asked = self.asked
        layers = (asked.control_layer,) if way == "planted-bridge" else ()
        return PlantedLockIn(StepFlow(layers, (), asked.control_tau), asked.control_layer, asked.control_strength)

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
        control = {
            way: read_traces(job.done[f"control/{way.replace(', ', '-')}"] / "traces.parquet") for way in CONTROLS
        }
        compare(control).save(job.out / "control")
        plain = traces[PLAIN]
        mended = {way: mended_errors(plain, traces[way]) for way in ("both", "tuned")}
        write_json(job.out / "errors.json", mended)

    @classmethod
    def findings(cls, study: Study) -> list[Finding]:
        """Return both comparisons, the flips, and the tables."""
        from chainwright.reproduce.stepflow_tables import found_in

        return found_in(ReproduceStepFlowConfig(**study.manifest.config), study.results)


def n_decodings(way: str) -> int:
    """Return how many responses a way decodes for one answer."""
    return int(way.rpartition(" ")[2]) if "self-consistency" in way else 1


def _majority(group: Sequence[Trace]) -> Trace:
    """Return the first of the traces that give the answer that most of them give; ties go to the first."""
    answers = [_answer(trace) for trace in group]
    counts = Counter(answers)
    best = max(counts.values())
    return next(trace for trace, answer in zip(group, answers, strict=True) if counts[answer] == best)


def _answer(trace: Trace) -> str:
    lines = (trace.response or "").strip().splitlines()
    return lines[-1].strip() if lines else ""


def mended_errors(plain: Sequence[Trace], other: Sequence[Trace]) -> list[dict[str, Any]]:
    """Return for each type of first error how many chains had it, were mended, and how many newly got it."""
    had: Counter[str] = Counter()
    mended: Counter[str] = Counter()
    new: Counter[str] = Counter()
    for before, after in zip(plain, other, strict=True):
        if before.first_error is not None:
            had[before.first_error.error_type] += 1
            mended[before.first_error.error_type] += after.first_error is None
        elif after.first_error is not None:
            new[after.first_error.error_type] += 1
    return [
        {"first error": name, "without": had[name], "mended": mended[name], "new": new[name]}
        for name in sorted({*had, *new}, key=lambda name: -had[name])
    ]


__all__ = ["CONTROLS", "ReproduceStepFlow", "ReproduceStepFlowConfig", "mended_errors", "n_decodings"]
