"""One answer that is being written: how its tokens are drawn, where it ends, and what is known of each token."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from chainwright.decode.drawing import processors
from chainwright.decode.ending import Endings
from chainwright.decode.sampling import Sampling
from chainwright.edits.batches import HeldRow

Finish = Literal["stop", "length", "cancelled", "error"]


class Likely(NamedTuple):
    """A token and its log-probability, in nats."""

    token: int
    logprob: float


@dataclass(frozen=True)
class Decision:
    """What a repair did at a token that it flagged.

    Attributes:
        repair: Its name.
        before: The model's own likeliest tokens.
        after: The likeliest tokens of what the repair put in.
    """

    repair: str
    before: tuple[Likely, ...]
    after: tuple[Likely, ...]

    @property
    def is_changed(self) -> bool:
        """Whether another token is the likeliest."""
        return self.before[0].token != self.after[0].token


class Written(NamedTuple):
    """A token that was written.

    Attributes:
        token: Its id.
        logprob: Its log-probability among what the model and its repairs gave, before sampling; None unless asked for.
        likely: The likeliest tokens.
        decision: What a repair did; None where nothing was flagged.
    """

    token: int
    logprob: float | None
    likely: tuple[Likely, ...]
    decision: Decision | None


class Failure(NamedTuple):
    """Why a request ended without an answer: an HTTP status and a sentence."""

    status: int
    message: str


@dataclass(frozen=True)
class Wanted:
    """What is to be written.

    Attributes:
        ids: The prompt.
        n_prefilled: How many of its tokens, the last ones, begin the response.
        repairs: The names of the repairs that act, in the order in which they do.
        sampling: How tokens are drawn.
        index: The place of this answer among those to the same prompt, which decides its draws with the seed.
        seed: Decides the draws.
        max_new_tokens: Most tokens.
        stop: Texts before which it ends, in addition to those of `sampling`.
        n_likely: How many of the likeliest tokens are reported; None reports no log-probabilities.
        has_report: Whether decisions of repairs are reported.
    """

    ids: Sequence[int]
    n_prefilled: int = 0
    repairs: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    index: int = 0
    seed: int = 0
    max_new_tokens: int = 512
    stop: tuple[str, ...] = ()
    n_likely: int | None = None
    has_report: bool = False


class Choice:
    """An answer that is being written.

    Attributes:
        wanted: What is to be written.
        written: The tokens so far.
        held: Its row while it is in no pass; None before its prompt is read.
        finish: Why it ended; None while it has not.
        failure: What went wrong, if something did.
        n_flagged, n_changed, n_extra_tokens: What repairs did in it.
        deadline: When it is given up, by `time.monotonic`.
        cancelled: Set by the client's side when nobody waits for it any more.
        is_given_up: Set where the server stops.
    """

    def __init__(
        self,
        wanted: Wanted,
        endings: Endings,
        end_ids: frozenset[int],
        on_change: Callable[[Choice], None],
        *,
        timeout: float,
        streams: bool,
    ):
        self.wanted, self.end_ids, self.on_change, self.streams = wanted, end_ids, on_change, streams
        ids = list(wanted.ids)
        n_question = len(ids) - wanted.n_prefilled
        self._ending = endings.watch([ids], [n_question], [wanted.stop]).rows[0]
        self.begin = len(self.text)
        self.ids = ids
        self.written: list[Written] = []
        self.held: HeldRow | None = None
        self.finish: Finish | None = None
        self.failure: Failure | None = None
        self.n_flagged = self.n_changed = 0
        self.since = time.monotonic()
        self.first_at: float | None = None
        self.deadline = self.since + timeout
        self.cancelled, self.is_given_up = threading.Event(), threading.Event()
        self._draw = None
        if wanted.sampling.temperature > 0 or wanted.sampling.repetition_penalty not in (None, 1.0):
            self._draw = processors(wanted.sampling, [wanted.index], wanted.seed, torch.ones(1, len(ids)))

    @property
    def draws(self) -> bool:
        """Whether its tokens are not simply the likeliest ones."""
        return self._draw is not None

    @property
    def text(self) -> str:
        """Return the text so far, with that of tokens that begin the response in the prompt."""
        return self._ending.written.text

    @property
    def n_whole(self) -> int:
        """Return how many characters of the text are complete; fewer than all of them inside a character."""
        return self._ending.written.n_whole

    @property
    def stop(self) -> tuple[int, str] | None:
        """Return where the stop string that ended it begins in the text, and which it is."""
        end = self._ending.end
        return None if end is None or end.stop is None else (end.place, end.stop)

    @property
    def n_kept(self) -> int:
        """Return how many of the tokens that were written are the response: those before a stop string."""
        end = self._ending.end
        return len(self.written) if end is None or end.stop is None else end.n_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        """Return the stop strings that are looked for."""
        return self._ending.stops

    @property
    def n_extra_tokens(self) -> int:
        """Return how many tokens repairs ran again for it."""
        return 0 if self.held is None else self.held.row.n_extra_tokens

    def drawn(self, logits: Tensor) -> int:
        """Return the token that is drawn from logits `[V]`."""
        assert self._draw is not None
        ids = torch.tensor([self.ids], device=logits.device)
        return int(self._draw(ids, logits[None].clone())[0].argmax())

    def append(self, token: int, logits: Tensor, decision: Decision | None) -> None:
        """Take in the next token, drawn from logits `[V]`."""
        n_likely, logprob = self.wanted.n_likely, None
        best: tuple[Likely, ...] = ()
        if n_likely is not None:
            scores = logits.float().log_softmax(-1)
            logprob, best = float(scores[token]), likeliest(scores, n_likely)
        if decision is not None:
            self.n_flagged += 1
            self.n_changed += decision.is_changed
        self.ids.append(token)
        self.written.append(Written(token, logprob, best, decision if self.wanted.has_report else None))
        self.first_at = self.first_at or time.monotonic()
        self._ending.extend([token])
        if self._ending.end is not None:
            self.over("length" if self._ending.end.stop is None else "stop")
        elif token in self.end_ids:
            self.over("stop")
        elif len(self.written) >= self.wanted.max_new_tokens:
            self.over("length")
        elif self.streams:
            self.on_change(self)

    def over(self, finish: Finish, failure: Failure | None = None) -> None:
        """End it, once."""
        if self.finish is None:
            self.finish, self.failure = finish, failure
            self.on_change(self)

    def check_time(self) -> None:
        """End it if its client is gone or its time is up."""
        if self.cancelled.is_set():
            self.over("cancelled")
        elif self.is_given_up.is_set():
            self.over("error", Failure(503, "The server is stopping; send the request again to another one."))
        elif time.monotonic() > self.deadline:
            self.over(
                "error", Failure(504, "The request was not answered within the time limit; ask for fewer tokens.")
            )


def likeliest(scores: Tensor, n: int) -> tuple[Likely, ...]:
    """Return the `n` likeliest tokens of log-probabilities `[V]`."""
    best = scores.topk(min(n, len(scores)))
    return tuple(map(Likely, best.indices.tolist(), best.values.tolist()))


def decision_of(repair: str, before: Tensor, after: Tensor, n: int = 5) -> Decision:
    """Return what a repair did, from the model's logits `[V]` and those put in."""
    both = [likeliest(logits.float().log_softmax(-1), n) for logits in (before, after)]
    return Decision(repair, both[0], both[1])
