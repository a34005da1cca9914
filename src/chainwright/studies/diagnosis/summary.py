"""A diagnosis in lines of words: where it fails, of which kind, how sure it was, which heads, what helps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chainwright import tasks
from chainwright.diagnose.errors import ErrorTable
from chainwright.diagnose.heads.roles import HeadCheck, RoleFinding
from chainwright.evaluation.accuracy import Accuracy
from chainwright.evaluation.comparison import Comparison


def summary_lines(
    accuracy: Accuracy, errors: ErrorTable, roles: Sequence[RoleFinding], gains: Sequence[Comparison] = ()
) -> list[str]:
    """Return five lines, each of which begins with what it tells and is there whatever was found; one more a repair."""
    lines = [_where(accuracy), _kind(errors), _doubt(errors), _heads(roles), _reach(roles)]
    return [*lines, *(_gain(found) for found in gains)]


def _where(accuracy: Accuracy) -> str:
    names = list(dict.fromkeys(r["task"] for r in accuracy.rows))
    cells = [[r for r in accuracy.rows if r["task"] == name] for name in names]
    easy = [min(rows, key=lambda r: r["hops"]) for rows in cells]
    hard = [max(rows, key=lambda r: r["hops"]) for rows in cells]
    over = "1 task" if len(names) == 1 else f"{len(names)} tasks"
    return (
        f"Where: over {over} whole chains are right in {_mean(easy, 'exact'):.0%} of problems at the fewest hops asked "
        f"({_hops(easy)}) and in {_mean(hard, 'exact'):.0%} at the most ({_hops(hard)})."
    )


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    return float(sum(row[key] * row["n"] for row in rows) / sum(row["n"] for row in rows))


def _hops(rows: list[dict[str, Any]]) -> str:
    low, high = min(r["hops"] for r in rows), max(r["hops"] for r in rows)
    return str(low) if low == high else f"{low}-{high}"


def _kind(errors: ErrorTable) -> str:
    n_errors = sum(r["n"] for r in errors.by_task)
    if not n_errors:
        return "Kind: no trace has an error, so there is nothing to diagnose; ask for more hops."
    recall = sum(r["n"] for r in errors.by_task if tasks.family(r["task"], r["error_type"]) == "recall")
    keys = "; ".join(f"{tasks.title(t)} {', '.join(kinds)}" for t, kinds in errors.key_types.items())
    return f"Kind: {recall / n_errors:.0%} of {n_errors} first errors are recall errors; key types: {keys or 'none'}."


def _doubt(errors: ErrorTable) -> str:
    known = [r for r in errors.entropy if r["entropy_right"] is not None and r["error_type"] != "unparsed"]
    if not known:
        return "Doubt: no wrong token could be compared with right ones of its kind."
    n = sum(r["n_wrong"] for r in known)
    wrong = sum(r["entropy_wrong"] * r["n_wrong"] for r in known) / n
    right = sum(r["entropy_right"] * r["n_wrong"] for r in known) / n
    return f"Doubt: median entropy is {wrong:.2f} nats at first wrong tokens and {right:.2f} at such slots when right."


def _heads(roles: Sequence[RoleFinding]) -> str:
    if not roles:
        return "Heads: no key error type had enough first errors to look for heads."
    checked = [(role, role.check) for role in roles if role.check is not None]
    if not checked:
        return "Heads: located, but too few contexts were left to check the best ones on."
    role, check = max(checked, key=lambda pair: pair[1].corrected + pair[1].kept)
    layer, head = check.head
    return (
        f"Heads: in {tasks.title(role.task)}, {role.error_type}, silencing layer {layer} head {head} alone puts the "
        f"right token first in {check.corrected:.0%} of {check.n_erroneous} failing contexts that it was not chosen "
        f"on, and keeps it first in {check.kept:.0%} of {check.n_correct} right ones."
    )


def _reach(roles: Sequence[RoleFinding]) -> str:
    checked: list[HeadCheck] = [r.check for r in roles if r.check is not None]
    if not checked:
        return "Reach: no head was checked on contexts held out; more problems a cell would leave some."
    n = sum(c.n_erroneous for c in checked)
    fixed = sum(c.corrected * c.n_erroneous for c in checked) / n
    kept = sum(c.kept * c.n_correct for c in checked) / sum(c.n_correct for c in checked)
    over = "the error type" if len(checked) == 1 else f"the {len(checked)} error types"
    return (
        f"Reach: over {over} searched, the best single head of each fixes {fixed:.0%} of {n} "
        f"held-out failing contexts and keeps {kept:.0%} of the right ones; these are single tokens, not yet answers."
    )


def _gain(found: Comparison) -> str:
    alone, name = found.overall(found.baseline), found.names[-1]
    row = found.overall(name)
    at_stake = f"{row['n_fixed']} fixed, {row['n_broken']} broken"
    return (
        f"Repair: with {name} {row['exact']:.1%} of {row['n']} whole chains are right instead of {alone['exact']:.1%}: "
        f"{100 * row['exact_gain']:+.1f} points (95% {100 * row['exact_gain_low']:+.1f} to "
        f"{100 * row['exact_gain_high']:+.1f}); {at_stake}."
    )
