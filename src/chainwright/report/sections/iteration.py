"""Iteration heads: how the circuit of a chain of thought forms, and which heads of a trained model work like it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chainwright import figures
from chainwright._registry import register
from chainwright.diagnose.iteration.emergence import Emergence
from chainwright.diagnose.iteration.findings import IterationOverlap, IterationScores
from chainwright.figures.words import counted, head_name, title_of
from chainwright.report.section import Material, Section, drawn


@register("section", "iteration")
def section(material: Material) -> Section | None:
    """Return the section; None without a training of the laboratory or iteration scores."""
    runs, scores, overlaps = material.of(Emergence), material.of(IterationScores), material.of(IterationOverlap)
    if not runs and not scores:
        return None
    shown = [run for run in runs if run.has_circuit]
    drawings: dict[str, Any] = {}
    if shown:
        drawings |= _emergence(shown) | _maps(shown)
    drawings |= _transfer(runs) | _lengths(runs) | _rankings(scores)
    words = {
        "n_runs": len(runs),
        "trained": counted(len(runs), "training"),
        "figures": list(drawings),
        "map_of": _clearest(shown).label if shown else "",
        "without": [_without(run) for run in shown if _lacks_circuit(run)],
        "heads": [row for one in scores for row in _head_rows(one)],
        "overlaps": [overlap.summary() for overlap in overlaps],
    }
    return Section("iteration", "Iteration", words, drawings, order=400, shows=[*runs, *scores, *overlaps])


def _clearest(runs: Sequence[Emergence]) -> Emergence:
    """Return the training whose two heads are the clearest at its end, one of the usual model where there is one."""
    return max(
        [run for run in runs if _plain(run)] or runs,
        key=lambda run: float(run.curve("end_of_input")[-1] + run.curve("diagonal")[-1]),
    )


def _plain(run: Emergence) -> bool:
    """Say whether a training is of one task, from scratch, with the usual model: no ablation."""
    config = run.config
    usual = {"positions": "learned", "n_layers": 2, "n_heads": 1, "start_from": ""}
    return len(run.tasks) == 1 and all(config.get(name, value) == value for name, value in usual.items())


def _emergence(runs: Sequence[Emergence]) -> dict[str, Any]:
    groups: dict[str, list[Emergence]] = {}
    for run in [run for run in runs if _plain(run)] or runs:
        groups.setdefault(f"{' and '.join(run.tasks)}, length {run.lengths[-1]}", []).append(run)
    lines = {name: [run.run() for run in those] for name, those in groups.items()}
    rows = [
        {"training": run.label, "step": step, **{name: curve[i] for name, curve in run.curves.items()}}
        for those in lines.values()
        for run in those
        for i, step in enumerate(run.steps)
    ]
    wide, narrow = (figures.emergence_curves(lines, columns=c) for c in (3, 1))
    return {"emergence": drawn(wide, rows, narrow=narrow)}


def _maps(runs: Sequence[Emergence]) -> dict[str, Any]:
    run = _clearest(runs)
    heads = [run.best_head(kind) for kind in ("end_of_input", "diagonal")]
    rows = [
        {"head": head_name(head), "step": int(step), "from": at, "to": to, "attention": round(float(values[i, j]), 3)}
        for head in heads
        for step, values in zip(run.steps[-1:], run.maps[-1:, 0, head[0], head[1]], strict=True)
        for i, at in enumerate(run.token_strs)
        for j, to in enumerate(run.token_strs[: i + 1])
    ]
    maps = [figures.circuit_maps(run._heat_maps(None), run.steps.tolist(), run.token_strs, columns=c) for c in (2, 1)]
    return {"circuit-maps": drawn(maps[0], rows, narrow=maps[1])}


def _transfer(runs: Sequence[Emergence]) -> dict[str, Any]:
    """Return the curves of tasks that were learned both after another one and from scratch."""
    after = [run for run in runs if run.config.get("start_from")]
    if not after:
        return {}
    task, length = after[0].tasks, after[0].lengths[-1]
    alike = [run for run in runs if run.tasks == task and run.lengths[-1] == length and run.has_circuit]
    scratch = [run for run in alike if not run.config.get("start_from")]
    after = [run for run in alike if run.config.get("start_from")]
    if not scratch or not after:
        return {}
    rows = [
        {"training": run.label, "step": int(step), "exact": float(exact)}
        for run in (*after, *scratch)
        for step, exact in zip(run.steps, run.exact(), strict=True)
    ]
    figure = figures.transfer_curves(
        [r.run() for r in after], [r.run() for r in scratch], f"{task[0]}, length {length}"
    )
    return {"transfer": drawn(figure, rows)}


def _lengths(runs: Sequence[Emergence]) -> dict[str, Any]:
    """Return exact sequences by length, for tasks that were learned both with and without a chain."""
    lines: dict[str, tuple[list[int], list[float]]] = {}
    for run in [run for run in runs if not run.has_circuit]:
        for one, said in ((_twin(run, runs), "with a chain"), (run, "without")):
            if one is not None:
                name = f"{one.tasks[0]}, seed {one.config.get('seed', 0)}, {said}"
                lines[name] = (one.lengths, one.accuracy[-1, 0].tolist())
    if not lines:
        return {}
    rows = [
        {"training": name, "length": n, "exact": value}
        for name, (lengths, exact) in lines.items()
        for n, value in zip(lengths, exact, strict=True)
    ]
    return {"exact-by-length": drawn(figures.exact_by_length(lines), rows)}


def _twin(run: Emergence, runs: Sequence[Emergence]) -> Emergence | None:
    """Return the training that differs in the chain of thought."""

    def key(one: Emergence) -> tuple[object, ...]:
        return one.tasks, one.lengths, one.config.get("seed"), one.config.get("d_model")

    return next((one for one in runs if one.has_circuit and _plain(one) and key(one) == key(run)), None)


def _rankings(scores: Sequence[IterationScores]) -> dict[str, Any]:
    charts = {}
    for link in ("recall", "input", "previous"):
        panels = [one.ranked(link, _task_of(one)) for one in scores if link in one.links]
        if panels:
            rows = [
                {"task": panel.title, "layer": head[0], "head": head[1], "score": s, "null_mean": m, "null_sd": sd}
                for panel in panels
                for head, s, m, sd in zip(panel.heads, panel.score, panel.null_mean, panel.null_sd, strict=True)
            ]
            wide, narrow = (figures.head_ranking(panels, columns=c) for c in (4, 2))
            charts[f"iteration-heads-{link}"] = drawn(wide, rows, narrow=narrow)
    return charts


def _task_of(scores: IterationScores) -> str:
    return str(scores.config.get("task", "all traces"))


def _head_rows(scores: IterationScores) -> list[dict[str, str]]:
    """Return a row per link: the best head, its score and null, and what silencing it costs."""
    rows = []
    for k, link in enumerate(scores.links):
        best = scores.ranking(link)[0]
        c = next((i for i, head in enumerate(scores.checked) if tuple(head) == best), None)
        lost = "not silenced" if c is None else f"{float(scores.accuracy[k] - scores.accuracy_without[c, k]):+.2f}"
        rows.append(
            {
                "task": title_of(_task_of(scores)),
                "link": link,
                "head": head_name(best),
                "score": f"{float(scores.score[k][best]):.2f}",
                "null": f"{float(scores.null_mean[k][best]):.2f}",
                "p": f"{float(scores.p_value[k][best]):.3f}",
                "above": str(len(scores.above_chance(link))),
                "lost": lost,
            }
        )
    return rows


def _lacks_circuit(run: Emergence) -> bool:
    weakest = min(float(run.curve(kind)[-1]) for kind in ("end_of_input", "diagonal"))
    return float(run.exact()[-1]) >= 0.9 and weakest < 0.5


def _without(run: Emergence) -> str:
    scores = [f"{kind.replace('_', '-')} {float(run.curve(kind)[-1]):.2f}" for kind in ("end_of_input", "diagonal")]
    return f"{run.label}: {float(run.exact()[-1]):.2f} exact, {' and '.join(scores)}"
