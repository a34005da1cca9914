"""The records of the findings on steps that a finished study holds (`chainwright.reproduce.findings`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chainwright._files import read_json
from chainwright._stats import bootstrap_interval, percentile_interval, resamples
from chainwright.diagnose.steps.causal_check import StepCauses
from chainwright.diagnose.steps.comparison import StepGroups
from chainwright.diagnose.steps.lock_in import BridgeGroups
from chainwright.diagnose.steps.measures import THINKING
from chainwright.evaluation.comparison import Comparison
from chainwright.repair.stepflow.repair import StepFlow
from chainwright.reproduce.stepflow import measures
from chainwright.reproduce.stepflow.config import ReproduceStepFlowConfig
from chainwright.reproduce.stepflow.study import COST, traces_of
from chainwright.studies import Results, Study

Record = dict[str, Any]
Values = NDArray[np.float64]
_N_RESAMPLES = 1000
# the finding that each way of decoding is about
_WAYS = {
    "both": "steps-gain",
    "bridge": "steps-bridge",
    "momentum": "steps-momentum",
    "tuned": "steps-tuned",
    "auto layers": "steps-chosen",
    "auto heads": "steps-heads",
}


def records_of(study: Study, command: str) -> list[Record]:
    """Return what `Result` takes for each finding that the study measured.

    Args:
        study: A finished study.
        command: What ran it.
    """
    config, done = ReproduceStepFlowConfig.from_record(study.manifest.config), study.results
    found = [*_of_groups(config, done), *_of_causes(config, done), *_of_ways(config, done), *_of_cost(done)]
    return [{"model": config.model, "command": command, **record} for record in found]


def _of_groups(config: ReproduceStepFlowConfig, done: Results) -> Iterator[Record]:
    """Yield what differs between right and wrong traces in the outer quarters of the layers."""
    common = {"seeds": [config.tune_seed]}
    if measures.STEPS in done:
        groups = StepGroups.load(done[measures.STEPS] / "groups")
        quarter = max(1, groups.right.shape[1] // 4)
        right, wrong = (side[:, :quarter, 0].nanmean(1).double().numpy() for side in (groups.right, groups.wrong))
        effect = _effect_of_pairs(right, wrong)
        note = f"Layers 0 to {quarter - 1}: {right.mean():.3f} where right, {wrong.mean():.3f} where wrong."
        yield {"finding": "steps-lock-in", **effect, "n": len(right), "n_what": "pairs", "note": note, **common}
        yield from ({**record, **common} for record in _of_decay(config, done, quarter))
    if measures.BRIDGES in done:
        right_mass, wrong_mass = BridgeGroups.load(done[measures.BRIDGES] / "groups").of(THINKING)
        if len(right_mass):
            quarter = max(1, right_mass.shape[1] // 4)
            lack = (right_mass - wrong_mass)[:, :quarter].mean((1, 2)).double().numpy()
            low, high = bootstrap_interval(lack, n_resamples=_N_RESAMPLES, seed=0)
            yield {"finding": "steps-question", "value": float(lack.mean()), "shown": f"{lack.mean():+.4f}", "low": low,
                   "high": high, "n": len(lack), "n_what": "pairs", **common}  # fmt: skip


def _of_decay(config: ReproduceStepFlowConfig, done: Results, quarter: int) -> Iterator[Record]:
    """Yield how the summary's dependence on the thinking differs in the upper layers, cell by cell."""
    shares = measures.decay_shares(done)[:, -quarter:].nanmean(1).double().numpy()
    cells: dict[tuple[str, int], tuple[list[float], list[float]]] = {}
    for trace, share in zip(measures.measured_traces(done), shares, strict=True):
        if trace.problem is not None and not np.isnan(share):
            sides = cells.setdefault((trace.problem.task, trace.problem.hops), ([], []))
            sides[trace.first_error is not None].append(float(share))
    both = [(np.array(right), np.array(wrong)) for right, wrong in cells.values() if right and wrong]
    if both:
        n = sum(len(right) + len(wrong) for right, wrong in both)
        yield {"finding": "steps-decay", **_effect_of_cells(both), "n": n, "n_what": "traces",
               "note": "Whole traces, compared within each task and hop count."}  # fmt: skip


def _effect(right: Values, wrong: Values) -> float:
    """Return the share of (right, wrong) pairs with a larger wrong value, minus the share with a smaller one."""
    return float(np.sign(wrong[:, None] - right[None]).mean())


def _effect_of_pairs(right: Values, wrong: Values) -> Record:
    drawn = [rows for block in resamples(len(right), _N_RESAMPLES, 0) for rows in block]
    return _shown(_effect(right, wrong), [_effect(right[rows], wrong[rows]) for rows in drawn])


def _effect_of_cells(cells: Sequence[tuple[Values, Values]]) -> Record:
    """Return the effect of right over wrong values, mean over cells; their traces are resampled within each side."""
    rng = np.random.default_rng(0)

    def draw(values: Values) -> Values:
        return rng.choice(values, len(values))

    drawn = [float(np.mean([-_effect(draw(a), draw(b)) for a, b in cells])) for _ in range(_N_RESAMPLES)]
    return _shown(float(np.mean([-_effect(a, b) for a, b in cells])), drawn)


