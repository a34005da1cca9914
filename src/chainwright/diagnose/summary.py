"""What findings say in words: the facts are computed once, and worded in two lengths, as lines and as paragraphs.

`facts_of` reads accuracy, first errors, head roles and comparisons out of a list of findings. `summary_lines` is what
the command line prints and the box at the top of a report shows; `paragraphs` is the opening of a report, in which
every share has its count and its 95% interval.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from chainwright import tasks
from chainwright._finding import Finding
from chainwright.diagnose.errors import ErrorTable
from chainwright.diagnose.heads.roles import HeadCheck, RoleFinding
from chainwright.evaluation.accuracy import Accuracy, n_exact, n_read
from chainwright.evaluation.comparison import Comparison
from chainwright.figures.words import counted, head_name, share_of, title_of

F = TypeVar("F")
_FAMILY_NAMES = {
    "recall": "a recall error",
    "computing or copying": "an error of computing or copying",
    "fewer or more hops": "a hop too few or too many",
    "other": "an error of another kind",
    "cannot be read": "a response that cannot be read",
}


class Chains(NamedTuple):
    """Whole chains right among those that could be read, over cells of (task, hops)."""

    n: int
    n_right: int
    hops: str

    @property
    def share(self) -> float:
        """Return the share of the problems whose whole chain is right."""
        return self.n_right / self.n


@dataclass(frozen=True)
class Reach:
    """How far a model gets.

    Attributes:
        tasks: Names of the tasks.
        all: All problems.
        easy, hard: The problems at the fewest and at the most hops of each task.
    """

    tasks: list[str]
    all: Chains
    easy: Chains
    hard: Chains


@dataclass(frozen=True)
class Kinds:
    """Which first errors there are.

    Attributes:
        n: First errors in all.
        families: How many belong to each family of types.
        key_types: Each task's key error types.
        n_unlocated: Wrong answers whose first error is unknown.
    """

    n: int
    families: Mapping[str, int]
    key_types: Mapping[str, Sequence[str]]
    n_unlocated: int = 0


@dataclass(frozen=True)
class Uncertainty:
    """Entropy in nats at first errors against correct slots of the same type.

    Attributes:
        at_errors, at_correct: Mean over the error types of their median entropies, each type weighted by its number of
            first errors. (The table of errors keeps medians per type, so a median over all tokens cannot be had.)
        n_types: Error types that can be compared.
        n_higher: Those whose median is higher at errors.
        n_intervals: Those with 95% intervals of both medians.
        n_apart: Those whose interval at errors lies wholly above the other.
    """

    at_errors: float
    at_correct: float
    n_types: int
    n_higher: int
    n_intervals: int
    n_apart: int


@dataclass(frozen=True)
class BestHeads:
    """What silencing the best single head of each error type does.

    Attributes:
        n_heads: Heads of the model.
        n_types: Error types that were searched.
        checks: The checks on held-out contexts, where there were enough.
        best: The error type whose head did best on them; None without a check.
        n_wrong, n_fixed: Held-out failing contexts, and those in which the right token then comes first.
        n_right, n_kept: Held-out right contexts, and those in which it still comes first.
    """

    n_heads: int
    n_types: int
    checks: list[HeadCheck]
    best: RoleFinding | None
    n_wrong: int
    n_fixed: int
    n_right: int
    n_kept: int


@dataclass(frozen=True)
class Gain:
    """What a way of decoding gains over another in whole chains; points are percentage points."""

    name: str
    baseline: str
    n: int
    n_right: int
    n_right_before: int
    points: float
    low: float
    high: float
    n_fixed: int
    n_broken: int

    @property
    def interval(self) -> str:
        """Return the gain with its 95% interval, such as "+6.5 points (95% +5.1 to +8.1)"."""
        return f"{self.points:+.1f} points (95% {self.low:+.1f} to {self.high:+.1f})"


@dataclass(frozen=True)
class Facts:
    """The facts of some findings; None where no finding says anything.

    Attributes:
        reach: From `Accuracy`.
        kinds, uncertainty: From `ErrorTable`.
        heads: From `RoleFinding`.
        gains: From `Comparison`s of two ways of decoding.
    """

    reach: Reach | None
    kinds: Kinds | None
    uncertainty: Uncertainty | None
    heads: BestHeads | None
    gains: list[Gain]


def facts_of(findings: Iterable[Finding]) -> Facts:
    """Return the facts of findings: of the first accuracy, the first error table, all roles and all comparisons."""
    held = list(findings)
    accuracy, errors = next(_of(held, Accuracy), None), next(_of(held, ErrorTable), None)
    roles = list(_of(held, RoleFinding))
    return Facts(
        reach=None if accuracy is None else _reach(accuracy.rows),
        kinds=None if errors is None else _kinds(errors),
        uncertainty=None if errors is None else _uncertainty(errors),
        heads=_best_heads(roles) if roles else None,
        gains=[_gain(comparison) for comparison in _of(held, Comparison) if len(comparison.names) == 2],
    )


def _of(findings: Iterable[Finding], kind: type[F]) -> Iterator[F]:
    return (finding for finding in findings if isinstance(finding, kind))


def _reach(rows: Sequence[dict[str, Any]]) -> Reach | None:
    """Return how far the model gets, by the cells of which some chain could be read; None if there is none."""
    known = [row for row in rows if row["hops"] is not None and n_read(row)]
    if not known:
        return None
    by_task: dict[str, list[dict[str, Any]]] = {}
    for row in known:
        by_task.setdefault(row["task"], []).append(row)
    easy = [min(own, key=lambda row: int(row["hops"])) for own in by_task.values()]
    hard = [max(own, key=lambda row: int(row["hops"])) for own in by_task.values()]
    return Reach(list(by_task), _chains(known), _chains(easy), _chains(hard))


def _chains(rows: Sequence[Mapping[str, Any]]) -> Chains:
    low, high = min(row["hops"] for row in rows), max(row["hops"] for row in rows)
    return Chains(sum(map(n_read, rows)), sum(map(n_exact, rows)), str(low) if low == high else f"{low}-{high}")


def _kinds(errors: ErrorTable) -> Kinds:
    families: Counter[str] = Counter()
    for row in errors.by_task:
        families[tasks.family(row["task"], row["error_type"])] += row["n"]
    n_unlocated = sum(row["n_unlocated"] for row in errors.answers)
    return Kinds(families.total(), dict(families.most_common()), errors.key_types, n_unlocated)


def _uncertainty(errors: ErrorTable) -> Uncertainty | None:
    rows = [row for row in errors.entropy if row["entropy_right"] is not None and row["error_type"] != "unparsed"]
    if not rows:
        return None
    n = sum(row["n_wrong"] for row in rows)
    bounded = [row for row in rows if row.get("wrong_low") is not None and row.get("right_high") is not None]
    return Uncertainty(
        at_errors=sum(row["entropy_wrong"] * row["n_wrong"] for row in rows) / n,
        at_correct=sum(row["entropy_right"] * row["n_wrong"] for row in rows) / n,
        n_types=len(rows),
        n_higher=sum(row["entropy_wrong"] > row["entropy_right"] for row in rows),
        n_intervals=len(bounded),
        n_apart=sum(row["wrong_low"] > row["right_high"] for row in bounded),
    )


def _best_heads(roles: Sequence[RoleFinding]) -> BestHeads:
    checked = [(role, role.check) for role in roles if role.check is not None]
    checks = [check for _, check in checked]
    best = max(checked, key=lambda pair: pair[1].corrected + pair[1].kept)[0] if checked else None
    return BestHeads(
        n_heads=roles[0].kept.numel(),
        n_types=len(roles),
        checks=checks,
        best=best,
        n_wrong=sum(check.n_erroneous for check in checks),
        n_fixed=sum(round(check.corrected * check.n_erroneous) for check in checks),
        n_right=sum(check.n_correct for check in checks),
        n_kept=sum(round(check.kept * check.n_correct) for check in checks),
    )


def _gain(comparison: Comparison) -> Gain:
    before, row = comparison.overall(comparison.baseline), comparison.overall(comparison.names[-1])
    return Gain(
        name=comparison.names[-1],
        baseline=comparison.baseline,
        n=int(row["n"]),
        n_right=round(row["exact"] * row["n"]),
        n_right_before=round(before["exact"] * before["n"]),
        points=100 * row["exact_gain"],
        low=100 * row["exact_gain_low"],
        high=100 * row["exact_gain_high"],
        n_fixed=row["n_fixed"],
        n_broken=row["n_broken"],
    )


def summary_lines(facts: Facts, *, searched_heads: bool = False) -> list[str]:
    """Return one line per fact, each of which begins with a word that says what it is about.

    Args:
        facts: What `facts_of` returned.
        searched_heads: Whether heads were looked for, so that there is a line about them even if none was located.
    """
    lines = []
    if facts.reach is not None:
        lines.append(_reach_line(facts.reach))
    if facts.kinds is not None:
        lines += [_kinds_line(facts.kinds), _uncertainty_line(facts.uncertainty)]
    if facts.heads is not None or searched_heads:
        lines += [_heads_line(facts.heads), _held_out_line(facts.heads)]
    return [*lines, *(_gain_line(gain) for gain in facts.gains)]


def _reach_line(reach: Reach) -> str:
    if reach.easy == reach.hard:
        return (
            f"Where: over {counted(len(reach.tasks), 'task')} whole chains are right in {reach.all.share:.0%} of "
            f"problems ({reach.all.hops} hops)."
        )
    return (
        f"Where: over {counted(len(reach.tasks), 'task')} whole chains are right in {reach.easy.share:.0%} of problems "
        f"at the fewest hops asked ({reach.easy.hops}) and in {reach.hard.share:.0%} at the most ({reach.hard.hops})."
    )


def _kinds_line(kinds: Kinds) -> str:
    if not kinds.n and kinds.n_unlocated:
        return f"Kind: unknown; {counted(kinds.n_unlocated, 'wrong answer')}, none with a located first error."
    if not kinds.n:
        return "Kind: no trace has an error, so there is nothing to diagnose; ask for more hops."
    keys = "; ".join(f"{title_of(task)} {', '.join(types)}" for task, types in kinds.key_types.items())
    share = kinds.families.get("recall", 0) / kinds.n
    return f"Kind: {share:.0%} of {kinds.n} first errors are recall errors; key types: {keys or 'none'}."


def _uncertainty_line(uncertainty: Uncertainty | None) -> str:
    if uncertainty is None:
        return (
            "Uncertainty: no entropies to compare; they need token scores, errors and correct slots of the same type."
        )
    return (
        f"Uncertainty: entropy is {uncertainty.at_errors:.2f} nats at first errors vs {uncertainty.at_correct:.2f} at "
        "correct slots of the same type (medians per error type, averaged over errors)."
    )


def _heads_line(heads: BestHeads | None) -> str:
    if heads is None:
        return "Heads: no key error type had enough first errors to look for heads."
    if heads.best is None or heads.best.check is None:
        return "Heads: located, but too few contexts were left to check the best ones on."
    role, check = heads.best, heads.best.check
    layer, head = check.head
    return (
        f"Heads: in {title_of(role.task)}, {role.error_type}, silencing layer {layer} head {head} alone puts the "
        f"right token first in {check.corrected:.0%} of {check.n_erroneous} failing contexts that it was not chosen "
        f"on, and keeps it first in {check.kept:.0%} of {check.n_correct} right ones."
    )


def _held_out_line(heads: BestHeads | None) -> str:
    if heads is None or not heads.checks:
        return "Reach: no head was checked on held-out contexts; more problems per cell would leave some."
    over = "the error type" if len(heads.checks) == 1 else f"the {len(heads.checks)} error types"
    return (
        f"Reach: over {over} searched, the best single head of each fixes {heads.n_fixed / heads.n_wrong:.0%} of "
        f"{heads.n_wrong} held-out failing contexts and keeps {heads.n_kept / heads.n_right:.0%} of the right ones; "
        "these are single tokens, not yet answers."
    )


def _gain_line(gain: Gain) -> str:
    return (
        f"Repair: with {gain.name} {gain.n_right / gain.n:.1%} of {gain.n} whole chains are right instead of "
        f"{gain.n_right_before / gain.n:.1%}: {gain.interval}; {gain.n_fixed} fixed, {gain.n_broken} broken."
    )


def paragraphs(facts: Facts, model: str) -> list[str]:
    """Return the same facts as paragraphs of a report, each share with its count and its 95% interval.

    Args:
        facts: What `facts_of` returned.
        model: What the model is called.
    """
    first = [] if facts.reach is None else [_reach_text(facts.reach, model)]
    if facts.kinds is not None:
        first.append(_kinds_text(facts.kinds))
    if facts.uncertainty is not None:
        first.append(_uncertainty_text(facts.uncertainty))
    heads = [] if facts.heads is None else [_heads_text(facts.heads)]
    return [text for text in (" ".join(first), *heads, *(_gain_text(gain) for gain in facts.gains)) if text]


def _reach_text(reach: Reach, model: str) -> str:
    over = title_of(reach.tasks[0]) if len(reach.tasks) == 1 else f"{len(reach.tasks)} tasks"
    asked = (
        f"Asked {counted(reach.all.n, 'problem')} of {over}, {model} got "
        f"{share_of(reach.all.n_right, reach.all.n, 'whole chains')} right"
    )
    if reach.all.n == reach.hard.n:
        return f"{asked}."
    which = "the task" if len(reach.tasks) == 1 else "each task"
    return f"{asked}; at the most hops of {which} it got {share_of(reach.hard.n_right, reach.hard.n, 'chains')} right."


def _kinds_text(kinds: Kinds) -> str:
    if not kinds.n and kinds.n_unlocated:
        return f"{counted(kinds.n_unlocated, 'answer')} went wrong, but no first error could be located."
    if not kinds.n:
        return "No chain went wrong, so there is nothing to diagnose; ask for more hops."
    family, n = next(iter(kinds.families.items()))
    return f"The first error is most often {_FAMILY_NAMES[family]}: {share_of(n, kinds.n, 'wrong chains')}."


def _uncertainty_text(uncertainty: Uncertainty) -> str:
    text = (
        f"The model was less sure there than at correct slots of the same type for {uncertainty.n_higher} of the "
        f"{counted(uncertainty.n_types, 'error type')} that can be compared (by median entropy)"
    )
    if not uncertainty.n_intervals:
        return f"{text}; none of them has enough tokens for an interval."
    return (
        f"{text}; for {uncertainty.n_apart} of the {uncertainty.n_intervals} with enough tokens for 95% intervals of "
        "both medians, these do not overlap."
    )


def _heads_text(heads: BestHeads) -> str:
    where = "the one error type searched" if heads.n_types == 1 else f"each of the {heads.n_types} error types searched"
    first = (
        f"To find the cause, each of the {heads.n_heads:,} attention heads was silenced in turn at {where}, and for "
        "each type the head was chosen that fixed most and broke least."
    )
    if heads.best is None or heads.best.check is None:
        return (
            f"{first} There were too few contexts to check any of them on contexts that it was not chosen on, so "
            "these heads are leads, not results: ask for more problems per cell."
        )
    return f"{first} {_held_out_text(heads)} {_best_text(heads, heads.best, heads.best.check)}"


def _held_out_text(heads: BestHeads) -> str:
    where = "the one type" if len(heads.checks) == 1 else f"the {len(heads.checks)} types"
    return (
        f"On held-out contexts, which {where} had enough of, silencing it put the right token first in "
        f"{share_of(heads.n_fixed, heads.n_wrong, 'failing contexts')} and left it first in "
        f"{share_of(heads.n_kept, heads.n_right, 'right ones')}."
    )


def _best_text(heads: BestHeads, best: RoleFinding, check: HeadCheck) -> str:
    n_fixed = round(check.corrected * check.n_erroneous)
    text = (
        f"It did best in {title_of(best.task)}, {best.error_type}: {head_name(check.head)} fixed "
        f"{share_of(n_fixed, check.n_erroneous, 'contexts')}"
    )
    if len(heads.checks) > 1:
        text += f", an optimistic figure, as it is the best of {len(heads.checks)}"
    caution = "" if check.n_erroneous >= 20 else " With so few contexts take the head as a lead, not as a result."
    return f"{text}.{caution} These are single tokens; no answer was decoded again without the head."


def _gain_text(gain: Gain) -> str:
    unclear = ", not distinguishable from zero at this sample size" if gain.low <= 0 <= gain.high else ""
    return (
        f"The same problems were answered again with {gain.name}: {share_of(gain.n_right, gain.n, 'whole chains')} "
        f"are right, against {gain.n_right_before:,} with {gain.baseline}. It fixed {gain.n_fixed:,} and broke "
        f"{gain.n_broken:,}: {gain.interval}{unclear}."
    )
