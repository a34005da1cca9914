"""Lessons: rows of right tokens that a repair is fitted and judged on, and what the model would do at each of them.

A lesson is a prompt and a right chain after it. Run once over it, the model shows at every token whether it would have
been right; run again without a head, whether it would be right then. A chain that greedy decoding writes is right as a
whole exactly if every one of these choices is, so that repairs can be tuned on lessons without decoding anything.

In the short rendering the right chain is the gold chain, also beyond a trace's first error. In other renderings, and
for problems without slots, there are many right wordings: there a lesson is the model's own response up to its first
error, and the right token after it. A wrong response whose first error is unknown teaches nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from chainwright._config import Positions
from chainwright._errors import BadInput
from chainwright.diagnose.right_tokens import PIVOT, right_token
from chainwright.edits import Head
from chainwright.models.anatomy import Anatomy, evaluating
from chainwright.repair.tcr._knockout_switch import Switch
from chainwright.repair.tcr._teacher_forcing import ForcedRows, Site
from chainwright.repair.tcr.detector import doubt_features, entropy_nats
from chainwright.repair.tcr.selector import choice_features
from chainwright.repair.tcr.token_repair import Seen
from chainwright.repair.tcr.verifier import pair_log_probs, verifier_features
from chainwright.tasks.base import Problem
from chainwright.traces import Trace
from chainwright.traces.offsets import token_offsets

STRUCTURE = "structure"  # tokens outside every slot: which line comes next, and whether one does
TOKENS_AT_ONCE = 2**13


class Lesson(NamedTuple):
    """A row of right tokens.

    Attributes:
        ids: Prompt and right chain.
        n_prompt: How many of them are the prompt.
        task: Name of the task.
        kinds: Error type of the slot that each token of the chain belongs to, or "structure".
    """

    ids: list[int]
    n_prompt: int
    task: str
    kinds: list[str]


def lesson_ids(tokenizer: PreTrainedTokenizerBase, problem: Problem) -> list[int]:
    """Return the tokens of a problem's gold chain, with the end token."""
    chain = list(tokenizer(problem.chain, add_special_tokens=False)["input_ids"])
    return [*chain, *([] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)])]


def lessons_of(tokenizer: PreTrainedTokenizerBase, traces: Sequence[Trace]) -> list[Lesson]:
    """Return one lesson for each trace that has something to teach.

    Raises:
        BadInput: A trace has no problem.
    """
    found = []
    for i, trace in enumerate(traces):
        if trace.problem is None:
            raise BadInput(f"Trace {i} has no problem, so its right tokens are not known; fit on traces of problems.")
        lesson = _gold(tokenizer, trace) if _has_gold(trace) else _own(tokenizer, trace)
        if lesson is not None:
            found.append(lesson)
    return found


def _has_gold(trace: Trace) -> bool:
    """Return whether the right tokens are those of the gold chain: one wording, and no pivot in place of a slot."""
    problem, error = trace.problem, trace.first_error
    assert problem is not None
    is_pivot = error is not None and error.error_type == PIVOT
    return problem.rendering == "short" and bool(problem.slots) and not is_pivot


def _gold(tokenizer: PreTrainedTokenizerBase, trace: Trace) -> Lesson:
    problem = trace.problem
    assert problem is not None
    prompt = trace.input_ids[: trace.response_start].tolist()
    chain = lesson_ids(tokenizer, problem)
    return Lesson([*prompt, *chain], len(prompt), problem.task, _kinds(tokenizer, problem, chain))


def _kinds(tokenizer: PreTrainedTokenizerBase, problem: Problem, chain: list[int]) -> list[str]:
    spans = token_offsets(tokenizer, chain, keep_markers=True).offsets
    kinds = []
    for span in spans:
        own = [slot.error_type for slot in problem.slots if slot.start < span.end and span.start < slot.end]
        kinds.append(own[0] if own and span.end > span.start else STRUCTURE)
    return kinds


def _own(tokenizer: PreTrainedTokenizerBase, trace: Trace) -> Lesson | None:
    problem, error, at = trace.problem, trace.first_error, trace.first_error_position
    assert problem is not None
    ids = trace.input_ids.tolist()
    kinds = [STRUCTURE] * (len(ids) - trace.response_start)
    for slot in trace.slots:
        for position in range(slot.start, slot.end):
            kinds[position - trace.response_start] = slot.error_type
    if error is None and trace.is_correct is False:
        return None
    if error is None:
        return Lesson(ids, trace.response_start, problem.task, kinds)
    right = None if at is None else right_token(tokenizer, trace)
    if at is None or right is None:
        return None
    n_chain = at - trace.response_start
    return Lesson([*ids[:at], right], trace.response_start, problem.task, [*kinds[:n_chain], error.error_type])


