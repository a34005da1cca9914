"""Logit flow: what writes an answer, what switches that on, and the stages of a set of queries."""

from __future__ import annotations

from typing import Any

from chainwright.diagnose import FlowStages, LogitFlow
from chainwright.report.section import Material, Section, drawn

_MOST_MAPS = 3
_MOST_ROWS = 12


def section(material: Material) -> Section | None:
    """Return the section; None without a logit flow or a stage table."""
    flows, stages = material.of(LogitFlow)[:_MOST_MAPS], material.of(FlowStages)[:1]
    if not flows and not stages:
        return None
    words: dict[str, Any] = {"flows": [_flow_words(i, flow) for i, flow in enumerate(flows)]}
    found = {f"flow-map-{i}": drawn(flow.plot(), flow.to_frame().to_pylist()) for i, flow in enumerate(flows)}
    for stage in stages:
        words["stages"] = _stage_rows(stage)
        words["stage_summary"] = stage.summary()
        found["flow-stages"] = drawn(stage.plot(), stage.to_frame().to_pylist())
    return Section("flow", "Flow", words, found)


def _flow_words(i: int, flow: LogitFlow) -> dict[str, Any]:
    best = []
    for k in range(min(_MOST_ROWS, len(flow.neurons))):
        _, layer, kind, group, unit = flow.neurons[k].tolist()
        place = f"head {group}, entry {unit}" if kind == 0 else f"{flow.groups[layer][group]}, neuron {unit}"
        words = " ".join(flow.written[k]) if flow.written else " ".join(map(str, flow.words[k].tolist()))
        best.append({"layer": layer, "place": place, "nats": float(flow.importance[k]), "words": words})
    return {
        "name": f"flow-map-{i}",
        "context": " ".join(flow.token_strs) or f"{len(flow.input_ids)} tokens",
        "summary": flow.summary(),
        "best": best,
    }


def _stage_rows(stage: FlowStages) -> list[dict[str, Any]]:
    names = ("entity, FFN", "entity, attention", "relation and end, FFN", "relation and end, attention and values")
    return [
        {"stage": letter, "what": what, "first": span[0], "last": span[1], "centre": centre, "share": share}
        for letter, what, span, centre, share in zip(
            "ABCD", names, stage.spans(), stage.centres, stage.shares, strict=True
        )
    ]
