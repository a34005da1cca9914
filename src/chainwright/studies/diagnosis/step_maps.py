"""Step maps as an instrument of a diagnosis: some right and wrong traces of each cell, then right against wrong.

steps/<part>                 one `StepSaliency` per trace, in folders named by the trace's index in its part
step-groups                  `StepGroups` over all of them
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase

from chainwright import tasks
from chainwright._errors import BadInput, UnsupportedModel
from chainwright._finding import Finding
from chainwright._registry import register
from chainwright.diagnose.steps.comparison import StepGroups, compare_steps, compare_whole_steps
from chainwright.diagnose.steps.estimate import SaliencyPlan, plan_step_saliency
from chainwright.diagnose.steps.saliency import StepSaliency, step_saliency
from chainwright.studies.diagnosis.base import Bench, Instrument
from chainwright.studies.diagnosis.config import DiagnoseConfig
from chainwright.studies.diagnosis.parts import Cell, Part, load_part, load_traces, part_of, parts
from chainwright.studies.diagnosis.units import have_traces
from chainwright.studies.plan import Job, Results, Skip
from chainwright.traces import Trace

GROUPS = "step-groups"


@register("instrument", "steps")
class StepMaps(Instrument):
    """Step maps of right and wrong traces, and what differs between them; not part of the usual diagnosis."""

    name, groups, order = "steps", ("steps", GROUPS), 50

    def units(self, config: DiagnoseConfig, done: Results) -> list[str]:
        """Return one unit of maps per cell and, once they are finished, the comparison."""
        if not have_traces(config, done):
            return []
        maps = [f"steps/{part.name}" for part in parts(config, done)]
        return [*maps, GROUPS] if done.are_finished(maps) else maps

    def compute(self, bench: Bench, job: Job) -> None:
        """Save the maps of a cell, or the `StepGroups` of all of them."""
        if job.unit == GROUPS:
            _compare(bench.config, job)
            return
        traces, chosen = _chosen(bench.config, part_of(bench.config, job.unit), job.done)
        if not chosen and not bench.config.hops:
            raise Skip("none of its traces was chosen for a map")
        found: dict[int, StepSaliency] = {}
        for i in chosen:
            job.tick(len(found), len(chosen))
            try:
                found[i] = step_saliency(bench.model, traces[i], block_bytes=block_of(bench.config.sweep_bytes))
            except (BadInput, UnsupportedModel) as error:
                raise Skip(str(error)) from error
        for i, one in found.items():
            one.save(job.out / f"{i:06d}")

    def title(self, config: DiagnoseConfig, unit: str) -> str:
        """Return a title such as "Step maps: CLF, 12 hops"."""
        if unit == GROUPS:
            return "Steps of right traces against wrong ones"
        return f"Step maps: {part_of(config, unit).title}"

    def findings(self, config: DiagnoseConfig, done: Results) -> list[Finding]:
        """Return the maps, each with its trace's index in the diagnosis as `config["trace"]`; then the comparison."""
        maps: list[Finding] = [saliency for _, saliency in _load_maps(config, done)]
        return [*maps, StepGroups.load(done[GROUPS])] if GROUPS in done else maps


def choose_traces(traces: list[Trace], n: int) -> list[int]:
    """Return the first `n` wrong and the first `n` right traces, in their order.

    A trace whose slots are known is wrong at its first error; of any other the answer decides.
    """
    wrong = [i for i, trace in enumerate(traces) if trace.first_error is not None or _is(trace, "wrong")]
    right = [i for i, trace in enumerate(traces) if trace.is_exact or _is(trace, "right")]
    return sorted(wrong[:n] + right[:n])


def _chosen(config: DiagnoseConfig, part: Part, done: Mapping[str, Path]) -> tuple[list[Trace], list[int]]:
    """Return the traces of a part, and which of them get a map: some of each cell, or of a whole problem set."""
    traces = load_part(part, done)
    if isinstance(part, Cell):
        return traces, choose_traces(traces, config.n_maps)
    before = sum(len(load_part(other, done)) for other in parts(config, done) if other < part)
    every = choose_traces(load_traces(config, done), config.n_maps)
    return traces, [i - before for i in every if before <= i < before + len(traces)]


def _is(trace: Trace, outcome: str) -> bool:
    has_slots = trace.problem is not None and bool(trace.problem.slots)
    return not has_slots and trace.outcome == outcome


def block_of(max_bytes: int | None) -> int | None:
    """Return the size of one of the three block buffers of step maps in so much memory; None for the usual one."""
    return None if max_bytes is None else max(1, max_bytes // 3)


def plan_steps(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, config: DiagnoseConfig, device: str | None = None
) -> SaliencyPlan:
    """Estimate the cost of a diagnosis's step maps: an upper bound if its traces are as long as the gold chains.

    Raises:
        BadTrace: A chain that the model has not enough positions for.
    """
    n = min(config.n, 2 * config.n_maps)
    gold = [
        Trace.from_text(tokenizer, problem.prompt, problem.chain, problem=problem)
        for cell in parts(config)
        if isinstance(cell, Cell)
        for problem in tasks.sample(cell.task, cell.hops, n, cell.seed, rendering=config.rendering)
    ]
    return plan_step_saliency(model, gold, device=device)


def _load_maps(config: DiagnoseConfig, done: Results) -> list[tuple[Trace, StepSaliency]]:
    found, before = [], 0
    for part in parts(config, done):
        traces = load_part(part, done)
        unit = f"steps/{part.name}"
        folders = sorted(path for path in done[unit].iterdir() if path.is_dir()) if unit in done else []
        for folder in folders:
            one, i = StepSaliency.load(folder), int(folder.name)
            found.append((traces[i], replace(one, config={**one.config, "trace": before + i})))
        before += len(traces)
    return found


def _compare(config: DiagnoseConfig, job: Job) -> None:
    found = _load_maps(config, job.done)
    try:
        compare = compare_steps if config.hops else compare_whole_steps
        compare([trace for trace, _ in found], [one for _, one in found]).save(job.out)
    except BadInput as error:
        raise Skip(str(error)) from error