@dataclass(frozen=True)
class Outcomes:
    """What the model does at every token of some lessons, and at doubtful ones also without single heads.

    S tokens in all, D of them doubtful, K heads.

    Attributes:
        lesson: Index of each token's lesson, `[S]`.
        task: Its task's name, and `kind` the type of slot it belongs to, S of each.
        is_right: Whether the model's likeliest token is the right one, `[S]`.
        second_is_right: Whether its second choice is, `[S]`.
        entropy: Of its distribution, nats, `[S]`.
        doubt: What a trained detector reads, `[S, F]`.
        doubtful: Which tokens were looked at without heads, `[D]`.
        choice: What a light selector reads there, `[D, F]`.
        right_ids: The right token there, `[D]`.
        votes: The likeliest token without each head, `[D, K]`.
        cross: Probability without head i of the token that is likeliest without head j, `[D, K, K]`.
        pairs: Log-probabilities without each head of the model's first and second choice, `[D, K, 2]`.
        contexts: Tokens before each doubtful one.
    """

    lesson: Tensor
    task: list[str]
    kind: list[str]
    is_right: Tensor
    second_is_right: Tensor
    entropy: Tensor
    doubt: Tensor
    doubtful: Tensor
    choice: Tensor
    right_ids: Tensor
    votes: Tensor
    cross: Tensor
    pairs: Tensor
    contexts: list[list[int]]

    def replace(self, **changes: Any) -> Outcomes:
        """Return the same outcomes with other values of some attributes."""
        return replace(self, **changes)

    @property
    def labels(self) -> Tensor:
        """Return which choices give the right token at doubtful ones, `[D, K + 1]`; the last silences nothing."""
        fixes = self.votes == self.right_ids[:, None]
        return torch.cat([fixes, self.is_right[self.doubtful, None]], dim=1)

    @property
    def verifier_features(self) -> Tensor:
        """Return what a verifier reads at doubtful ones, `[D, F + 3 K]`."""
        return verifier_features(self.doubt[self.doubtful], self.pairs)

    def verified(self, p_second: Tensor) -> Tensor:
        """Return whether the better of the first and the second choice is right at doubtful tokens, bool `[D]`.

        Args:
            p_second: A verifier's probability of the second, `[D]`.
        """
        first, second = self.is_right[self.doubtful], self.second_is_right[self.doubtful]
        return torch.where(p_second > 0.5, second, first)

    def decided(self, scores: Tensor, n_votes: int) -> Tensor:
        """Return whether a vote of the best-scored heads gives the right token at doubtful tokens, bool `[D]`.

        Args:
            scores: A selector's scores, `[D, K + 1]`.
            n_votes: Heads that vote.
        """
        n_heads = self.votes.shape[1]
        top = scores[:, :n_heads].topk(min(n_votes, n_heads), dim=-1).indices
        votes = self.votes.gather(1, top)
        cross = self.cross.gather(1, top[:, :, None].expand(-1, -1, n_heads)).gather(
            2, top[:, None, :].expand(-1, top.shape[1], -1)
        )
        n_same = (votes[:, :, None] == votes[:, None, :]).sum(-1)
        worth = cross.mean(1) + (2 * n_same > votes.shape[1])
        winner = votes.gather(1, worth.argmax(-1, keepdim=True))[:, 0]
        return torch.where(scores.argmax(-1) == n_heads, self.is_right[self.doubtful], winner == self.right_ids)

    def chains_right(self, is_right: Tensor) -> Tensor:
        """Return which lessons are right at every token, bool.

        Args:
            is_right: Which tokens are right, bool `[S]`.
        """
        n = int(self.lesson.max()) + 1
        return torch.zeros(n).scatter_add_(0, self.lesson, (~is_right).float()) == 0

    def repaired(self, flagged: Tensor, decided: Tensor) -> Tensor:
        """Return which tokens are right when those flagged are decided again, bool `[S]`.

        Args:
            flagged: bool `[S]`; those that are not doubtful stay as they are, as their runs without heads are unknown.
            decided: bool `[D]`.
        """
        out = self.is_right.clone()
        acts = flagged[self.doubtful]
        out[self.doubtful[acts]] = decided[acts]
        return out


