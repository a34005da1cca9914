"""The records of the TCR paper's findings that a finished study holds (`chainwright.reproduce.findings`)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chainwright._files import read_json
from chainwright._stats import bootstrap_interval, wilson
from chainwright.diagnose.errors import first_errors
from chainwright.repair.tcr.candidate_heads import Candidates
from chainwright.reproduce.tcr.ablations import load_outcomes
from chainwright.reproduce.tcr.config import ReproduceTCRConfig, fit_runs_of, role_units_of, runs_of
from chainwright.reproduce.tcr.role_figures import n_compared, roles_in
from chainwright.studies import Study
from chainwright.traces import Trace, read_traces

Record = dict[str, Any]
_PAPERS_TAU = 0.3
_LEAST_ERRORS = 5  # how often a selector hits is not said of fewer


def records_of(study: Study, command: str) -> list[Record]:
    """Return what `Result` takes for each finding that the study measured.

    Args:
        study: A finished study.
        command: What ran it.
    """
    config, done = ReproduceTCRConfig.from_record(study.manifest.config), study.results
    common = {"model": config.model, "command": command}
    found = [
        *_of_chains(config, done),
        *_of_errors(config, done),
        *_of_roles(config, done),
        *_of_heads(done),
        *_of_selector(config, done),
        *_of_ways(config, done),
    ]
    return [{**common, **record} for record in found]


def _plain(config: ReproduceTCRConfig, done: Mapping[str, Path]) -> list[Trace]:
    """Return every trace of the model alone."""
    units = [*fit_runs_of(config), *(runs_of(config, "none") if "none" in config.ways else [])]
    return [trace for unit in units for trace in read_traces(done[unit] / "traces.parquet")]


def _of_chains(config: ReproduceTCRConfig, done: Mapping[str, Path]) -> Iterator[Record]:
    """Yield what the chains of the model alone show, all problems together."""
    traces = _plain(config, done)
    seeds = sorted({*config.seeds, *([] if config.repair else [config.fit_seed])})
    table = first_errors(traces)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in table.by_task:
        counts[row["task"]][row["error_type"]] += row["n"]
    tops = {task: kinds.most_common(1)[0][1] / kinds.total() for task, kinds in counts.items() if kinds.total()}
    has_key = [share >= 0.3 for share in tops.values()]
    if has_key:
        yield {
            "finding": "tcr-key-types",
            "value": sum(has_key) / len(has_key),
            "shown": f"{sum(has_key)} of {len(has_key)} tasks",
            "n": sum(kinds.total() for kinds in counts.values()),
            "n_what": "first errors",
            "seeds": seeds,
            "note": "Most frequent: "
            + "; ".join(f"{task} {kinds.most_common(1)[0][0]} {tops[task]:.0%}" for task, kinds in counts.items())
            + ".",
        }
    if names := counts.get("parity"):
        yield {"finding": "tcr-recall", "seeds": seeds, **_share(names["name recall"], names.total(), "first errors")}
    yield from _of_hops(traces, seeds)


def _of_hops(traces: Sequence[Trace], seeds: list[int]) -> Iterator[Record]:
    cells: dict[str, dict[int, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for trace in traces:
        if trace.problem is not None:
            cells[trace.problem.task][trace.problem.hops].append(trace.first_error is None)
    several = {task: sorted(by_hops.items()) for task, by_hops in cells.items() if len(by_hops) > 1}
    if not several:
        return
    ends = {
        task: [(hops, sum(right) / len(right)) for hops, right in (rows[0], rows[-1])] for task, rows in several.items()
    }
    n_falls = sum(first > 0 and last <= first / 2 for (_, first), (_, last) in ends.values())
    yield {
        "finding": "tcr-hops",
        "value": n_falls / len(ends),
        "shown": f"{n_falls} of {len(ends)} tasks",
        "n": len(traces),
        "n_what": "chains",
        "seeds": seeds,
        "note": "Chains right: "
        + "; ".join(f"{t} {p:.2f} at {h} hops, {q:.2f} at {g}" for t, ((h, p), (g, q)) in ends.items())
        + ".",
    }


def _share(n: int, of: int, what: str) -> Record:
    low, high = wilson(n, of)
    return {"value": n / of, "shown": f"{n} of {of} ({n / of:.0%})", "low": low, "high": high, "n": of, "n_what": what}


def _of_errors(config: ReproduceTCRConfig, done: Mapping[str, Path]) -> Iterator[Record]:
    """Yield how often the entropy shows a first error."""
    unit = "errors" if "errors" in done else "forced/all"
    if unit not in done or not (done[unit] / "outcomes.safetensors").exists():
        return
    found = load_outcomes(done[unit])
    first: dict[int, int] = {}
    for at in (~found.is_right).nonzero()[:, 0].tolist():
        first.setdefault(int(found.lesson[at]), at)
    if first:
        n = sum(float(found.entropy[at]) > _PAPERS_TAU for at in first.values())
        share = _share(n, len(first), "first errors")
        yield {"finding": "tcr-entropy", "seeds": list(config.seeds), **share}


def _of_roles(config: ReproduceTCRConfig, done: Mapping[str, Path]) -> Iterator[Record]:
    """Yield the figures on located heads, over all key error types."""
    rows = [row for unit in role_units_of(config) for row in read_json(done[unit] / "rows.json")]
    if not rows:
        return
    kinds = {"n": len(rows), "n_what": "error types", "seeds": [config.fit_seed]}
    n_right = sum(len(row["correct_processing"]) for row in rows)
    if n_right:
        n_both = sum(row["n_both"] for row in rows)
        yield {
            "finding": "tcr-disjoint", "value": n_both / n_right, "shown": f"{n_both} of {n_right} heads", **kinds,
        }  # fmt: skip
    shared, n_writing = [row["writing_shared"] for row in rows], rows[0]["n_writing"]
    mean = sum(shared) / len(shared)
    yield {
        "finding": "tcr-writing-shared",
        "value": mean / n_writing,
        "shown": f"{mean:.1f} of {n_writing} heads",
        **kinds,
    }
    gains = [gain for row in rows for gain in row["gains"]]
    if gains:
        low, high = bootstrap_interval(gains, n_resamples=1000, seed=0)
        value = float(np.mean(gains))
        yield {
            "finding": "tcr-rectification", "value": value, "shown": f"{value:+.3f}", "low": low, "high": high,
            "n": len(gains), "n_what": "first errors", "seeds": [config.fit_seed],
            "chosen_on": "One head per error type was chosen on other first errors of that type.",
        }  # fmt: skip
    n_heads = roles_in(config, done)[0].rectification.numel()
    yield from _of_corrected([row for row in rows if row["relocated"] is not None], config, n_heads)


def _of_corrected(rows: list[Record], config: ReproduceTCRConfig, n_heads: int) -> Iterator[Record]:
    """Yield what holds of predictions that silencing a head corrects."""
    if not rows:
        return
    kinds = {"n": len(rows), "n_what": "error types", "seeds": [config.fit_seed]}
    agree = float(np.mean([row["relocated"] for row in rows]))
    n = n_compared(n_heads)
    yield {
        "finding": "tcr-relocated",
        "value": agree,
        "shown": f"{agree:.0%} of {n} heads",
        "note": f"Of {n_heads} heads; {n / (n_heads - 1):.0%} would agree by chance.",
        **kinds,
    }
    between = [row["entropy_right"] < row["entropy_corrected"] < row["entropy_wrong"] for row in rows]
    means = [float(np.mean([row[f"entropy_{which}"] for row in rows])) for which in ("right", "corrected", "wrong")]
    yield {
        "finding": "tcr-rectified-entropy",
        "value": sum(between) / len(between),
        "shown": f"{sum(between)} of {len(between)} error types",
        "note": f"Mean entropy: right {means[0]:.2f}, corrected {means[1]:.2f}, wrong {means[2]:.2f} nats.",
        **kinds,
    }


def _of_heads(done: Mapping[str, Path]) -> Iterator[Record]:
    path = done["repair"] / "candidates"
    if path.exists():
        found = Candidates.load(path)
        n, types = len(found.heads), len(found.types)
        yield {
            "finding": "tcr-cover",
            "value": float(n),
            "shown": f"{n} head{'s' * (n > 1)} for {types} error types",
            "n": found.n_errors,
            "n_what": "errors",
            "note": f"At least one of them fixes {found.coverage[-1]:.0%} of these errors; any of the "
            f"{len(found.rows)} pooled heads {found.any_head:.0%}.",
        }


def _of_selector(config: ReproduceTCRConfig, done: Mapping[str, Path]) -> Iterator[Record]:
    unit = next((name for name in ("errors", "ablations") if name in done), None)
    rows = [] if unit is None else read_json(done[unit] / "rows.json").get("selector", [])
    path = done["repair"] / "candidates"
    if path.exists() and len(Candidates.load(path).heads) < 2:
        return  # there is nothing to select from
    errors = [row for row in rows if row["at"] == "errors" and row["task"] != "all"]
    fitted = set(config.fit_hops)
    for finding, wanted in (("tcr-hit", True), ("tcr-hit-other-tasks", False)):
        mine = [row for row in errors if (row["task"] in fitted) == wanted]
        n = sum(row["n"] for row in mine)
        if not n or not fitted:
            continue
        if n < _LEAST_ERRORS:
            yield {"finding": finding, "outcome": "cannot be tested here", "reason": _too_few(n)}
            continue
        hit, random = (sum(row[name] * row["n"] for row in mine) / n for name in ("Hit@1", "random"))
        yield {
            "finding": finding,
            "value": hit if wanted else hit - random,
            "shown": f"{hit:.2f} (random head: {random:.2f})",
            "n": n,
            "n_what": "errors that a choice fixes",
            "seeds": list(config.seeds),
            "chosen_on": f"The selector was trained on problems of seed {config.fit_seed}.",
        }


def _too_few(n: int) -> str:
    fixed = "A single first error" if n == 1 else f"Only {n} first errors"
    return f"{fixed} of the test problems can be fixed by a choice of heads, too few to say how often it is made."


def _of_ways(config: ReproduceTCRConfig, done: Mapping[str, Path]) -> Iterator[Record]:
    """Yield the gains in chains right on the problems of the study's seeds."""
    right = {way: _right(config, done, way) for way in config.ways}
    tasks = [trace.problem.task for trace in _traces(config, done, config.ways[0]) if trace.problem is not None]
    fitted = f"problems of seed {config.fit_seed}" if config.repair is None else f"other problems ({config.repair})"
    common = {
        "seeds": list(config.seeds),
        "chosen_on": f"Heads, detector, selector and verifier were fitted on {fitted}.",
    }
    held = np.array([task not in config.fit_hops for task in tasks])
    every = np.ones(len(tasks), dtype=bool)
    pairs = [
        ("tcr-gain", "TCR, entropy", "none", every),
        ("tcr-gold", "TCR, gold", "none", every),
        ("tcr-gap", "TCR, gold", "TCR, entropy", every),
        ("tcr-dola", "TCR, entropy", "DoLa", every),
        ("tcr-other-tasks", "TCR", "none", held),
    ]
    for finding, way, other, rows in pairs:
        if way in right and other in right and bool(rows.any()):
            yield {"finding": finding, **_gain(right[way][rows], right[other][rows]), **common}


def _traces(config: ReproduceTCRConfig, done: Mapping[str, Path], way: str) -> list[Trace]:
    return [trace for unit in runs_of(config, way) for trace in read_traces(done[unit] / "traces.parquet")]


def _right(config: ReproduceTCRConfig, done: Mapping[str, Path], way: str) -> Any:
    return np.array([trace.first_error is None for trace in _traces(config, done, way)], dtype=float)


def _gain(after: Any, before: Any) -> Record:
    low, high = bootstrap_interval(after - before, n_resamples=1000, seed=0)
    value = float((after - before).mean())
    return {
        "value": value,
        "shown": f"{value:+.3f} ({before.mean():.3f} to {after.mean():.3f})",
        "low": low,
        "high": high,
        "n": len(after),
        "n_what": "problems",
    }
