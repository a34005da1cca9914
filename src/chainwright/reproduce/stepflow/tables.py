"""What a finished study of StepFlow found: comparisons, flips, and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from chainwright import tasks
from chainwright._files import read_json
from chainwright._finding import Finding
from chainwright._tables import Rows, Tables
from chainwright.diagnose.steps.causal_check import StepCauses
from chainwright.diagnose.steps.comparison import StepGroups
from chainwright.diagnose.steps.lock_in import BridgeGroups
from chainwright.evaluation.comparison import Comparison
from chainwright.evaluation.flips import Flips
from chainwright.repair.stepflow.layers import ChosenLayers
from chainwright.repair.stepflow.repair import StepFlow
from chainwright.reproduce.stepflow import measures
from chainwright.reproduce.stepflow.config import ReproduceStepFlowConfig


def tables_of(config: ReproduceStepFlowConfig, done: Mapping[str, Path]) -> list[Finding]:
    """Return what the units of a finished study hold, for its report."""
    here = done["comparison"]
    title = f"Ways of decoding with {config.model}"
    planted = f"Positive control: lock-in planted in layer {config.control_layer}, CLF with {config.control_hops} hops"
    with_control = config.control_layer is not None
    return [
        replace(Comparison.load(here / "comparison"), title=title),
        replace(Flips.load(here / "flips"), title=title),
        *([replace(Comparison.load(here / "control"), title=planted)] if with_control else []),
        Tables(
            title="First errors", tables={f"First errors: {k}": v for k, v in read_json(here / "errors.json").items()}
        ),
        _measured(config, done),
        _layers(done, with_control),
    ]


def _layers(done: Mapping[str, Path], with_control: bool) -> Tables:
    """Return what tuning and the diagnosis chose."""
    tuned = StepFlow.from_pretrained(done["repair"] / "repair")
    notes = [
        f"Tuned: {tuned.settings()}. {tuned.origin.note}",
        f"Layers by one diagnosis pass: {_words(measures.chosen_layers(done))}",
        f"Heads by the same pass: {_named(measures.chosen_heads(done))}",
    ]
    if with_control:
        chosen = ChosenLayers(*map(tuple, read_json(done["control-layers"] / "layers.json").values()))
        notes.append(f"By one pass over right traces and ones with planted lock-in: {_words(chosen)}")
    return Tables(title="Layers", tables={}, notes=notes)


def _named(heads: Sequence[tuple[int, int, float]]) -> str:
    return ", ".join(f"L{layer}H{head} at {floor:.2f}" for layer, head, floor in heads) + "." if heads else "none."


def _words(chosen: ChosenLayers) -> str:
    if not chosen.bridge and not chosen.momentum:
        return "none; the repair does nothing."
    at = zip(chosen.bridge, chosen.floors, strict=True)
    floors = ", ".join(f"layer {layer} at {floor:.2f}" for layer, floor in at)
    return f"bridge in {floors or 'no layer'}, momentum in layers {list(chosen.momentum)}."


def _measured(config: ReproduceStepFlowConfig, done: Mapping[str, Path]) -> Tables:
    """Return what was measured before repairing anything."""
    bridges = BridgeGroups.load(done[measures.BRIDGES] / "groups") if measures.BRIDGES in done else None
    steps = StepGroups.load(done[measures.STEPS] / "groups") if measures.STEPS in done else None
    n_bridges, n_steps = (0 if one is None else len(one.right) for one in (bridges, steps))
    looked = f"Attention on the segment built on, where the first wrong token is decided ({n_bridges} matched pairs)"
    mapped = f"Step maps, right against wrong ({n_steps} matched pairs)"
    causes = "Rank correlation of saliency with what cutting a step pair takes from the answer's log-probability"
    tables = {
        looked: [] if bridges is None else [_bridge_row(row) for row in bridges.rows],
        mapped: [] if steps is None else [_step_row(row) for row in steps.rows],
        causes: [row for task in config.hops for row in _cause_rows(task, done)],
    }
    return Tables(title="Measured on the problems to tune on", tables=tables)


def _bridge_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "segment": row["segment"],
        "layer": row["layer"],
        "pairs": row["n"],
        "right": f"{row['right']:.3f}",
        "wrong": f"{row['wrong']:.3f}",
        "difference": f"{row['difference']:+.3f}",
        "95%": f"{row['low']:+.3f} to {row['high']:+.3f}",
        "p": f"{row['p']:.2g}",
        "head": row["head"],
        "right, head": f"{row['head_right']:.3f}",
        "wrong, head": f"{row['head_wrong']:.3f}",
    }


def _step_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "measure": row["measure"].replace("_", " "),
        "layer": row["layer"],
        "right": f"{row['right']:.3f}",
        "wrong": f"{row['wrong']:.3f}",
        "effect": f"{row['effect']:+.2f}",
        "95%": f"{row['low']:+.2f} to {row['high']:+.2f}",
        "p": f"{row['p']:.2g}",
    }


def _cause_rows(task: str, done: Mapping[str, Path]) -> Rows:
    unit = measures.causes_unit(task)
    if unit not in done:
        return []
    found = StepCauses.load(done[unit] / "causes")
    return [
        {
            "task": tasks.title(task),
            "layers": f"{first}" if last == first + 1 else f"{first} to {last - 1}",
            "rank correlation": f"{rho:+.2f}",
            "95%": f"{low:+.2f} to {high:+.2f}",
            "pairs": len(found.pairs),
            "traces": len({pair[0] for pair in found.pairs}),
            "largest effect, nats": f"{effect:.3f}",
            "pairs of 0.01 or more": int(n_large),
            "separated from others": "-" if n_large == 0 else f"{separation:.2f}",
        }
        for (first, last), rho, (low, high), effect, (n_large, separation) in zip(
            found.bands, found.rank_correlation.tolist(), found.intervals().tolist(), found.effect.amax(0).tolist(),
            found.separation().tolist(), strict=True,
        )
    ]  # fmt: skip
