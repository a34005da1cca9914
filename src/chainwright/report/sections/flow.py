"""Logit flow: what writes an answer, what switches that on, and the stages of sets of queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chainwright import figures
from chainwright._registry import register
from chainwright.diagnose.flow.attribution import LogitFlow
from chainwright.diagnose.flow.contrast import FlowContrast
from chainwright.diagnose.flow.stages import FlowStages
from chainwright.figures.flow import depth_names
from chainwright.figures.words import counted
from chainwright.report.section import Material, Section, drawn

_MOST_MAPS = 3
_MOST_ROWS = 12


@register("section", "flow")
def section(material: Material) -> Section | None:
    """Return the section; None without a logit flow or a stage table."""
    flows, stages = material.of(LogitFlow)[:_MOST_MAPS], material.of(FlowStages)
    contrasts = material.of(FlowContrast)
    if not flows and not stages and not contrasts:
        return None
    charts: dict[str, Any] = {}
    words = {
        "flows": [_flow(i, flow, charts) for i, flow in enumerate(flows)],
        "stages": _stages(stages, charts),
        "contrasts": [_contrasted(i, each, charts) for i, each in enumerate(contrasts)],
    }
    return Section("flow", "Flow", words, charts, order=450, shows=[*flows, *stages, *contrasts])


def _flow(i: int, flow: LogitFlow, charts: dict[str, Any]) -> dict[str, Any]:
    """Draw the figures of one flow and return what the template says of it."""
    said = [[[flow.said(cell) for cell in kinds] for kinds in layers] for layers in flow.cell_words]
    name = f"flow-map-{i}"
    charts[name] = drawn(
        figures.flow_map(flow.flow, flow.token_strs, said),
        _cells(flow, said),
        narrow=figures.flow_map(flow.flow, flow.token_strs, said, is_narrow=True),
    )
    has_contrast = bool(flow.contrast.numel())
    if has_contrast:
        charts[f"flow-contrast-{i}"] = drawn(flow.plot("contrast"), _contrast(flow))
    return {
        "name": name,
        "contrast": f"flow-contrast-{i}" if has_contrast else None,
        "context": " ".join(flow.token_strs) or counted(len(flow.input_ids), "token"),
        "target": " ".join(flow.text(token) for token in flow.target_ids),
        "conflict": flow.text(flow.conflict_id) if has_contrast else None,
        "n_targets": len(flow.target_ids),
        "summary": flow.summary(),
        "components": flow.components(_MOST_ROWS),
        "neurons": _neurons(flow),
    }


def _neurons(flow: LogitFlow) -> list[dict[str, Any]]:
    best = []
    for k in range(min(_MOST_ROWS, len(flow.neurons))):
        position, layer, kind, group, unit = flow.neurons[k].tolist()
        place = f"head {group}, entry {unit}" if kind == 0 else f"{flow.groups[layer][group]}, neuron {unit}"
        row = {"layer": layer, "place": place, "at": flow.place(position), "nats": float(flow.importance[k])}
        best.append({**row, "coefficient": float(flow.coefficient[k]), "words": flow.said(flow.words[k])})
    return best


def _cells(flow: LogitFlow, said: list[list[list[str]]]) -> list[dict[str, Any]]:
    credit = flow.flow.sum(0)
    return [
        {"position": t, "token": flow.token_strs[t] if flow.token_strs else "", "layer": layer, "kind": kind,
         "nats": float(credit[t, layer, k]), "writes": said[t][layer][k]}
        for t in range(credit.shape[0])
        for layer in range(credit.shape[1])
        for k, kind in enumerate(("attention", "FFN"))
    ]  # fmt: skip


def _contrast(flow: LogitFlow) -> list[dict[str, Any]]:
    names = depth_names(flow.contrast.shape[1])
    return [
        {"position": flow.place(t), "after": name, "nats": value}
        for t, row in enumerate(flow.contrast.tolist())
        for name, value in zip(names, row, strict=True)
    ]


def _stages(found: Sequence[FlowStages], charts: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the stage tables, those whose names begin alike ("clf; ...") in one with one figure."""
    groups: dict[str, dict[str, FlowStages]] = {}
    for stage in found:
        title, _, name = stage.name.partition("; ")
        groups.setdefault(title or "marked queries", {})[name or title or "marked queries"] = stage
    return [_stage_group(i, title, group, charts) for i, (title, group) in enumerate(groups.items())]


def _stage_group(i: int, title: str, group: Mapping[str, FlowStages], charts: dict[str, Any]) -> dict[str, Any]:
    chart, marks = f"flow-stages-{i}", next(iter(group.values())).marks
    credit = {name: stage.by_layer for name, stage in group.items()}
    rows = [{"queries": name, **row} for name, stage in group.items() for row in stage.to_frame().to_pylist()]
    charts[chart] = drawn(figures.stages(credit, marks), rows, narrow=figures.stages(credit, marks, is_narrow=True))
    lines = {name: stage.line() for name, stage in group.items()}
    table = [[key, *(line[key] for line in lines.values())] for key in next(iter(lines.values()))]
    return {"chart": chart, "title": title, "names": list(group), "rows": table, "marks": marks}


def _contrasted(i: int, found: FlowContrast, charts: dict[str, Any]) -> dict[str, Any]:
    name = f"flow-groups-{i}"
    groups = dict(zip(found.groups, found.curves, strict=True))
    narrow = figures.position_curves(groups, found.positions, is_narrow=True)
    charts[name] = drawn(found.plot(), found.to_frame().to_pylist(), narrow=narrow)
    return {"chart": name, "what": found.what, "summary": found.summary()}
