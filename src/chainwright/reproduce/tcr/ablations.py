"""The ablations of TCR, from what single heads do at every token of right chains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from chainwright._files import read_json, write_json
from chainwright._stats import bootstrap_interval
from chainwright.repair.tcr.candidate_heads import Candidates
from chainwright.repair.tcr.detector import TrainedDetector
from chainwright.repair.tcr.fit import choice_scores, detection
from chainwright.repair.tcr.repair import TCR
from chainwright.repair.tcr.selector import Selector, best_is_right, hit_at_1
from chainwright.repair.tcr.training_data import Outcomes
from chainwright.repair.tcr.verifier import Verifier

_TAUS = (0.1, 0.2, 0.3, 0.4, 0.5)
_MAX_SETS = 60
VARIANT_NAMES = {"last": "last position", "half": "heads halved"}


def ablation_rows(
    found: Mapping[str, Outcomes],
    tcr: TCR,
    selectors: Mapping[str, Selector],
    candidates: Candidates | None,
    tau: float,
) -> dict[str, list[dict[str, Any]]]:
    """Return the tables of ablations by name.

    Args:
        found: Outcomes of the variants "all", "last" and "half", as far as they were run.
        tcr: The repair.
        selectors: Selectors of the same heads by name, the repair's own first and under "".
        candidates: How its heads were found, if that is known.
        tau: Threshold of the entropy detector, nats.
    """
    first = next(iter(found.values()))
    scores = {name: choice_scores(selector, first) for name, selector in selectors.items()}
    flags = {"trained": _doubts(tcr, first), "entropy": first.entropy > tau, "gold": ~first.is_right}
    tables = {
        "parts": _parts(found, tcr, scores, flags, candidates),
        "tau": [row for t in _TAUS for row in _tau_rows(t, first, tcr, scores[""])],
        "selector": selector_rows(first, scores),
    }
    if candidates is not None:
        tables["transfer"] = _transfer_rows(first, tcr, candidates)
    return tables


def _doubts(tcr: TCR, found: Outcomes) -> Tensor:
    if isinstance(tcr.detector, TrainedDetector):
        with torch.no_grad():
            doubts = tcr.detector.network(found.doubt)[:, 0].sigmoid()
        return (doubts > tcr.detector.threshold) & (found.entropy > tcr.detector.min_entropy)  # type: ignore[no-any-return]
    return found.entropy > getattr(tcr.detector, "tau", 0.3)


def _row(labels: Mapping[str, Any], found: Outcomes, flagged: Tensor, decided: Tensor) -> dict[str, Any]:
    """Return how many chains come out right, what that gains over the model alone, and how good the flags are."""
    before = found.chains_right(found.is_right).float()
    after = found.chains_right(found.repaired(flagged, decided)).float()
    change = (after - before).numpy()
    low, high = bootstrap_interval(change, n_resamples=1000, seed=0)
    at = detection(found, flagged)
    return {
        **labels,
        "chains right": float(after.mean()),
        "gain": float(change.mean()),
        "low": low,
        "high": high,
        "flagged": at.rate,
        "precision": at.precision,
        "recall": at.recall,
    }


def _parts(
    found: Mapping[str, Outcomes],
    tcr: TCR,
    by_selector: Mapping[str, Tensor],
    flags: Mapping[str, Tensor],
    candidates: Candidates | None,
) -> list[dict[str, Any]]:
    first = next(iter(found.values()))
    scores, labels = by_selector[""], first.labels
    none = torch.zeros(len(first.is_right), dtype=torch.bool)
    decisions = {} if tcr.verifier is None else {"verifier": _verified(tcr.verifier, first)}
    for name, own in by_selector.items():
        called = f"selector of {name}" if name else "selector"
        decisions |= {f"{called}, {n} vote{'s' * (n > 1)}": first.decided(own, n) for n in (3, 1)}
    decisions |= {
        "selector that never abstains, 3 votes": first.decided(_never_abstains(scores), 3),
        "selector that never abstains, 1 vote": first.decided(_never_abstains(scores), 1),
        "random head": first.decided(_never_abstains(torch.rand(scores.shape, generator=_seeded())), 1),
        "any head, chosen by the answer": labels[:, :-1].any(1),
        "second choice": first.second_is_right[first.doubtful],
    }
    if candidates is not None:
        decisions["highest mean effect, 1 vote"] = first.decided(_mean_effect(tcr, candidates, scores), 1)
        decisions["highest mean effect, 3 votes"] = first.decided(_mean_effect(tcr, candidates, scores), 3)
    rows = [_row({"flags": "none", "decision": "model alone"}, first, none, first.is_right[first.doubtful])]
    for name, flagged in flags.items():
        rows += [_row({"flags": name, "decision": what}, first, flagged, how) for what, how in decisions.items()]
        for variant in list(found)[1:]:
            other = found[variant]
            # the same tokens are doubtful in each variant, and the selector scores them alike
            for n in (3, 1):
                how = {"flags": name, "decision": f"selector, {n} vote{'s' * (n > 1)}, {VARIANT_NAMES[variant]}"}
                rows.append(_row(how, other, flagged, other.decided(scores, n)))
    return rows


def _verified(verifier: Verifier, found: Outcomes) -> Tensor:
    return found.verified(verifier.p_second(found.verifier_features))


def _tau_rows(tau: float, found: Outcomes, tcr: TCR, scores: Tensor) -> list[dict[str, Any]]:
    decisions = {"selector, 3 votes": found.decided(scores, 3)}
    if tcr.verifier is not None:
        decisions["verifier"] = _verified(tcr.verifier, found)
    flagged = found.entropy > tau
    return [_row({"tau": tau, "decision": name}, found, flagged, how) for name, how in decisions.items()]


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _never_abstains(scores: Tensor) -> Tensor:
    scores = scores.clone()
    scores[:, -1] = float("-inf")
    return scores


def _mean_effect(tcr: TCR, candidates: Candidates, scores: Tensor) -> Tensor:
    gains = {(r["layer"], r["head"]): r["rectification"] for r in candidates.rows}
    row = torch.tensor([*(gains.get(head, -1.0) for head in tcr.heads), float("-inf")])
    return row.expand_as(scores)


def selector_rows(found: Outcomes, by_selector: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Return Hit@1 of each selector and of an even draw by task, at errors and at all doubtful tokens."""
    names = [found.task[i] for i in found.doubtful.tolist()]
    is_error = ~found.is_right[found.doubtful]
    labels = found.labels
    even = torch.zeros_like(by_selector[""])
    rows = []
    for task in [*dict.fromkeys(names), "all"]:
        mine = torch.tensor([task in ("all", name) for name in names])
        for where, at in (("errors", mine & is_error), ("doubtful tokens", mine)):
            usable = at & labels.any(1)
            if bool(usable.any()):
                row: dict[str, Any] = {"task": task, "at": where, "n": int(usable.sum())}
                for name, scores in by_selector.items():
                    of = f", {name}" if name else ""
                    row[f"Hit@1{of}"] = hit_at_1(scores[usable], labels[usable])
                    row[f"best choice right{of}"] = best_is_right(scores[usable], labels[usable])
                rows.append({**row, "random": hit_at_1(even[usable], labels[usable])})
    return rows


