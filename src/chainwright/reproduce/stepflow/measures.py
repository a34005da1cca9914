"""What the StepFlow study measures before anything is repaired, on the problems that it tunes on.

measured/traces          traces of the plain model
measured/bridges         `BridgeGroups`, and the layers that they speak for
measured/steps           `StepGroups` of step maps, and how far the summary depends on the thinking
measured/causes/<task>   `StepCauses`: do the maps show what the answer needs?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from chainwright._errors import BadInput
from chainwright._files import read_json, write_json
from chainwright.diagnose.steps.causal_check import step_causes
from chainwright.diagnose.steps.comparison import StepGroups, compare_steps
from chainwright.diagnose.steps.lock_in import BridgeGroups, bridge_mass, compare_bridges
from chainwright.diagnose.steps.measures import THINKING
from chainwright.diagnose.steps.saliency import step_saliency
from chainwright.models.anatomy import anatomy
from chainwright.repair.stepflow.layers import ChosenLayers, choose_heads, choose_layers
from chainwright.studies import Job, Results, Skip
from chainwright.traces import Trace, read_traces

TRACES, BRIDGES, STEPS = "measured/traces", "measured/bridges", "measured/steps"
_LAYERS, _HEADS, _DECAY = "layers.json", "heads.json", "decay.safetensors"


def causes_unit(task: str) -> str:
    """Return the unit of a task's causal check."""
    return f"measured/causes/{task}"


def measured_traces(done: Results) -> list[Trace]:
    """Return the traces that everything here is measured on."""
    return read_traces(done[TRACES] / "traces.parquet")


def write_bridges(model: nn.Module, job: Job) -> None:
    """Write how bridge masses differ, and the layers chosen by it."""
    traces = measured_traces(job.done)
    masses = []
    for i, trace in enumerate(traces):
        job.tick(i, len(traces))
        masses.append(bridge_mass(model, trace))
    try:
        groups = compare_bridges(traces, masses)
    except BadInput as error:
        raise Skip(str(error)) from error
    groups.save(job.out / "groups")
    write_json(job.out / _LAYERS, choose_layers(groups)._asdict())
    write_json(job.out / _HEADS, choose_heads(groups))


def chosen_layers(done: Mapping[str, Path]) -> ChosenLayers:
    """Return the layers chosen by the bridge masses; none where there was no pair to compare."""
    if BRIDGES not in done:
        return ChosenLayers((), (), ())
    found = read_json(done[BRIDGES] / _LAYERS)
    return ChosenLayers(tuple(found["bridge"]), tuple(found["momentum"]), tuple(found["floors"]))


def chosen_heads(done: Mapping[str, Path]) -> tuple[tuple[int, int, float], ...]:
    """Return the heads and floors chosen by the bridge masses; none where there was no pair to compare."""
    found = read_json(done[BRIDGES] / _HEADS) if BRIDGES in done else []
    return tuple((layer, head, floor) for layer, head, floor in found)


def lacking_layers(done: Mapping[str, Path], n: int) -> list[int]:
    """Return the `n` layers in which wrong traces lack most attention on the question, by their means alone."""
    if BRIDGES not in done or not n:
        return []
    right, wrong = BridgeGroups.load(done[BRIDGES] / "groups").of(THINKING)
    lack = (right - wrong).mean((0, 2))
    return [int(layer) for layer in lack.argsort(descending=True, stable=True)[:n]]


def write_steps(model: nn.Module, job: Job) -> None:
    """Write how the step maps of right and wrong traces differ."""
    traces = measured_traces(job.done)
    maps = []
    for i, trace in enumerate(traces):
        job.tick(i, len(traces))
        maps.append(step_saliency(model, trace))
    try:
        groups: StepGroups = compare_steps(traces, maps)
    except BadInput as error:
        raise Skip(str(error)) from error
    groups.save(job.out / "groups")
    save_file({"decay_share": torch.stack([one.measures.decay_share.float() for one in maps])}, job.out / _DECAY)


def decay_shares(done: Mapping[str, Path]) -> Tensor:
    """Return the share of the summary's rows on the thinking of every measured trace, `[N, L]`; NaN without a summary.

    Raises:
        BadInput: The step maps were skipped.
    """
    if STEPS not in done:
        raise BadInput("There are no step maps: no wrong trace had a right partner.")
    return load_file(done[STEPS] / _DECAY)["decay_share"]


def write_causes(model: nn.Module, job: Job, n_traces: int, n_pairs: int) -> None:
    """Write the causal check of one task, layer by layer where there are at most four."""
    task = job.unit.rpartition("/")[2]
    whole = [t for t in measured_traces(job.done) if _has_task(t, task) and t.summary.start < t.summary.end]
    if not whole:
        raise Skip(f"no trace of {task} has a summary")
    found = step_causes(model, _spread(whole, n_traces), n_pairs=n_pairs, n_bands=min(4, anatomy(model).n_layers))
    found.save(job.out / "causes")


def _has_task(trace: Trace, task: str) -> bool:
    return trace.problem is not None and trace.problem.task == task


def _spread(traces: Sequence[Trace], n: int) -> list[Trace]:
    """Return `n` of the traces, right ones and wrong ones in turn as far as there are both."""
    right = [trace for trace in traces if trace.first_error is None]
    wrong = [trace for trace in traces if trace.first_error is not None]
    n_wrong = min(len(wrong), max(n // 2, n - len(right)))
    return [*right[: n - n_wrong], *wrong[:n_wrong]]
