"""What the study says about the published findings, and its tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from chainwright._stats import Interval, wilson
from chainwright.reproduce.logit_flow import measures
from chainwright.reproduce.logit_flow.asking import KNOWN, MISSED, RIGHT, ROLES, SAID
from chainwright.reproduce.logit_flow.measures import Row

_FEWEST = 6  # answers of a group that a difference is taken of


def known_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the followed answers to one-hop questions, by group."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row["group"].startswith(KNOWN):
            groups.setdefault(row["group"], []).append(row)
    return groups


def of_group(rows: Sequence[Row], group: str) -> list[Row]:
    """Return the followed answers of one group."""
    return [row for row in rows if row["group"] == group]


def depth_table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the depth of each stage and of the value neurons, by group of facts: mean with its interval over facts."""
    groups = known_of(rows)
    if len(groups) > 1:
        groups[KNOWN] = [row for members in groups.values() for row in members]
    depths = {name: measures.depths(members) for name, members in groups.items()}
    table: list[dict[str, Any]] = []
    for what in next(iter(depths.values()), {}):
        row: dict[str, Any] = {"depth of": what}
        for name, by_stage in depths.items():
            values = by_stage[what]
            shown = _shown(*measures.mean_interval(values)) if np.isfinite(values).any() else "none"
            row[f"{name} ({len(groups[name])})"] = shown
        table.append(row)
    return table


def read_table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return what share of what heads add at the end they read from each role, by group of facts, in percent."""
    return [
        {"facts": name, "n": len(members)}
        | {
            role: _shown(*measures.mean_interval(100 * measures.read_shares(members, role)), digits=1)
            for role in ROLES[1]
        }
        for name, members in known_of(rows).items()
    ]


def split_table(answers: Sequence[Row]) -> list[dict[str, Any]]:
    """Return how many two-hop questions have each outcome, over all and over those whose two facts are known."""
    out = []
    for name, is_chosen in (("all", False), ("both facts known", True)):
        counts = Counter(row["outcome"] for row in answers if row["hops"] == 2 and (row["are_known"] or not is_chosen))
        total = counts.total()
        row: dict[str, Any] = {"two-hop questions": name, "n": total}
        for outcome in dict.fromkeys(("e3", "e2", *sorted(counts))):
            interval = wilson(counts[outcome], total) if total else Interval(0, 1)
            row[outcome] = _shown(counts[outcome] / total if total else float("nan"), interval)
        out.append(row)
    return out


def role_table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the share of credit of each role in both halves of the layers, by group of two-hop answers, in percent."""
    out = []
    for group in (RIGHT, SAID, MISSED):
        members = of_group(rows, group)
        if members:
            row: dict[str, Any] = {"answers": group, "n": len(members)}
            for role in ROLES[2]:
                low, high = measures.role_shares(members, role)
                row[role] = f"{100 * low.mean():.1f} + {100 * high.mean():.1f}"
            out.append(row)
    return out


def conflict_table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the log-probability of what is followed over its rival's, by role at quarters of the depth, nats."""
    out = []
    for group in (RIGHT, SAID):  # what is missed has what is said as its rival: the same figures, negative
        members = [row for row in of_group(rows, group) if row["contrast"]]
        for role in ROLES[2][:-1] if members else ():
            curves = np.array([row["contrast"][role] for row in members if role in row["contrast"]])
            if len(curves):
                ends = _shown(*measures.mean_interval(curves[:, -1]))
                quarters = curves.mean(0)[[len(curves[0]) * k // 4 for k in (1, 2, 3)]]
                row = {"answers": group, "n": len(curves), "position": role}
                row |= {f"{k}/4 of the depth": f"{value:+.2f}" for k, value in enumerate(quarters, 1)}
                out.append({**row, "end of the stack": ends})
    return out


def claims(answers: Sequence[Row], rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Yield a record for each published finding that can be measured here, without model and command."""
    facts = [row for members in known_of(rows).values() for row in members]
    if facts:
        yield from _of_facts(facts)
    yield from _of_two_hops(answers)
    if conflict := _conflict(rows):
        yield conflict


def _of_facts(facts: Sequence[Row]) -> Iterator[dict[str, Any]]:
    stages = measures.stages_of(facts, "", {})
    order = stages.order()
    (k, n), (k_else, n_else) = order["A, B below C, D"], order["elsewhere below C, D"]
    note = f"Unmarked positions lie below C and D in {k_else} of {n_else}, so the order alone says little."
    yield _share("flow-order", k, n, "known facts", note=note)
    depths = measures.depths(facts)
    for finding, what in (
        ("flow-depth", "C and D"), ("flow-entity-depth", "A and B"), ("flow-value-deep", "value neurons"),
    ):  # fmt: skip
        value, interval = measures.mean_interval(depths[what])
        n = int(np.isfinite(depths[what]).sum())
        yield _value(finding, value, interval, n, "known facts", f"{value:.2f} of the depth")
    ratios = measures.densities(facts)
    if len(ratios):
        value, interval_or_none = measures.median_and_interval(ratios)
        yield _value("flow-entity", value, interval_or_none, len(ratios), "known facts", f"{value:.1f} times")


def _of_two_hops(answers: Sequence[Row]) -> Iterator[dict[str, Any]]:
    composed = [row["outcome"] for row in answers if row["hops"] == 2 and row["are_known"]]
    wrong = [outcome for outcome in composed if outcome != "e3"]
    if composed:
        yield _share("flow-two-hop-right", composed.count("e3"), len(composed), "two-hop questions")
    if wrong:
        yield _share("flow-two-hop-wrong", wrong.count("e2"), len(wrong), "wrong answers")


def _conflict(rows: Sequence[Row]) -> dict[str, Any] | None:
    wrong, right = of_group(rows, SAID), of_group(rows, RIGHT)
    if min(len(wrong), len(right)) < _FEWEST:
        return None
    high = [measures.role_shares(members, "first relation")[1] for members in (wrong, right)]
    value, interval, p = measures.difference(*high)
    note = (
        f"At the first relation in the upper half of the layers is {100 * high[0].mean():.2f}% of the credit of "
        f"{len(wrong)} wrong answers and {100 * high[1].mean():.2f}% of that of {len(right)} right ones (Mann-Whitney "
        f"p = {p:.2g})."
    )
    shown = f"{100 * value:+.2f} points of credit"
    return _value("flow-conflict", value, interval, len(wrong) + len(right), "answers", shown) | {"note": note}


def _share(finding: str, k: int, n: int, n_what: str, note: str = "") -> dict[str, Any]:
    shown = f"{k} of {n} ({k / n:.0%})"
    return _value(finding, k / n, wilson(k, n), n, n_what, shown) | ({"note": note} if note else {})


def _value(finding: str, value: float, interval: Interval | None, n: int, n_what: str, shown: str) -> dict[str, Any]:
    record: Mapping[str, Any] = {"finding": finding, "value": value, "shown": shown, "n": n, "n_what": n_what}
    return {**record, **({} if interval is None else {"low": interval.low, "high": interval.high})}


def _shown(value: float, interval: Interval, digits: int = 2) -> str:
    return f"{value:.{digits}f} ({interval.low:.{digits}f} to {interval.high:.{digits}f})"
