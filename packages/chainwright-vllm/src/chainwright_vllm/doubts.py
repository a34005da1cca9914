"""Doubtful tokens of a model runner: what was seen at each, and what the runs without single heads said so far.

1. A token is flagged after a pass. It is not sampled: its request is held, and the scheduler starts one run per head.
2. Each run is a request of one token with the same tokens and one head silenced; what it says is kept here.
3. When all have answered, the request runs its last token again, and the logits of that pass are replaced by what the
   repair makes of the answers. Everything after that (temperature, penalties, log-probabilities) is vLLM's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from chainwright_vllm.spec import Head
from chainwright_vllm.tcr import TCR, Seen, entropy_nats


class Asking(NamedTuple):
    """A request with a repair whose next token is due.

    Attributes:
        row: Its row of the logits.
        req_id: Its id.
        tcr: The repair.
        n_tokens: Its tokens so far.
    """

    row: int
    req_id: str
    tcr: TCR
    n_tokens: int


class Answering(NamedTuple):
    """A run without a head whose next token is due.

    Attributes:
        row: Its row of the logits.
        asked_by: The request that waits for it.
        k: Which of that request's heads it is without.
    """

    row: int
    asked_by: str
    k: int


@dataclass
class _Doubt:
    tcr: TCR
    seen: Seen
    heads: tuple[Head, ...]
    n_tokens: int
    without: dict[int, Tensor] = field(default_factory=dict)

    def decided(self) -> Tensor | None:
        """Return the logits in place of the token's, None while runs are missing."""
        if len(self.without) < len(self.heads):
            return None
        return self.tcr.decided(self.seen, torch.stack([self.without[k] for k in range(len(self.heads))]))


@dataclass
class Decisions:
    """What became of the rows of a pass.

    Attributes:
        held: Flagged requests, which are to wait for runs without these heads.
        changed: Requests whose token was decided, and whether another one is now the likeliest.
        lost: Requests that ran on although they were held, which must not happen.
    """

    held: dict[str, tuple[Head, ...]] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    changed: dict[str, bool] = field(default_factory=dict)


class Doubts:
    """The open doubts of a model runner.

    Args:
        states: Returns what layers put out at the last token of rows, `[rows, layers, D]`.
    """

    def __init__(self, states: Callable[[Sequence[int], Sequence[int]], Tensor]):
        self._states = states
        self._open: dict[str, _Doubt] = {}

    def __len__(self) -> int:
        return len(self._open)

    def forget(self, req_ids: Iterable[str]) -> None:
        """Drop what is known of finished requests."""
        for req_id in req_ids:
            self._open.pop(req_id, None)

    def decide(self, logits: Tensor, asking: Sequence[Asking], answering: Sequence[Answering]) -> Decisions:
        """Replace the logits of decided tokens in place, and say which requests have to wait.

        Args:
            logits: Next-token logits of the pass, `[rows, V]`.
            asking: Rows of requests with a repair.
            answering: Rows of runs without a head.
        """
        for answer in answering:
            if (doubt := self._open.get(answer.asked_by)) is not None:
                doubt.without[answer.k] = doubt.tcr.kept(logits[answer.row], _best(doubt.seen))
        decisions = Decisions()
        fresh = []
        for ask in asking:
            if ask.req_id in self._open:
                self._close(logits, ask, decisions)
            else:
                fresh.append(ask)
        for tcr in dict.fromkeys(ask.tcr for ask in fresh):
            self._look(logits, [ask for ask in fresh if ask.tcr is tcr], tcr, decisions)
        return decisions

    def _close(self, logits: Tensor, ask: Asking, decisions: Decisions) -> None:
        doubt = self._open[ask.req_id]
        new = doubt.decided()
        if new is None or doubt.n_tokens != ask.n_tokens:  # it ran on although it was held
            decisions.lost.append(ask.req_id)
            return
        decisions.changed[ask.req_id] = bool(new.argmax() != doubt.seen.logits[0].argmax())
        logits[ask.row] = new.to(logits)
        del self._open[ask.req_id]

    def _look(self, logits: Tensor, asking: list[Asking], tcr: TCR, decisions: Decisions) -> None:
        rows = torch.tensor([ask.row for ask in asking], device=logits.device)
        own = logits[rows].float()
        is_uncertain = (entropy_nats(own) > tcr.detector.min_entropy).tolist()
        uncertain = [i for i, is_so in enumerate(is_uncertain) if is_so]
        if not uncertain:
            return
        hidden = self._states(tcr.layers, [asking[i].row for i in uncertain]) if tcr.layers else None
        at = own[uncertain]
        seen = Seen(at.new_zeros(len(at), 0, 0) if hidden is None else hidden, at)
        flagged = tcr.detector.flags(seen).nonzero()[:, 0].tolist()
        if not flagged:
            return
        doubtful = Seen(seen.hidden[flagged], seen.logits[flagged])
        for i, heads in enumerate(tcr.heads_to_ask(doubtful)):
            if heads:
                ask = asking[uncertain[flagged[i]]]
                one = Seen(doubtful.hidden[i : i + 1].clone(), doubtful.logits[i : i + 1].clone())
                self._open[ask.req_id] = _Doubt(tcr, one, heads, ask.n_tokens)
                decisions.held[ask.req_id] = heads


def _best(seen: Seen) -> Tensor:
    return seen.logits[0].topk(2).indices
