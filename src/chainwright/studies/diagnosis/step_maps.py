"""Step maps as an instrument of a diagnosis: some right and wrong traces of each cell, then right against wrong.

steps/<task>-<hops>-<seed>   one `StepSaliency` per trace, in folders named by the trace's index in its cell
step-groups                  `StepGroups` over all of them
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn
from transformers import PreTrainedTokenizerBase

from chainwright import tasks
from chainwright._errors import BadInput, UnsupportedModel
from chainwright._finding import Finding
from chainwright._registry import register
from chainwright.diagnose.steps.comparison import StepGroups, compare_steps
from chainwright.diagnose.steps.estimate import SaliencyPlan, plan_step_saliency
from chainwright.diagnose.steps.saliency import StepSaliency, step_saliency
from chainwright.figures.words import counted
from chainwright.studies.diagnosis.config import DiagnoseConfig
from chainwright.studies.diagnosis.units import Bench, Instrument, cell_of, cells, trace_units
from chainwright.studies.plan import Job, Results, Skip
from chainwright.traces import Trace, read_traces

GROUPS = "step-groups"


@register("instrument", "steps")
class StepMaps(Instrument):
    """Step maps of right and wrong traces, and what differs between them; not part of the usual diagnosis."""

    name, groups, order = "steps", ("steps", GROUPS), 50

    def units(self, config: DiagnoseConfig, done: Results) -> list[str]:
        """Return one unit of maps per cell and, once they are finished, the comparison."""
        if not done.are_finished(trace_units(config)):
            return []
        maps = [f"steps/{cell.name}" for cell in cells(config)]
        return [*maps, GROUPS] if done.are_finished(maps) else maps

    def compute(self, bench: Bench, job: Job) -> None:
        """Save the maps of a cell, or the `StepGroups` of all of them."""
        if job.unit == GROUPS:
            _compare(bench.config, job)
            return
        cell = cell_of(bench.config, job.unit)
        traces = read_traces(job.done[f"traces/{cell.name}"] / "traces.parquet")
        found: dict[int, StepSaliency] = {}
        for i in (chosen := choose_traces(traces, bench.config.n_maps)):
            job.tick(len(found), len(chosen))
            try:
                found[i] = step_saliency(bench.model, traces[i])
            except (BadInput, UnsupportedModel) as error:
                raise Skip(str(error)) from error
        for i, one in found.items():
            one.save(job.out / f"{i:06d}")

    def title(self, config: DiagnoseConfig, unit: str) -> str:
        """Return a title such as "Step maps: CLF, 12 hops"."""
        if unit == GROUPS:
            return "Steps of right traces against wrong ones"
        cell = cell_of(config, unit)
        return f"Step maps: {tasks.title(cell.task)}, {counted(cell.hops, 'hop')}"

    def findings(self, config: DiagnoseConfig, done: Results) -> list[Finding]:
        """Return the maps, each with its trace's index in the diagnosis as `config["trace"]`; then the comparison."""
        maps: list[Finding] = [saliency for _, saliency in _load_maps(config, done)]
        return [*maps, StepGroups.load(done[GROUPS])] if GROUPS in done else maps


def choose_traces(traces: list[Trace], n: int) -> list[int]:
    """Return the first `n` wrong and the first `n` right traces, in their order."""
    wrong = [i for i, trace in enumerate(traces) if trace.first_error is not None]
    right = [i for i, trace in enumerate(traces) if trace.is_exact]
    return sorted(wrong[:n] + right[:n])


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
        for cell in cells(config)
        for problem in tasks.sample(cell.task, cell.hops, n, cell.seed, rendering=config.rendering)
    ]
    return plan_step_saliency(model, gold, device=device)


def _load_maps(config: DiagnoseConfig, done: Results) -> list[tuple[Trace, StepSaliency]]:
    found, before = [], 0
    for cell in cells(config):
        traces = read_traces(done[f"traces/{cell.name}"] / "traces.parquet")
        unit = f"steps/{cell.name}"
        folders = sorted(path for path in done[unit].iterdir() if path.is_dir()) if unit in done else []
        for folder in folders:
            one, i = StepSaliency.load(folder), int(folder.name)
            found.append((traces[i], replace(one, config={**one.config, "trace": before + i})))
        before += len(traces)
    return found


def _compare(config: DiagnoseConfig, job: Job) -> None:
    found = _load_maps(config, job.done)
    try:
        compare_steps([trace for trace, _ in found], [one for _, one in found]).save(job.out)
    except BadInput as error:
        raise Skip(str(error)) from error