Doubtful = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Takes entropy, whether the token is right, and detector features of tokens; returns which to look at, bool."""


def outcomes(
    parts: Anatomy,
    lessons: Sequence[Lesson],
    heads: Sequence[Head],
    *,
    layers: Sequence[int],
    lens_layers: Sequence[int] = (),
    doubtful: Doubtful,
    positions: Positions = "all",
    scale: float = 0.0,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Outcomes:
    """Return what the model does at every token of the lessons, and without each head at doubtful ones.

    Args:
        parts: Anatomy of the model.
        lessons: Right rows, at least one.
        heads: Heads to silence, one at a time.
        layers: Layers that detectors and selectors read.
        lens_layers: Layers at which detectors read the two likeliest tokens through the logit lens.
        doubtful: Which tokens to look at without heads.
        positions: Where the heads are silenced.
        scale: What they are multiplied by.
        tick: Called with (lessons done, of how many).
    """
    switch = Switch(parts)
    pieces: list[Outcomes] = []
    done = 0
    with switch.attached(), evaluating(parts.model), torch.no_grad():
        for batch in _batches(lessons):
            prompts = [le.n_prompt for le in batch]
            forced = ForcedRows(parts, switch, [le.ids for le in batch], prompts, layers, lens_layers, positions)
            pieces.append(_batch(forced, batch, heads, doubtful, positions, scale, done))
            done += len(batch)
            tick(done, len(lessons))
    return _joined(pieces)


def _batches(lessons: Sequence[Lesson]) -> Iterator[Sequence[Lesson]]:
    start = 0
    while start < len(lessons):
        longest, end = 0, start
        while end < len(lessons):
            longest = max(longest, len(lessons[end].ids))
            if end > start and longest * (end + 1 - start) > TOKENS_AT_ONCE:
                break
            end += 1
        yield lessons[start:end]
        start = end


def _batch(
    forced: ForcedRows,
    lessons: Sequence[Lesson],
    heads: Sequence[Head],
    doubtful: Doubtful,
    positions: Positions,
    scale: float,
    first: int,
) -> Outcomes:
    sites = [Site(row, n) for row, le in enumerate(lessons) for n in range(le.n_prompt, len(le.ids))]
    due = {site: lessons[site.row].ids[site.n_before] for site in sites}
    plain = [_plain(forced.seen(chunk), [due[site] for site in chunk]) for chunk in forced.chunks(sites)]
    best, right, second, entropy, doubt, choice = (torch.cat(part) for part in zip(*plain, strict=True))
    (at,) = doubtful(entropy, right, doubt).nonzero(as_tuple=True)
    chosen = [sites[i] for i in at.tolist()]
    votes, cross, pairs = _without(forced, chosen, best[at], heads, positions, scale)
    return Outcomes(
        lesson=torch.tensor([first + s.row for s in sites]),
        task=[lessons[s.row].task for s in sites],
        kind=[lessons[s.row].kinds[s.n_before - lessons[s.row].n_prompt] for s in sites],
        is_right=right,
        second_is_right=second,
        entropy=entropy,
        doubt=doubt,
        doubtful=at,
        choice=choice[at],
        right_ids=torch.tensor([due[site] for site in chosen], dtype=torch.long),
        votes=votes,
        cross=cross,
        pairs=pairs,
        contexts=[lessons[s.row].ids[: s.n_before] for s in chosen],
    )


def _plain(seen: Seen, right_ids: list[int]) -> tuple[Tensor, ...]:
    best = seen.logits.topk(2, dim=-1).indices.cpu()
    right = torch.tensor(right_ids)
    entropy = entropy_nats(seen.logits).float().cpu()
    return best, best[:, 0] == right, best[:, 1] == right, entropy, doubt_features(seen), choice_features(seen)


def _without(
    forced: ForcedRows,
    sites: Sequence[Site],
    best: Tensor,
    heads: Sequence[Head],
    positions: Positions,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    n, k = len(sites), len(heads)
    if not n or not k:
        return torch.zeros(n, k, dtype=torch.long), torch.zeros(n, k, k), torch.zeros(n, k, 2)
    pieces = []
    for here, logits in forced.without_each(sites, heads, positions, scale):
        pairs = pair_log_probs(logits, best[here].to(logits.device)).cpu()
        probs = logits.softmax(-1)
        votes = probs.argmax(-1)
        cross = probs.gather(-1, votes[:, None, :].expand(-1, k, -1))
        pieces.append((votes.cpu(), cross.float().cpu(), pairs))
    votes, cross, pairs = (torch.cat(piece) for piece in zip(*pieces, strict=True))
    return votes, cross, pairs


def _joined(pieces: list[Outcomes]) -> Outcomes:
    """Return the outcomes of several batches as one."""
    starts = torch.tensor([len(piece.lesson) for piece in pieces]).cumsum(0)
    values: dict[str, Any] = {}
    for name in (f.name for f in fields(Outcomes)):
        parts = [getattr(piece, name) for piece in pieces]
        if name == "doubtful":
            parts = [part + (int(starts[i - 1]) if i else 0) for i, part in enumerate(parts)]
        values[name] = torch.cat(parts) if isinstance(parts[0], Tensor) else [x for part in parts for x in part]
    return Outcomes(**values)
