"""What was published on iteration heads, what came out here, and whether both agree: read off the results by rule.

Every rule is written beside its claim, so that a table says the same for every profile and seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from chainwright.diagnose.iteration.emergence import KINDS, Emergence
from chainwright.reproduce.iteration_heads.study import IterationHeads

_LEARNED, _CLEAR, _TOGETHER = 0.9, 0.5, 150
_PAPER_WIDTH = 128
Row = dict[str, Any]


class Claim(NamedTuple):
    """One line of the table; `agrees` is None where nothing was published, or nothing came out to judge by."""

    finding: str
    published: str
    ours: str
    agrees: bool | None


def claims(found: IterationHeads) -> list[Claim]:
    """Return every claim that these results can be held against."""
    runs = found.runs
    every = [_together, _order, _copy_first, _transfer, _without_chain, _narrow, _layers, _positions, _lengths]
    every.append(_exceptions)
    return [claim for rule in every if (claim := rule(runs)) is not None] + _reasoner(found)


def _where(runs: Mapping[str, Emergence], **settings: Any) -> dict[str, Emergence]:
    """Return the trainings whose config has these values; `tasks` may be the name of a single task."""

    def fits(run: Emergence) -> bool:
        asked = {**run.config, "tasks": "+".join(run.tasks)}
        return all(asked.get(name) == value for name, value in settings.items())

    return {name: run for name, run in runs.items() if fits(run)}


def _usual(runs: Mapping[str, Emergence], **settings: Any) -> dict[str, Emergence]:
    """Return trainings from scratch, with a chain, of the two-layer model with learned positions."""
    usual = {"n_layers": 2, "positions": "learned", "start_from": "", "chain_of_thought": True}
    return _where(runs, **{**usual, **settings})


def _rise(steps: Tensor, curve: Tensor) -> int:
    """Return the first step at which a curve has made half of its way from the first to its highest value."""
    half = (curve[0] + curve.max()) / 2
    return int(steps[int((curve >= half).nonzero()[0, 0])])


def _learned(runs: Mapping[str, Emergence]) -> dict[str, Emergence]:
    return {name: run for name, run in runs.items() if float(run.exact().max()) >= _LEARNED}


def _together(runs: Mapping[str, Emergence]) -> Claim | None:
    learned = _learned(_usual(runs))
    if not learned:
        return None
    apart = {n: _rise(r.steps, r.curve("diagonal")) - _rise(r.steps, r.exact()) for n, r in learned.items()}
    n_close = sum(abs(steps) <= _TOGETHER for steps in apart.values())
    ours = (
        f"half of the diagonal's rise lies within {_TOGETHER} steps of half of the accuracy's in {n_close} of "
        f"{len(apart)} trainings that reach {_LEARNED:.0%} (from {min(apart.values()):+d} to {max(apart.values()):+d})"
    )
    return Claim("heads and accuracy", "they appear together", ours, 3 * n_close >= 2 * len(apart))


def _order(runs: Mapping[str, Emergence]) -> Claim | None:
    learned = _learned(_usual(runs))
    if not learned:
        return None
    first = sum(
        _rise(r.steps, r.curve("end_of_input")) <= _rise(r.steps, r.curve("diagonal")) for r in learned.values()
    )
    ours = f"the end-of-input head makes half of its rise no later than the diagonal in {first} of {len(learned)}"
    return Claim("which head comes first", "not stated", ours, None)


def _copy_first(runs: Mapping[str, Emergence]) -> Claim | None:
    pairs = []
    for copy in _usual(runs, tasks="copy").values():
        same = {"seed": copy.config["seed"], "max_length": copy.config["max_length"], "d_model": copy.config["d_model"]}
        pairs += [(copy, parity) for parity in _usual(runs, tasks="parity", **same).values()]
    if not pairs:
        return None
    first = [(a.first_step(_LEARNED), b.first_step(_LEARNED)) for a, b in pairs]
    earlier = [a is not None and (b is None or a < b) for a, b in first]
    shown = "; ".join(f"{_step(a)} against {_step(b)}" for a, b in first)
    return Claim(
        "copy and parity", "copy is learned before parity", f"first {_LEARNED:.0%} exact at {shown}", all(earlier)
    )


def _step(step: int | None) -> str:
    return "never" if step is None else f"step {step}"


def _transfer(runs: Mapping[str, Emergence]) -> Claim | None:
    after = [run for run in runs.values() if run.config["start_from"]]
    rows = []
    for run in after:
        config = run.config
        source = runs.get(str(config["start_from"]).removeprefix("train/"))
        same = {"seed": config["seed"], "max_length": config["max_length"], "d_model": config["d_model"]}
        scratch = list(_usual(runs, tasks="+".join(run.tasks), **same).values())
        if source is not None and scratch:
            total = int(source.steps[-1]) + int(run.steps[-1])
            at = int((scratch[0].steps <= total).nonzero()[-1, 0])
            rows.append((float(run.exact()[-1]), float(scratch[0].exact()[at]), total, run.first_step(_LEARNED)))
    if not rows:
        return None
    shown = "; ".join(f"{a:.2f} against {b:.2f} at {total} steps ({_LEARNED:.0%} at {_step(s)} of parity)"
                      for a, b, total, s in rows)  # fmt: skip
    agrees = all(a > b for a, b, *_ in rows)
    return Claim("polynomial, then parity", "learned much faster than from scratch", f"exact {shown}", agrees)


def _without_chain(runs: Mapping[str, Emergence]) -> Claim | None:
    rows = []
    for run in _where(runs, chain_of_thought=False).values():
        same = {name: run.config[name] for name in ("seed", "max_length", "d_model")}
        twins = list(_usual(runs, tasks="+".join(run.tasks), **same).values())
        if twins:
            kept, lost = (float(one.accuracy[-1, 0, -1]) for one in (twins[0], run))
            rows.append((run.tasks[0], run.lengths[-1], kept, lost))
    if not rows:
        return None
    shown = "; ".join(f"{task} at length {n}: {a:.2f} with, {b:.2f} without" for task, n, a, b in rows)
    agrees = all(a - b > 0.2 for _, _, a, b in rows)
    return Claim("no chain of thought", "accuracy collapses with length", shown, agrees)


def _narrow(runs: Mapping[str, Emergence]) -> Claim | None:
    same = {"tasks": "polynomial", "max_length": _ablated(runs), "seed": 0}
    widths = {int(run.config["d_model"]): run for run in _usual(runs, **same).values()}
    forms = [w for w, run in widths.items() if w < _PAPER_WIDTH and _has_both(run)]
    return _by(widths, "wide", "width", "smaller models still form the heads on polynomials", bool(forms))


def _has_both(run: Emergence) -> bool:
    return float(run.exact()[-1]) >= _LEARNED and float(run.curve("diagonal")[-1]) >= _CLEAR


def _ablated(runs: Mapping[str, Emergence]) -> Any:
    """Return the length at which most trainings of the polynomial task were made."""
    lengths = [run.config["max_length"] for run in _where(runs, tasks="polynomial").values()]
    return max(set(lengths), key=lambda n: (lengths.count(n), -n)) if lengths else None


def _by(
    runs: Mapping[Any, Emergence], said: str, finding: str, published: str, agrees: bool | None = None
) -> Claim | None:
    if len(runs) < 2:
        return None
    shown = "; ".join(f"{key} {said}: {_scores(runs[key])}" for key in sorted(runs))
    return Claim(finding, published, shown, agrees)


def _scores(run: Emergence) -> str:
    return (
        f"exact {float(run.exact()[-1]):.2f}, end-of-input {float(run.curve('end_of_input')[-1]):.2f}, "
        f"diagonal {float(run.curve('diagonal')[-1]):.2f}"
    )


def _layers(runs: Mapping[str, Emergence]) -> Claim | None:
    same = {"tasks": "polynomial", "positions": "learned"}
    found = {int(r.config["n_layers"]): r for r in _where(runs, **same, **_ablation(runs)).values()}
    agrees = _has_both(found[2]) and not _has_both(found[1]) if {1, 2} <= found.keys() else None
    return _by(found, "layers", "layers", "the circuit takes two layers", agrees)


def _positions(runs: Mapping[str, Emergence]) -> Claim | None:
    same = {"tasks": "polynomial", "n_layers": 2}
    found = {str(r.config["positions"]): r for r in _where(runs, **same, **_ablation(runs)).values()}
    return _by(found, "positions", "position embeddings", "not stated (learned ones are used)")


def _ablation(runs: Mapping[str, Emergence]) -> Row:
    """Return what trainings that are compared with each other have in common."""
    widths = [run.config["d_model"] for run in runs.values()]
    width = max(set(widths), key=widths.count) if widths else None
    return {"max_length": _ablated(runs), "d_model": width, "seed": 0, "chain_of_thought": True}


def _lengths(runs: Mapping[str, Emergence]) -> Claim | None:
    same = {**_ablation(runs), "tasks": "polynomial"}
    del same["max_length"]
    found = {int(run.config["max_length"]): run for run in _usual(runs, **same).values()}
    return _by(found, "inputs", "length", "not stated")


def _exceptions(runs: Mapping[str, Emergence]) -> Claim | None:
    with_chain = {name: run for name, run in runs.items() if run.has_circuit}
    learned = {n: r for n, r in with_chain.items() if float(r.exact()[-1]) >= _LEARNED}
    if not learned:
        return None
    lacking = [
        f"{name} ({_scores(run)})"
        for name, run in learned.items()
        if min(float(run.curve(kind)[-1]) for kind in KINDS) < _CLEAR
    ]
    ours = f"{len(lacking)} of {len(learned)} trainings with {_LEARNED:.0%} exact have a score below {_CLEAR}"
    return Claim(
        "accuracy without the clean circuit", "not stated", ": ".join(filter(None, [ours, "; ".join(lacking)])), None
    )


def _reasoner(found: IterationHeads) -> list[Claim]:
    rows = []
    for link in ("recall", "input", "previous"):
        best = {task: s.ranking(link)[0] for task, s in found.scores.items() if link in s.links}
        if not best:
            continue
        shown = "; ".join(_best(found, task, link) for task in best)
        rows.append(Claim(f"{found.model}, {link} heads", "new here", shown, None))
        shared = [found.overlaps[task][link] for task in best]
        ours = (
            f"{sum(len(o.shared) for o in shared)} of {sum(o.n for o in shared)} best heads are among those that right "
            f"tokens lose most without ({sum(o.expected for o in shared):.1f} by chance); rank correlation "
            + ", ".join(f"{task} {o.rank_correlation:+.2f}" for task, o in zip(best, shared, strict=True))
        )
        rows.append(Claim(f"{found.model}, {link} and correct-processing heads", "new here", ours, None))
    return rows


def _best(found: IterationHeads, task: str, link: str) -> str:
    scores = found.scores[task]
    k, head = scores.link(link), scores.ranking(link)[0]
    silenced = [c for c, one in enumerate(scores.checked) if tuple(one) == head]
    lost = f", {float(scores.accuracy[k] - scores.accuracy_without[silenced[0], k]):+.2f} lost" if silenced else ""
    numbers = f"{float(scores.score[k][head]):.2f}, shuffled {float(scores.null_mean[k][head]):.2f}"
    return f"{task} L{head[0]}H{head[1]} {numbers}, p {float(scores.p_value[k][head]):.3f}{lost}"


def run_rows(found: IterationHeads) -> list[Row]:
    """Return one row a training: what it is, how well it does, and the two heads at its end."""
    return [{"training": name, **_run_row(run)} for name, run in found.runs.items()]


def _run_row(run: Emergence) -> Row:
    row: Row = {
        "steps": int(run.steps[-1]),
        "exact": round(float(run.exact()[-1]), 3),
        "exact at the longest": round(float(run.accuracy[-1, 0, -1]), 3),
        f"first {_LEARNED:.0%}": run.first_step(_LEARNED),
    }
    for kind in KINDS:
        named = kind.replace("_", "-")
        if not run.has_circuit:
            row |= {named: None, f"{named} > 0.5": None, f"{named} invariance": None}
            continue
        layer, head = run.best_head(kind)
        row[named] = f"L{layer}H{head} {float(run.curve(kind)[-1]):.2f}"
        row[f"{named} > 0.5"] = round(float(run.curve(kind, measure="thresholded")[-1]), 2)
        row[f"{named} invariance"] = round(float(run.curve(kind, measure="invariance")[-1]), 2)
    return row


def length_rows(found: IterationHeads) -> list[Row]:
    """Return one row a training with the exact share at every length."""
    longest = max((run.lengths[-1] for run in found.runs.values()), default=0)
    return [
        {"training": name, **{str(n): _at_length(run, n) for n in range(1, longest + 1)}}
        for name, run in found.runs.items()
    ]


def _at_length(run: Emergence, length: int) -> float | None:
    return round(float(run.accuracy[-1, 0, run.lengths.index(length)]), 2) if length in run.lengths else None


def markdown(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table; what is None is empty."""
    if not rows:
        return ""
    columns = list(rows[0])
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(_cell(row[name]) for name in columns) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _cell(value: Any) -> str:
    said: dict[type, Callable[[Any], str]] = {type(None): lambda v: "", bool: lambda v: "yes" if v else "no"}
    return said.get(type(value), str)(value).replace("|", "\\|")


def tables(found: IterationHeads) -> str:
    """Return every table as Markdown: claims, trainings, lengths."""
    said = [
        {"finding": c.finding, "published": c.published, "here": c.ours, "agrees": "" if c.agrees is None else c.agrees}
        for c in claims(found)
    ]
    parts = {"Findings": said, "Trainings": run_rows(found), "Exact by length": length_rows(found)}
    return "\n\n".join(f"## {title}\n\n{markdown(rows)}" for title, rows in parts.items()) + "\n"


__all__ = ["Claim", "claims", "length_rows", "markdown", "run_rows", "tables"]