def _transfer_rows(found: Outcomes, tcr: TCR, candidates: Candidates) -> list[dict[str, Any]]:
    """Return how many errors of a task some head located in another task fixes, compared with sets of as many heads."""
    located: dict[str, set[int]] = {}
    for name, pairs in candidates.types.items():
        chosen = {tcr.heads.index((h[0], h[1])) for h in pairs if (h[0], h[1]) in tcr.heads}
        located.setdefault(name.partition(": ")[0], set()).update(chosen)
    errors = ~found.is_right[found.doubtful]
    names = [found.task[i] for i in found.doubtful.tolist()]
    fixes = found.labels[:, :-1]
    rows = []
    for source, heads in located.items():
        if not heads:
            continue
        sets = list(combinations(range(len(tcr.heads)), len(heads)))[:_MAX_SETS]
        for target in dict.fromkeys(names):
            mine = errors & torch.tensor([name == target for name in names])
            if not bool(mine.any()):
                continue
            others = [float(fixes[mine][:, list(s)].any(1).float().mean()) for s in sets]
            rows.append(
                {
                    "heads of": source,
                    "n heads": len(heads),
                    "errors of": target,
                    "n errors": int(mine.sum()),
                    "fixed": float(fixes[mine][:, sorted(heads)].any(1).float().mean()),
                    "mean of all sets of that size": sum(others) / len(others),
                }
            )
    return rows


def save_outcomes(found: Outcomes, folder: Path) -> None:
    """Write outcomes as safetensors and JSON."""
    values = {f.name: getattr(found, f.name) for f in fields(Outcomes)}
    save_file({k: v.contiguous() for k, v in values.items() if isinstance(v, Tensor)}, folder / "outcomes.safetensors")
    write_json(folder / "words.json", {"task": found.task, "kind": found.kind, "contexts": found.contexts})


def load_outcomes(folder: Path) -> Outcomes:
    """Return what `save_outcomes` wrote."""
    tensors = load_file(folder / "outcomes.safetensors")
    values: dict[str, Any] = {**tensors, **read_json(folder / "words.json")}
    return Outcomes(**values)
