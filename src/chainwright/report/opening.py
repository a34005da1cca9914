"""The opening paragraphs: what was found, in words, each number with how sure it is."""

from __future__ import annotations

from collections import Counter

from chainwright.diagnose.heads.roles import RoleFinding
from chainwright.evaluation.accuracy import n_exact, n_read
from chainwright.evaluation.comparison import Comparison
from chainwright.figures.words import counted, head_name, share_of, title_of
from chainwright.studies.diagnosis.run import Diagnosis
from chainwright.tasks import family

_FAMILY_SAID = {
    "recall": "a recall error",
    "computing or copying": "an error of computing or copying",
    "fewer or more hops": "a hop too few or too many",
    "other": "an error of another kind",
    "cannot be read": "something that cannot be read",
}


def opening(diagnosis: Diagnosis) -> list[str]:
    """Return what was found as two to four paragraphs."""
    paragraphs = [" ".join(filter(None, [_accuracy(diagnosis), _kind(diagnosis), _doubt(diagnosis)]))]
    gains = [_gain(found) for found in diagnosis.findings if isinstance(found, Comparison)]
    return [*paragraphs, *_heads(diagnosis.roles), *gains]


def _accuracy(diagnosis: Diagnosis) -> str:
    rows = diagnosis.accuracy.rows
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    right, n = sum(n_exact(row) for row in rows), sum(n_read(row) for row in rows)
    hardest = [max((r for r in rows if r["task"] == task), key=lambda r: int(r["hops"])) for task in tasks]
    over = f"{counted(n, 'problem')} of {title_of(tasks[0]) if len(tasks) == 1 else f'{len(tasks)} tasks'}"
    said = f"Asked {over}, {diagnosis.config.model} got {share_of(right, n, 'whole chains')} right"
    if n == sum(n_read(row) for row in hardest):
        return f"{said}."
    at_most = share_of(sum(n_exact(row) for row in hardest), sum(n_read(row) for row in hardest), "chains")
    return f"{said}; at the most hops of {'the task' if len(tasks) == 1 else 'each task'} it got {at_most} right."


def _kind(diagnosis: Diagnosis) -> str:
    families: Counter[str] = Counter()
    for row in diagnosis.errors.by_task:
        families[family(row["task"], row["error_type"])] += row["n"]
    if not families:
        return "No chain went wrong, so there is nothing to diagnose; ask for more hops."
    name, n = families.most_common(1)[0]
    return f"The first mistake is most often {_FAMILY_SAID[name]}: {share_of(n, families.total(), 'wrong chains')}."


def _doubt(diagnosis: Diagnosis) -> str:
    pairs = [row for row in diagnosis.errors.entropy if row["entropy_right"] is not None]
    if not pairs:
        return ""
    unsure = sum(row["entropy_wrong"] > row["entropy_right"] for row in pairs)
    apart = [row for row in pairs if row.get("wrong_low") is not None and row.get("right_high") is not None]
    said = (
        f"The model was less sure there than at slots of the same kind that it got right in {unsure} of the "
        f"{counted(len(pairs), 'error type')} that can be compared (by median entropy)"
    )
    if not apart:
        return f"{said}; in none of them are there enough tokens for an interval."
    clear = sum(row["wrong_low"] > row["right_high"] for row in apart)
    return f"{said}; in {clear} of the {len(apart)} with enough tokens for 95% intervals these do not even touch."


def _heads(roles: list[RoleFinding]) -> list[str]:
    if not roles:
        return []
    n_heads = roles[0].kept.numel()
    first = (
        f"To find the cause, each of the {n_heads:,} attention heads was silenced in turn at {_types(len(roles))}, "
        "and the one that fixed most and broke least was singled out for each."
    )
    checks = [found for found in roles if found.check is not None]
    if not checks:
        return [
            f"{first} There were too few contexts to check any of them on others than it was chosen on, so nothing "
            "firm is known: ask for more problems a cell."
        ]
    return [f"{first} {_checked(checks)} {_best(checks)}"]


def _types(n: int) -> str:
    return "the one error type searched" if n == 1 else f"each of the {n} error types searched"


def _checked(found: list[RoleFinding]) -> str:
    checks = [f.check for f in found if f.check is not None]
    fixed = sum(round(c.corrected * c.n_erroneous) for c in checks)
    kept = sum(round(c.kept * c.n_correct) for c in checks)
    wrong, right = sum(c.n_erroneous for c in checks), sum(c.n_correct for c in checks)
    where = "the one type" if len(checks) == 1 else f"the {len(checks)} types"
    return (
        f"On contexts that had no part in the choice, which {where} with enough of them allowed, silencing it put the "
        f"right token first in {share_of(fixed, wrong, 'failing contexts')} and left it first in "
        f"{share_of(kept, right, 'right ones')}."
    )


def _best(found: list[RoleFinding]) -> str:
    best = max(found, key=lambda f: f.check.corrected + f.check.kept if f.check else 0.0)
    assert best.check is not None
    check = best.check
    n = round(check.corrected * check.n_erroneous)
    said = (
        f"It did best at {title_of(best.task)}, {best.error_type}: {head_name(check.head)} fixed "
        f"{share_of(n, check.n_erroneous, 'contexts')}"
    )
    if len(found) > 1:
        said += f", a figure that is flattered by being the best of {len(found)}"
    wide = "" if check.n_erroneous >= 20 else " With so few contexts take the head as a lead, not as a result."
    return f"{said}.{wide} These are single tokens; no answer was decoded again without the head."


def _gain(found: Comparison) -> str:
    alone, name = found.overall(found.baseline), found.names[-1]
    row = found.overall(name)
    got = share_of(round(row["exact"] * row["n"]), row["n"], "whole chains")
    low, high = 100 * row["exact_gain_low"], 100 * row["exact_gain_high"]
    gain = f"{100 * row['exact_gain']:+.1f} points (95% {low:+.1f} to {high:+.1f})"
    unsure = "" if low > 0 or high < 0 else ", which cannot be told from nothing on so many problems"
    return (
        f"The same problems were answered again with the repair {name}: it got {got} right, the model alone "
        f"{round(alone['exact'] * alone['n']):,}. "
        f"It fixed {row['n_fixed']:,} and broke {row['n_broken']:,}: {gain}{unsure}."
    )