def _shown(effect: float, drawn: Sequence[float]) -> Record:
    low, high = percentile_interval(drawn)
    return {"value": effect, "shown": f"{effect:+.2f}", "low": min(low, effect), "high": max(high, effect)}


def _of_causes(config: ReproduceStepFlowConfig, done: Results) -> Iterator[Record]:
    units = [unit for task in config.hops if (unit := measures.causes_unit(task)) in done]
    found = [StepCauses.load(done[unit] / "causes") for unit in units]
    rhos = [rho for one in found for rho in one.rank_correlation.tolist() if rho == rho]
    if rhos:
        n = sum(len({pair[0] for pair in one.pairs}) for one in found)
        n_large = sum(int(one.separation()[:, 0].sum()) for one in found)
        separated = [float(p) for one in found for k, p in one.separation().tolist() if k]
        note = f"{n_large} cuts cost 0.01 nats or more" + (
            f"; saliency separates them from the others with {np.median(separated):.2f}." if separated else "."
        )
        yield {"finding": "steps-causes", "value": float(np.median(rhos)), "shown": f"{np.median(rhos):+.2f}", "n": n,
               "n_what": "traces", "seeds": [config.tune_seed], "note": note}  # fmt: skip


def _of_ways(config: ReproduceStepFlowConfig, done: Results) -> Iterator[Record]:
    """Yield what each way of decoding gains, and tuned StepFlow against self-consistency."""
    compared = Comparison.load(done["comparison"] / "comparison")
    common = {"seeds": list(config.seeds), "n_what": "problems"}
    plain = compared.overall("none")["exact"]
    for way, finding in _WAYS.items():
        row = compared.overall(way)
        if row["exact_gain"] is not None:
            shown = f"{row['exact_gain']:+.3f} ({plain:.3f} to {row['exact']:.3f})"
            yield {
                "finding": finding,
                "value": row["exact_gain"],
                "shown": shown,
                "low": row["exact_gain_low"],
                "high": row["exact_gain_high"],
                "n": row["n_read"],
                "chosen_on": _chosen(config, done, way),
                "note": f"{row['n_fixed']} fixed, {row['n_broken']} broken.",
                **common,
            }
    if 4 not in config.samples:
        return
    for way, finding in (("tuned", "steps-voting"), ("tuned + self-consistency 2", "steps-with-voting")):
        right = [_answers(config, done, name) for name in (way, "self-consistency 4")]
        low, high = bootstrap_interval(right[0] - right[1], n_resamples=2 * _N_RESAMPLES, seed=0)
        means = [side.mean() for side in right]
        yield {"finding": finding, "value": means[0] - means[1], "low": low, "high": high, "n": len(right[0]), **common,
               "shown": f"{means[0] - means[1]:+.3f} ({means[0]:.3f} against {means[1]:.3f})",
               "chosen_on": _chosen(config, done, "tuned")}  # fmt: skip


def _answers(config: ReproduceStepFlowConfig, done: Results, way: str) -> Values:
    return np.array([trace.is_correct is True for trace in traces_of(config, done, way)], dtype=np.float64)


def _chosen(config: ReproduceStepFlowConfig, done: Results, way: str) -> str:
    """Return what was chosen on which other problems."""
    if way == "tuned":
        return f"Seed {config.tune_seed}: {StepFlow.from_pretrained(done['repair'] / 'repair').origin.note}"
    on = f"{len(measures.measured_traces(done))} problems of seed {config.tune_seed}"
    if way == "auto layers":
        chosen = measures.chosen_layers(done)
        layers = ", ".join(f"{layer} at {floor:.2f}" for layer, floor in zip(chosen.bridge, chosen.floors, strict=True))
        return f"Layers of the bridge, on {on}: {layers or 'none'}; of the momentum: {list(chosen.momentum) or 'none'}."
    if way == "auto heads":
        heads = ", ".join(f"L{layer}H{head} at {floor:.2f}" for layer, head, floor in measures.chosen_heads(done))
        return f"Heads of the bridge, on {on}: {heads or 'none'}."
    return ""


def _of_cost(done: Results) -> Iterator[Record]:
    """Yield what a token costs with the published settings, from the processor seconds of the runs."""
    per_token = {}
    for way in ("none", "both"):
        costs = [read_json(path / COST) for unit, path in done.items() if unit.startswith(f"runs/{way}/")]
        per_token[way] = sum(c["cpu_seconds"] for c in costs) / max(1, sum(c["n_tokens"] for c in costs))
    if per_token["none"]:
        ratio = per_token["both"] / per_token["none"]
        note = "Processor seconds of the same decodings, prompts included."
        yield {"finding": "steps-cost", "value": ratio, "shown": f"{ratio:.2f} times", "note": note}
