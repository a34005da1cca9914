"""Back attention: what each variant reaches, where the module reads, and the conflict before and after."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from chainwright import figures
from chainwright._registry import register
from chainwright.figures.flow import depth_names
from chainwright.report.section import Material, Section, drawn
from chainwright.reproduce.back_attention.finding import BackAttentionFinding

_SWEEPS = {"source": "source layer", "size": "size of the module (d')"}
_MAIN = {"source": 0, "size": 64}


@register("section", "back_attention")
def section(material: Material) -> Section | None:
    """Return the section; None without a study of back attention."""
    findings = material.of(BackAttentionFinding)
    if not findings:
        return None
    found = findings[0]
    charts = {"back-attention-fits": drawn(found.plot(), found.to_frame().to_pylist())}
    words: dict[str, Any] = {"rows": found.rows, "scratch": found.scratch, "sweeps": _sweeps(found, charts)}
    words |= {"failures": found.failures, "cost": found.cost}
    words["map"] = _map(found, charts)
    words["conflict"] = _conflict(found, charts)
    return Section("back_attention", "Back attention", words, charts, order=500, shows=[found])


def _sweeps(found: BackAttentionFinding, charts: dict[str, Any]) -> list[dict[str, str]]:
    """Draw the sweeps over source layers and sizes, where there is more than the main module."""
    drawn_ones = []
    for name, title in _SWEEPS.items():
        points = _points(found.rows, name)
        if len(points) > 1:
            charts[f"back-attention-{name}"] = drawn(figures.sweep(points, title), points)
            drawn_ones.append({"chart": f"back-attention-{name}", "title": title})
    return drawn_ones


def _points(rows: Sequence[Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
    """Return the rows of a sweep by its setting: the main module and those named after it, such as "source 2"."""
    at: dict[int, Mapping[str, Any]] = {}
    for row in rows:
        named = re.fullmatch(rf"{name} (\d+)", row["variant"])
        if named or row["variant"] == "back attention":
            at[int(named[1]) if named else _MAIN[name]] = row
    keys = ("held_out", "held_out by seed", "one hop")
    return [{"at": setting} | {key: at[setting][key] for key in keys if key in at[setting]} for setting in sorted(at)]


def _map(found: BackAttentionFinding, charts: dict[str, Any]) -> dict[str, Any] | None:
    groups = {f"answered {name}": found.readings[name] for name in ("right", "wrong") if found.readings.get(name)}
    if not groups:
        return None
    axes = found.readings["positions"], found.readings["targets"]
    charts["back-attention-read"] = drawn(
        figures.readings(groups, *axes),
        _cells(found.readings, groups),
        narrow=figures.readings(groups, *axes, is_narrow=True),
    )
    counts = [f"{found.readings[f'n_{name.split()[1]}']} {name}" for name in groups]
    return {"name": "back-attention-read", "n": " and ".join(counts)}


def _cells(readings: Mapping[str, Any], groups: Mapping[str, Sequence[Sequence[float]]]) -> list[dict[str, Any]]:
    return [
        {"questions": group, "depth": depth, "position": position, "weight": weight}
        for group, rows in groups.items()
        for depth, row in zip(readings["targets"], rows, strict=True)
        for position, weight in zip(readings["positions"], row, strict=True)
    ]


def _conflict(found: BackAttentionFinding, charts: dict[str, Any]) -> dict[str, Any] | None:
    """Draw the contrast before and after, and return the last position's at the end of the stack."""
    if not found.conflict:
        return None
    curves = {name: found.conflict[name]["contrast"] for name in ("before", "after")}
    positions = found.readings.get("positions") or [f"position {i}" for i in range(len(curves["before"]))]
    positions = positions[-len(curves["before"]) :]
    groups = dict(zip(("without", "with back attention"), map(torch.tensor, curves.values()), strict=True))
    charts["back-attention-conflict"] = drawn(
        figures.position_curves(groups, positions),
        [
            {"module": name, "position": position, "after": depth, "nats": value}
            for name, rows in curves.items()
            for position, row in zip(positions, rows, strict=True)
            for depth, value in zip(depth_names(len(row)), row, strict=True)
        ],
        narrow=figures.position_curves(groups, positions, is_narrow=True),
    )
    return {
        "against": found.conflict["before"]["against"],
        "n": found.conflict["before"]["n"],
        "before": curves["before"][-1][-1],
        "after": curves["after"][-1][-1],
    }
