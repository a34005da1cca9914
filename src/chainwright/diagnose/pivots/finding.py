"""What a search for pivots found: where the values of responses fall, and what every measured prefix is worth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from torch import Tensor

from chainwright._errors import BadInput
from chainwright._finding import Finding
from chainwright._registry import register
from chainwright.diagnose.pivots.completers import in_words
from chainwright.diagnose.pivots.tally import Tally

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

STATUS_WORDS = {
    "found": "with a first error",
    "likely": "with a likely first error",
    "right": "right, so without one",
    "rare": "too rarely right from any prefix",
    "gradual": "whose value falls nowhere at once",
    "undecided": "undecided within the budget",
    "unread": "without an answer that could be read",
    "cut": "cut by the token limit",
    "unjudged": "that nothing judges",
}
_COUNTS = ("n_right", "n_wrong", "n_cut", "n_unread")


@register("finding", "Pivots")
@dataclass(frozen=True, kw_only=True)
class Pivots(Finding):
    """Pivots of N responses, from M prefixes of them that were continued.

    A prefix's value is the probability that its continuations end right. A pivot is a token at which it falls; the
    first error is the earliest one that is not made good.

    Attributes:
        rows: One per response, in order: `task`, `status` ("found" if it is certain that the value falls by more than
            `drop`, "likely" if it certainly falls, by more than `drop` as far as was seen, "right", "rare", "gradual",
            "undecided", or "unread", "cut" and "unjudged" for those that were not searched), `low` and `high` (lengths
            of the prefixes between which the value falls: one token apart where it was located to the token), `step`
            (index of the step, None where it is not certain), `position` (of the pivot token in the trace, else None),
            `n_continuations`, `n_to_step` (those it took to be certain of the step), `n_tokens` written, `n_cut`,
            `n_unread`.
        pivots: One per fall that is certain or likely: `trace`, `position` and `end` (of the tokens in which the value
            falls), `step`, `token_id`, `token`, `is_certain`, `is_first_error`, `back` (length of a prefix that has
            made it good, else None), `before` and `after` (each with `value`, `low`, `high`, `n_right`, `n`),
            `alternatives` (other tokens with `token_id`, `token`, `p` and their own value), `expected_id` (the
            alternative that succeeds best, or None).
        trace, length: Response and length of each measured prefix, in tokens of the trace, `[M]`.
        n_right, n_wrong, n_cut, n_unread: How its continuations ended, `[M]`; unread ones are among the wrong ones, cut
            ones are not.
        known: Its value where no continuation was needed, `[M]`; NaN where there was.
        input_ids: The tokens of all responses with their questions, one after another.
        n_tokens: Tokens of each, `[N]`.
        response_start: Where each response begins in its own tokens, `[N]`.
        steps: The steps of each response as [start, end].
        answers: What the continuations of each measured prefix answered, as counts by answer.
        responses: The text of each response.
        token_strs: The text of each token id above.
        selection: How many problems fell out before the search, by the reason.
    """

    rows: list[dict[str, Any]]
    pivots: list[dict[str, Any]]
    trace: Tensor
    length: Tensor
    n_right: Tensor
    n_wrong: Tensor
    n_cut: Tensor
    n_unread: Tensor
    known: Tensor
    input_ids: Tensor
    n_tokens: Tensor
    response_start: Tensor
    steps: list[list[list[int]]]
    answers: list[dict[str, int]]
    responses: list[str]
    token_strs: Mapping[str, str]
    selection: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of responses."""
        return len(self.rows)

    def ids_of(self, i: int) -> list[int]:
        """Return the tokens of a response with its question."""
        starts = [0, *self.n_tokens.cumsum(0).tolist()]
        return [int(token) for token in self.input_ids[starts[i] : starts[i + 1]]]

    def first_error(self, i: int = 0) -> dict[str, Any] | None:
        """Return the pivot at which a response goes wrong, down to one token; None where none is known."""
        own = (p for p in self.pivots if p["trace"] == i and p["is_first_error"] and p["end"] - p["position"] == 1)
        return next(own, None)

    def tallies(self, i: int) -> dict[int, Tally]:
        """Return what is known of each measured prefix of a response, by its length."""
        out = {}
        for at in (self.trace == i).nonzero()[:, 0].tolist():
            counts = {name: int(getattr(self, name)[at]) for name in _COUNTS}
            known = float(self.known[at])
            out[int(self.length[at])] = Tally(**counts, known=None if known != known else known)
        return dict(sorted(out.items()))

    @property
    def n_continuations(self) -> int:
        """Return the number of all continuations."""
        return sum(row["n_continuations"] for row in self.rows)

    def summary(self) -> str:
        """Return what became of the responses, what it took, and the first errors."""
        counts = Counter(row["status"] for row in self.rows)
        parts = [f"{n} {STATUS_WORDS[status]}" for status, n in counts.most_common()]
        lines = [f"{_counted(len(self.rows), 'response')}: {', '.join(parts) or 'none'}."]
        if fell := [f"{n} {reason}" for reason, n in self.selection.items() if n]:
            lines.append(f"Not searched: {', '.join(fell)}.")
        lines.append(self._cost())
        lines += [self._line(pivot) for pivot in self.pivots if pivot["is_first_error"]][:20]
        return "\n".join(lines)

    def _cost(self) -> str:
        n, n_cut = self.n_continuations, sum(row["n_cut"] for row in self.rows)
        n_unread = sum(row["n_unread"] for row in self.rows)
        words = f"{_counted(n, 'continuation')} by {in_words(self.config)}"
        if n_cut:
            words += f"; {n_cut} cut by the token limit, which count nowhere"
        if n_unread:
            words += f"; {n_unread} without an answer that could be read, which count as not right"
        return f"{words}."

    def _line(self, pivot: Mapping[str, Any]) -> str:
        before, after = pivot["before"], pivot["after"]
        where = f"token {pivot['position']} {pivot['token']!r}"
        if pivot["end"] - pivot["position"] > 1:
            where = f"tokens {pivot['position']} to {pivot['end'] - 1}"
        kind = "" if pivot["is_certain"] else "likely "
        line = f"Response {pivot['trace']}: {kind}{where}, value {_share(before)} before and {_share(after)} after"
        best = next((a for a in pivot["alternatives"] if a["token_id"] == pivot["expected_id"]), None)
        return f"{line}." if best is None else f"{line}; with {best['token']!r} instead {_share(best)}."

    def to_frame(self) -> pa.Table:
        """Return one row per measured prefix, with its value and its interval."""
        rows = []
        for i in range(len(self.rows)):
            for length, tally in self.tallies(i).items():
                low, high = tally.interval()
                rows.append(
                    {"trace": i, "length": length, "value": tally.value, "low": low, "high": high}
                    | {name: getattr(tally, name) for name in _COUNTS}
                )
        names = ("trace", "length", "value", "low", "high", *_COUNTS)
        return pa.table({name: [row[name] for row in rows] for name in names})

    def step_worth(self, i: int = 0) -> list[dict[str, Any]]:
        """Return what each stretch between measured step ends of a response changes, from the same continuations.

        Returns:
            One row per stretch: `start` and `end` (lengths of the prefixes), `steps` (how many it has), `change` of the
            value, and `distance` between the answers before and after it: half the sum of the differences of their
            shares (total variation), 0 for the same answers and 1 for no answer in common.

        Source: thought anchors (arXiv 2506.19143), which resamples a sentence and compares the answers; departure: the
        continuations of the search are used, and total variation in place of the divergence, which few samples make
        infinite.
        """
        ends = [end for _, end in self.steps[i]]
        at = {int(self.length[m]): m for m in (self.trace == i).nonzero()[:, 0].tolist()}
        starts = [length for length in sorted(at) if length in ends or length == int(self.response_start[i])]
        starts = [length for length in starts if sum(self.answers[at[length]].values())]
        tallies, rows = self.tallies(i), []
        for start, end in pairwise(starts):
            rows.append(
                {
                    "start": start,
                    "end": end,
                    "steps": sum(start < e <= end for e in ends),
                    "change": tallies[end].value - tallies[start].value,
                    "distance": _total_variation(self.answers[at[start]], self.answers[at[end]]),
                }
            )
        return rows

    def plot(self, i: int | None = None) -> Figure:
        """Return the value along a response with its intervals, by default along the first with a first error.

        Raises:
            BadInput: There is no such response, or nothing of it was measured.
        """
        from chainwright.figures.pivots import value_along

        if i is None:
            found = [row["trace"] for row in self.pivots if row["is_first_error"]]
            i = next(iter([*found, *self.trace.tolist()]), 0)
        if not 0 <= i < len(self.rows) or not bool((self.trace == i).any()):
            raise BadInput(f"No prefix of response {i} was measured; there are {_counted(len(self.rows), 'response')}.")
        return value_along(self.curve(i), self.marks(i))

    def curve(self, i: int) -> list[dict[str, Any]]:
        """Return one row per measured prefix of a response: its length, value, interval and last token."""
        ids, start = self.ids_of(i), int(self.response_start[i])
        return [
            {
                "position": length - start,
                "token": self.token_strs.get(str(ids[length - 1]), "") if length > start else "",
                "value": tally.value,
                **tally.interval()._asdict(),
                "n": tally.n,
            }
            for length, tally in self.tallies(i).items()
            if tally.value == tally.value
        ]

    def marks(self, i: int) -> dict[str, Any]:
        """Return where the steps of a response end, and the tokens between which its value falls for good."""
        start, row = int(self.response_start[i]), self.rows[i]
        fall = (
            None
            if row["low"] is None or row["status"] not in ("found", "likely")
            else [row["low"] - start, row["high"] - start]
        )
        return {"ends": [end - start for _, end in self.steps[i] if end > start], "fall": fall}

    @classmethod
    def joined(cls, parts: Sequence[Pivots], selection: Mapping[str, int] | None = None) -> Pivots:
        """Return several findings as one, with their responses numbered consecutively.

        Args:
            parts: At least one finding, all made with the same settings.
            selection: How many problems fell out; None adds up those of the parts.
        """
        starts = [sum(len(part.rows) for part in parts[:k]) for k in range(len(parts))]
        fell_out: Counter[str] = Counter(selection)
        for part in parts if selection is None else ():
            fell_out.update(part.selection)
        tensors = ("length", "n_right", "n_wrong", "n_cut", "n_unread", "known", "input_ids", "n_tokens")
        return cls(
            rows=[
                {**row, "trace": row["trace"] + start}
                for part, start in zip(parts, starts, strict=True)
                for row in part.rows
            ],
            pivots=[
                {**pivot, "trace": pivot["trace"] + start}
                for part, start in zip(parts, starts, strict=True)
                for pivot in part.pivots
            ],
            trace=torch.cat([part.trace + start for part, start in zip(parts, starts, strict=True)]),
            **{name: torch.cat([getattr(part, name) for part in parts]) for name in tensors},
            response_start=torch.cat([part.response_start for part in parts]),
            steps=[steps for part in parts for steps in part.steps],
            answers=[answers for part in parts for answers in part.answers],
            responses=[text for part in parts for text in part.responses],
            token_strs={token: text for part in parts for token, text in part.token_strs.items()},
            selection=dict(fell_out),
            config=parts[0].config,
            provenance=parts[0].provenance,
        )


def _total_variation(first: Mapping[str, int], second: Mapping[str, int]) -> float:
    n, m = sum(first.values()), sum(second.values())
    return sum(abs(first.get(a, 0) / n - second.get(a, 0) / m) for a in {*first, *second}) / 2


def _share(value: Mapping[str, Any]) -> str:
    return f"{value['value']:.2f} ({value['low']:.2f}-{value['high']:.2f})"


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
