"""Where a value falls for good: which prefixes of a response to continue next, and when to stop.

The value v(t) is the probability that a response ends right after its first t tokens. Looked for is the earliest t with
v(t) - v(s) > drop for every later s: the fall that is never made good.

1. The question is continued first. A response that ends wrong has v = 0 at its end, without a continuation.
2. Bisection over the ends of steps: if the value has not fallen at a step end, all falls before it were made good, and
   the search continues behind it. If it has, it continues before it.
3. Two neighbouring step ends remain. Both are continued until an e-value says, at the stated error rate, that the value
   falls between them by more than `drop`, or by less, or until they have had `n_most` continuations. It may then be
   certain that it falls, and likely that it does by more than `drop`.
4. Some later step ends are continued to see whether the fall was made good; if so, it is noted, and the search
   continues behind that place.
5. The same bisection over the tokens of the step, down to one token.

Why bisection, although v need not be monotone: what matters is the largest value still to come, which never rises. A
step end with a high value proves that it is high. One with a low value does not prove that it is low, but for tokens
drawn from the model v is a martingale, so a prefix of value a ever comes back to b with probability a/b at most.

On the way a step end counts as high or low by a likelihood ratio between the values on both sides of it, with few
continuations. A mistake there costs continuations but no false claim: the path is walked again whenever a count
changes, and only step 3 decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, NamedTuple

from chainwright.diagnose.pivots.config import PivotConfig
from chainwright.diagnose.pivots.tally import Tally, log_evidence_of_fall, log_evidence_of_none

Status = Literal["found", "likely", "right", "rare", "gradual", "undecided"]
Verdict = Literal["certain", "likely", "none", "open"]
_LOG_SURE = math.log(20)  # likelihood ratio from which a prefix counts as high or low on the way
# the neighbours were chosen because they looked so, which evidence for any fall at all must outweigh
_LOG_SEARCHED = math.log(5)
_AT_ONCE = 2  # continuations by which a prefix is asked for, at least


class Fall(NamedTuple):
    """A fall of the value between two prefixes.

    Attributes:
        before: Length of the longest prefix that still has its value.
        after: Length of the shortest one that has lost it; `before + 1` for a single token.
        back: Length of a later prefix that has its value again; None where there is none.
    """

    before: int
    after: int
    back: int | None = None


@dataclass
class Outcome:
    """How a search ended.

    Attributes:
        status: "found" if it is certain that the value falls by more than `drop` within `step`; "likely" if it is
            certain that it falls there, by more than `drop` as far as was seen; "right" for a right response, in which
            nothing is to be found; "rare" if the value is too low for a fall; "gradual" if it falls, but nowhere by
            more than `drop`; "undecided" if the budget ended.
        fall: The fall that was found, or the narrowest place that remained; None where there is none.
        step: The step ends around it; None where no step is certain or likely.
        token: Whether it is certain or likely that the value falls so at one token; "open" where it is neither.
        made_good: Falls before it that were made good.
        n_to_step: Continuations that it took to be certain of the step.
    """

    status: Status = "undecided"
    fall: Fall | None = None
    step: Fall | None = None
    token: Verdict = "open"
    made_good: list[Fall] = field(default_factory=list)
    n_to_step: int | None = None

    @property
    def is_token(self) -> bool:
        """Return whether the fall is located to one token."""
        return self.token in ("certain", "likely")


class _Pair(NamedTuple):
    low: int
    high: int


class Search:
    """One response in which the fall is looked for; knows counts alone, no model.

    Attributes:
        ends: Lengths of the prefixes at the ends of steps, rising; the first is that of the question, the last that of
            the whole response.
        tallies: What is known of each prefix, by its length.
        outcome: What was found; final once `wanted` returns nothing.
    """

    def __init__(
        self,
        ends: Sequence[int],
        config: PivotConfig,
        tallies: Mapping[int, Tally],
        *,
        can_split: Sequence[bool] | None = None,
    ):
        """Take the step ends, and what is known: at least the value of the whole response.

        Args:
            ends: As the attribute.
            config: Sizes, error rate and budget.
            tallies: Continuations that were made before; the last end's value must be known.
            can_split: Whether each step may be searched for a token; by default all may.
        """
        self.ends = list(ends)
        self.config = config
        self.tallies = dict(tallies)
        self.outcome = Outcome()
        self._can_split = list(can_split) if can_split is not None else [True] * (len(self.ends) - 1)
        self._first = 0  # index of the end behind which the fall is looked for
        self._rechecked: set[int] = set()
        self._n_to_step: dict[Fall, int] = {}
        self._n_known = sum(tally.n_spent for tally in self.tallies.values())

    @property
    def n_spent(self) -> int:
        """Return how many continuations the search itself has asked for."""
        return sum(tally.n_spent for tally in self.tallies.values()) - self._n_known

    def of(self, position: int) -> Tally:
        """Return what is known of a prefix."""
        return self.tallies.get(position, Tally())

    def add(self, position: int, tally: Tally) -> None:
        """Count continuations of a prefix."""
        self.tallies[position] = self.of(position).plus(tally)

    def wanted(self) -> dict[int, int]:
        """Return how many more continuations to make of which prefixes; nothing once the search has ended."""
        self.outcome = Outcome(made_good=self.outcome.made_good)
        if self.of(self.ends[-1]).value > 0.5:
            self.outcome.status = "right"
            return {}
        if self.config.per_boundary is not None:
            missing = {end: self.config.per_boundary - self.of(end).n_spent for end in self.ends}
            missing = {end: n for end, n in missing.items() if n > 0 and self.of(end).known is None}
            if missing:
                return missing
        wanted = self._fixed() if self.config.per_boundary is not None else self._sequential()
        return self._within_budget(wanted)

    def _within_budget(self, wanted: dict[int, int]) -> dict[int, int]:
        """Return what may still be spent of it; nothing, and no verdict, where that is nothing."""
        left = math.inf if self.config.per_boundary is not None else self.config.budget - self.n_spent
        out = {}
        for position, n in wanted.items():
            n = int(min(n, left, self.config.n_most - self.of(position).n_spent))
            if n > 0:
                out[position] = n
                left -= n
        return out

    def _sequential(self) -> dict[int, int]:
        wanted = self._start()
        while not wanted and self.outcome.status != "rare":
            pair, wanted = self._walk(self.ends, self._first)
            if wanted:
                break
            fall = Fall(self.ends[pair.low], self.ends[pair.high])
            self.outcome.fall = fall
            verdict, wanted = self._certain(fall)
            if wanted or verdict in ("open", "none"):
                self.outcome.status = "gradual" if verdict == "none" else "undecided"
                break
            self.outcome.status, self.outcome.step = "found" if verdict == "certain" else "likely", fall
            self.outcome.n_to_step = self._n_to_step.setdefault(fall, self.n_spent)
            back, wanted = self._recheck(pair)
            if back is not None:
                self.outcome.made_good.append(fall._replace(back=self.ends[back]))
                self._first = back
                continue
            if not wanted:
                wanted = self._token(pair)
                break
        return wanted

    def _start(self) -> dict[int, int]:
        """Return what is missing to know a prefix from which a fall is possible; the first such is `_first`."""
        start, end = self.ends[self._first], self.of(self.ends[-1])
        missing = self.config.n_start - self.of(start).n_spent
        if self.of(start).known is None and missing > 0:
            return {start: missing}
        if self._is_above(self.of(start), end):
            return {}
        # the value may have risen on the way: look at a few step ends
        spots = sorted({round(i * (len(self.ends) - 1) / 4) for i in (1, 2, 3)} - {self._first, len(self.ends) - 1})
        few = {self.ends[i]: self.config.n_start - self.of(self.ends[i]).n_spent for i in spots if i > self._first}
        few = {end: n for end, n in few.items() if n > 0 and self.of(end).known is None}
        if few:
            return few
        high = [i for i in spots if i > self._first and self._is_above(self.of(self.ends[i]), end)]
        if not high:
            self.outcome.status = "rare"
            return {}
        self._first = high[-1]
        return {}

    def _is_above(self, tally: Tally, end: Tally) -> bool:
        """Say whether a value seems to be more than the drop above that of the whole response."""
        return tally.value - end.value > self.config.drop

    def _walk(self, at: Sequence[int], first: int, last: int | None = None) -> tuple[_Pair, dict[int, int]]:
        """Return the neighbours between which the value falls by what is known, or else what is missing to tell."""
        low, high = first, len(at) - 1 if last is None else last
        while high - low > 1:
            middle = (low + high) // 2
            has_fallen = self._has_fallen(at[low], at[middle], at[high])
            if has_fallen is None:
                missing = max(_AT_ONCE - self.of(at[middle]).n, 1)
                return _Pair(low, high), {at[middle]: missing}
            low, high = (low, middle) if has_fallen else (middle, high)
        return _Pair(low, high), {}

    def _has_fallen(self, low: int, middle: int, high: int) -> bool | None:
        """Return whether a prefix has lost the value of an earlier one; None if it takes more continuations to say."""
        before, tally = self.of(low), self.of(middle)
        if tally.known is not None:
            return before.value - tally.known > self.config.drop
        if tally.n_spent >= min(self.config.n_probe, self.config.n_most) or self._is_fixed:
            return (
                not before.value - tally.value <= self.config.drop
            )  # a prefix all of whose continuations are cut fell
        if tally.n < _AT_ONCE:
            return None
        top = before.shrunk
        bottom = min(self.of(high).shrunk, max(0.01, top - self.config.drop))
        ratio = tally.n_right * math.log(top / bottom) + tally.n_wrong * math.log((1 - top) / (1 - bottom))
        return None if abs(ratio) < _LOG_SURE else ratio < 0

    @property
    def _is_fixed(self) -> bool:
        return self.config.per_boundary is not None

    def _certain(self, fall: Fall) -> tuple[Verdict, dict[int, int]]:
        """Return whether the value falls by more than the drop, and what is missing while that is open."""
        before, after, drop = self.of(fall.before), self.of(fall.after), self.config.drop
        sure = -math.log(self.config.error_rate)
        if log_evidence_of_fall(before, after, drop) >= sure:
            return "certain", {}
        if log_evidence_of_none(before, after, drop) >= sure:
            return "none", {}
        open_ends = {
            position: tally
            for position, tally in ((fall.before, before), (fall.after, after))
            if tally.known is None and tally.n_spent < self.config.n_most
        }
        fewest = min((tally.n_spent for tally in open_ends.values()), default=0)
        wanted = {position: _AT_ONCE for position, tally in open_ends.items() if tally.n_spent <= fewest + _AT_ONCE}
        is_likely = (
            before.value - after.value > drop and log_evidence_of_fall(before, after, 0.0) >= sure + _LOG_SEARCHED
        )
        return "likely" if is_likely else "open", wanted

    def _recheck(self, pair: _Pair) -> tuple[int | None, dict[int, int]]:
        """Return the last step end behind a fall that has the value again, or what is missing to tell."""
        low, high, last = self.ends[pair.low], self.ends[pair.high], len(self.ends) - 1
        wanted: dict[int, int] = {}
        for i in reversed(self._later(pair.high, last)):
            is_low = self._has_fallen(low, self.ends[i], high)
            if is_low is None:
                wanted[self.ends[i]] = max(_AT_ONCE - self.of(self.ends[i]).n, 1)
            elif not is_low:
                return i, {}
        return None, wanted

    def _later(self, high: int, last: int) -> list[int]:
        """Return the step ends behind a fall that were looked at, and those in the middle of the widest gaps."""
        seen = [i for i in range(high + 1, last) if self.of(self.ends[i]).n_spent]
        n_new = self.config.n_rechecks - sum(1 for i in seen if i in self._rechecked)
        for _ in range(n_new):
            marks = [high, *sorted(seen), last]
            width, start = max((b - a, a) for a, b in pairwise(marks))
            if width < 2:
                break
            seen.append(start + width // 2)
            self._rechecked.add(start + width // 2)
        return sorted(seen)

    def _token(self, pair: _Pair) -> dict[int, int]:
        """Return what is missing to find the token inside a step whose value falls for certain."""
        step = self.outcome.step
        assert step is not None
        self.outcome.fall = step
        if step.after - step.before == 1:
            self.outcome.token = "certain" if self.outcome.status == "found" else "likely"
        if self.config.to == "step" or self.outcome.is_token or not self._can_split[pair.high - 1]:
            return {}
        places = range(step.before, step.after + 1)
        inner, wanted = self._walk(places, 0)
        if not wanted:
            fall = Fall(places[inner.low], places[inner.high])
            self.outcome.token, wanted = self._certain(fall)
            if self.outcome.token != "none":
                self.outcome.fall = fall
        return wanted

    def _fixed(self) -> dict[int, int]:
        """Return what is missing to find the token, where every step end has its continuations."""
        values = [self.of(end).value for end in self.ends]
        later = [max((v for v in values[i + 1 :] if v == v), default=0.0) for i in range(len(values) - 1)]
        falls = [i for i, most in enumerate(later) if values[i] - most > self.config.drop]
        if not falls:
            self.outcome.status = "gradual" if values[0] - values[-1] > self.config.drop else "rare"
            return {}
        pair = _Pair(falls[0], falls[0] + 1)
        step = Fall(self.ends[pair.low], self.ends[pair.high])
        self.outcome.status, self.outcome.step = "found", step
        self.outcome.n_to_step = self._n_to_step.setdefault(step, self.n_spent)
        return self._token(pair)
