"""Chains that one way of decoding gets right and another wrong, token by token.

`flips` keeps, of the traces that `compare` compares, the problems that not all ways get right or all get wrong, with
the responses as texts of tokens. So that they can be read side by side later, without the tokenizer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from chainwright._errors import BadInput
from chainwright._finding import Finding
from chainwright._registry import register
from chainwright.evaluation.comparison import check_paired
from chainwright.evaluation.numbered import Numbered
from chainwright.traces import Trace
from chainwright.traces.offsets import Tokenizer, token_offsets

__all__ = ["Flips", "flips"]


@register("finding", "Flips")
@dataclass(frozen=True, kw_only=True)
class Flips(Finding):
    """The problems on which ways of decoding disagree, and what each way answered.

    Attributes:
        names: The ways, the baseline first.
        n_problems: Problems that were compared.
        problems: Those on which the ways disagree: `index` among all, `task`, `hops`, `prompt`, and `answer` (gold).
        answers: For each of them and each way, in order: `chain` (index into `chains`), `is_right` (the whole chain),
            `is_correct` (the answer), `stopped`, `error` (None, or `error_type`, `hop`, `expected`, `got` and `at`,
            the response token where the wrong slot begins, None if the response ends before), and `flagged` (response
            tokens that the way flagged; None if that was not recorded).
        chains: Responses as numbers of `texts`, one a token.
        texts: Texts of tokens, each once.
        title: What was compared.
    """

    names: Sequence[str]
    n_problems: int
    problems: Sequence[Mapping[str, Any]]
    answers: Sequence[Sequence[Mapping[str, Any]]]
    chains: Sequence[Sequence[int]]
    texts: Sequence[str]
    title: str = ""

    def counts(self, first: str, second: str) -> tuple[int, int]:
        """Return how many chains the second way fixes, and how many it breaks."""
        a, b = self.names.index(first), self.names.index(second)
        moves = Counter(found[b]["is_right"] - found[a]["is_right"] for found in self.answers)
        return moves[1], moves[-1]

    def summary(self) -> str:
        """Return on how many problems the ways disagree, and what each fixes and breaks."""
        moved = [
            f"{name} fixes {fixed} and breaks {broken}"
            for name in self.names[1:]
            for fixed, broken in [self.counts(self.names[0], name)]
        ]
        return (
            f"On {len(self.problems)} of {self.n_problems} problems the ways disagree. "
            f"Beside {self.names[0]}: {'; '.join(moved) or 'nothing'}."
        )

    def to_frame(self) -> pa.Table:
        """Return a row for each (problem, way)."""
        rows = [
            {
                **{key: problem[key] for key in ("index", "task", "hops")},
                "name": name,
                **{key: found[key] for key in ("is_right", "is_correct", "stopped")},
                "error_type": found["error"] and found["error"]["error_type"],
                "response": "".join(self.texts[i] for i in self.chains[found["chain"]]),
            }
            for problem, ways in zip(self.problems, self.answers, strict=True)
            for name, found in zip(self.names, ways, strict=True)
        ]
        return pa.Table.from_pylist(rows)


def flips(
    traces: Mapping[str, Sequence[Trace]],
    tokenizer: Tokenizer,
    *,
    flagged: Mapping[str, Sequence[Sequence[int]]] | None = None,
    title: str = "",
) -> Flips:
    """Return the problems on which ways of decoding disagree, with what each way answered.

    Args:
        traces: Traces of each way, of the same problems in the same order, as for `compare`.
        tokenizer: The one that the traces' ids belong to.
        flagged: For ways that look at some tokens again: which tokens of each response, counted from its first.
        title: What was compared.

    Raises:
        BadInput: As `compare`; or flags that are not those of the traces.
    """
    names = list(traces)
    check_paired(traces)
    for name, tokens in (flagged or {}).items():
        if len(tokens) != len(traces[name]):
            raise BadInput(f"{name!r} has {len(traces[name])} traces, but flags of {len(tokens)}; give one list each.")
    first = traces[names[0]]
    kept = [i for i in range(len(first)) if len({traces[name][i].is_exact is True for name in names}) > 1]
    book = _Book(tokenizer)
    marks = flagged or {}
    return Flips(
        names=names,
        n_problems=len(first),
        problems=[_problem(i, first[i]) for i in kept],
        answers=[[_answer(traces[n][i], book, marks[n][i] if n in marks else None) for n in names] for i in kept],
        chains=book.chains,
        texts=book.texts.texts,
        title=title,
    )


class _Book:
    """Responses as numbers of texts, each response and each text stored once."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.texts = Numbered()
        self.chains: list[list[int]] = []
        self._known: dict[tuple[int, ...], int] = {}

    def chain(self, ids: list[int]) -> int:
        """Return the number of a response."""
        key = tuple(ids)
        if key not in self._known:
            self._known[key] = len(self.chains)
            self.chains.append([self.texts.number(text) for text in self._pieces(ids)])
        return self._known[key]

    def _pieces(self, ids: list[int]) -> list[str]:
        """Return the characters that each token wrote; together they are the response."""
        text, offsets = token_offsets(self.tokenizer, ids, keep_markers=True)
        pieces, at = [], 0
        for span in offsets:
            pieces.append(text[at : max(at, span.end)])
            at = max(at, span.end)
        return pieces


def _problem(index: int, trace: Trace) -> dict[str, Any]:
    problem = trace.problem
    assert problem is not None
    return {
        "index": index,
        "task": problem.task,
        "hops": problem.hops,
        "prompt": trace.prompt or problem.prompt,
        "answer": problem.answer,
    }


def _answer(trace: Trace, book: _Book, flagged: Sequence[int] | None) -> dict[str, Any]:
    return {
        "chain": book.chain(trace.response_ids.tolist()),
        "is_right": trace.is_exact is True,
        "is_correct": bool(trace.is_correct),
        "stopped": trace.stopped,
        "error": _error(trace),
        "flagged": None if flagged is None else [int(at) for at in flagged],
    }


def _error(trace: Trace) -> dict[str, Any] | None:
    error, at = trace.first_error, trace.first_error_position
    if error is None:
        return None
    return {
        "error_type": error.error_type,
        "hop": error.hop,
        "expected": error.expected,
        "got": error.got,
        "at": None if at is None else at - trace.response_start,
    }
