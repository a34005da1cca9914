"""What a finished study of StepFlow found: two comparisons, flips, and tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from chainwright._files import read_json
from chainwright._finding import Finding
from chainwright._flips import Flips
from chainwright._tables import Tables
from chainwright.evaluation import Comparison
from chainwright.repair.stepflow import StepFlow
from chainwright.reproduce.stepflow import ReproduceStepFlowConfig


def found_in(config: ReproduceStepFlowConfig, done: Mapping[str, Path]) -> list[Finding]:
    """Return what the units of a finished study hold, for its report."""
    here = done["comparison"]
    title = f"Ways of decoding with {config.model}"
    control = Comparison.load(here / "control")
    planted = f"Positive control: lock-in planted in layer {config.control_layer}, CLF with {config.control_hops} hops"
    return [
        replace(Comparison.load(here / "comparison"), title=title),
        replace(Flips.load(here / "flips"), title=title),
        replace(control, title=planted),
        Tables(
            title="First errors", tables={f"First errors: {k}": v for k, v in read_json(here / "errors.json").items()}
        ),
        _layers(done),
    ]


def _layers(done: Mapping[str, Path]) -> Tables:
    """Return what tuning chose, and what the step maps say of each layer."""
    tuned = StepFlow.from_pretrained(done["repair"] / "repair")
    layers = read_json(done["maps"] / "layers.json")
    rows = [
        {"layer": layer, "mean lock-in": lock_in, "mean decay share": decay}
        for layer, (lock_in, decay) in enumerate(zip(layers["lock_in"], layers["decay_share"], strict=True))
    ]
    notes = [
        f"Tuned: {tuned.settings()}. {tuned.origin.note}",
        f"Layers by one diagnosis pass: bridge {layers['bridge']}, momentum {layers['momentum']}.",
    ]
    return Tables(title="Layers", tables={"Step maps by layer": rows}, notes=notes)
