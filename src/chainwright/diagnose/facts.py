"""The facts of findings that a summary names: how far chains get, which errors, how sure, which heads, what is gained.

Each number is computed here once; `summary` words them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from chainwright import tasks
from chainwright._finding import Finding
from chainwright.diagnose.curves import Curves
from chainwright.diagnose.errors import ErrorTable
from chainwright.diagnose.heads.roles import HeadCheck, RoleFinding
from chainwright.evaluation.accuracy import Accuracy, n_exact, n_read
from chainwright.evaluation.comparison import Comparison, n_read_of

F = TypeVar("F")


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


class Answers(NamedTuple):
    """Final answers of problems whose chains are not known: how many are right, and how many are no answer at all."""

    n: int
    n_right: int
    n_unread: int
    n_cut: int
    n_looping: int = 0


class Sureness(NamedTuple):
    """How sure the model was in right and in wrong responses: entropy per token, in nats.

    Attributes:
        right, wrong: Means over whole responses; None without such responses.
        auc: How often a wrong response has the higher entropy of a pair, with its 95% interval; None without pairs.
        low, high: Its interval; None where it cannot be had.
        missing: Why the two cannot be compared; "" if they are.
    """

    right: float | None
    wrong: float | None
    auc: float | None
    low: float | None
    high: float | None
    missing: str


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
        measured: Share of them that was silenced per error type, those that rank highest by an estimate.
        n_types: Error types that were searched.
        checks: The checks on held-out contexts, where there were enough.
        best: The error type whose head did best on them; None without a check.
        n_wrong, n_fixed: Held-out failing contexts, and those in which the right token then comes first.
        n_right, n_kept: Held-out right contexts, and those in which it still comes first.
    """

    n_heads: int
    measured: float
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
        answers: From `Accuracy`, of problems without known chains.
        sureness: From `Curves`.
    """

    reach: Reach | None
    kinds: Kinds | None
    uncertainty: Uncertainty | None
    heads: BestHeads | None
    gains: list[Gain]
    answers: Answers | None = None
    sureness: Sureness | None = None


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
        gains=[_gain(comparison) for comparison in _of(held, Comparison) if _is_read_pair(comparison)],
        answers=None if accuracy is None else _answers(accuracy.rows),
        sureness=next(map(_sureness, _of(held, Curves)), None),
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


def _answers(rows: Sequence[dict[str, Any]]) -> Answers | None:
    """Return the answers of all cells of which no chain is known; None if there is no such cell."""
    own = [row for row in rows if not n_read(row)]
    if not own:
        return None
    n, n_right = (sum(int(row["n"]) for row in own), sum(round(row["accuracy"] * row["n"]) for row in own))
    return Answers(
        n, n_right, *(sum(int(row.get(key, 0)) for row in own) for key in ("n_unread", "n_cut_answers", "n_looping"))
    )


def _sureness(found: Curves) -> Sureness:
    whole = {
        row["group"]: float(row["mean"])
        for row in found.rows
        if row["measure"] == "entropy" and row["place"] == "whole response"
    }
    apart = next((row for row in found.separation if row["measure"] == "entropy"), {})
    interval = {key: apart.get(key) for key in ("auc", "low", "high")}
    return Sureness(whole.get("right"), whole.get("wrong"), **interval, missing=found.missing())


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


def _measured(role: RoleFinding) -> float:
    return float(role.config["measured"]) if role.config.get("method") == "screened" else 1.0


def _best_heads(roles: Sequence[RoleFinding]) -> BestHeads:
    checked = [(role, role.check) for role in roles if role.check is not None]
    checks = [check for _, check in checked]
    best = max(checked, key=lambda pair: pair[1].corrected + pair[1].kept)[0] if checked else None
    return BestHeads(
        n_heads=roles[0].kept.numel(),
        measured=min(_measured(role) for role in roles),
        n_types=len(roles),
        checks=checks,
        best=best,
        n_wrong=sum(check.n_erroneous for check in checks),
        n_fixed=sum(round(check.corrected * check.n_erroneous) for check in checks),
        n_right=sum(check.n_correct for check in checks),
        n_kept=sum(round(check.kept * check.n_correct) for check in checks),
    )


def _is_read_pair(comparison: Comparison) -> bool:
    """Return whether a comparison is of two ways and has whole chains that were read."""
    return len(comparison.names) == 2 and comparison.overall(comparison.names[-1])["exact_gain"] is not None


def _gain(comparison: Comparison) -> Gain:
    row = comparison.overall(comparison.names[-1])
    return Gain(
        name=comparison.names[-1],
        baseline=comparison.baseline,
        n=n_read_of(row),
        n_right=round(row["exact"] * n_read_of(row)),
        n_right_before=round(row["exact"] * n_read_of(row)) - row["n_fixed"] + row["n_broken"],
        points=100 * row["exact_gain"],
        low=100 * row["exact_gain_low"],
        high=100 * row["exact_gain_high"],
        n_fixed=row["n_fixed"],
        n_broken=row["n_broken"],
    )
