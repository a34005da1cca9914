"""Who continues a prefix: the model itself, another one, a server, or the gold chain.

What a value means depends on it. Of the model's own continuations it asks whether this model will make it from here, of
another one's whether the response can still be saved, of the gold chain's whether everything so far is right.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedTokenizerBase

from chainwright._errors import BadInput
from chainwright.decode.sampling import Sampling
from chainwright.diagnose.pivots.continuations import Row, Trunks, continued
from chainwright.diagnose.pivots.tally import Tally
from chainwright.models.anatomy import anatomy
from chainwright.models.load import end_ids, provenance
from chainwright.prompts.limits import n_positions
from chainwright.prompts.prompt import prompt_ids
from chainwright.tasks.base import UNPARSED, Problem
from chainwright.traces import Trace
from chainwright.traces.offsets import decode_with_markers


class Asked(NamedTuple):
    """A prefix to continue.

    Attributes:
        trace: The response that it is of.
        prefix: Its token ids, question included; one that ends in another token than the response is no part of it.
        first: Number of the first continuation that is wanted, from 0.
        n: How many are wanted.
        limit: Most tokens that each may write.
    """

    trace: Trace
    prefix: tuple[int, ...]
    first: int
    n: int
    limit: int


class Ending(NamedTuple):
    """How one continuation ended.

    Attributes:
        outcome: "right", "wrong", "unread" (no answer could be read) or "cut".
        answer: The answer that was read; None where none was, or where it is not known.
        first_id: Its first token; None where it is not known, or has other tokens.
        n_tokens: How many tokens it has; 0 where that is not known.
    """

    outcome: str
    answer: str | None = None
    first_id: int | None = None
    n_tokens: int = 0


def tally_of(endings: Sequence[Ending]) -> Tally:
    """Return the counts of some continuations."""
    counts = Counter(ending.outcome for ending in endings)
    n_unread = counts["unread"]
    return Tally(counts["right"], counts["wrong"] + n_unread, counts["cut"], n_unread)


class Completer(ABC):
    """Continues prefixes of responses to the end, and judges where they end.

    Attributes:
        name: What it is called in findings.
        is_exact: Whether its one continuation decides what a prefix is worth.
        sampling: How it draws; None where that is not known or nothing is drawn.
    """

    name: str
    is_exact: bool = False
    sampling: Sampling | None = None

    @abstractmethod
    def complete(self, asked: Sequence[Asked], seed: int) -> list[list[Ending]]:
        """Return the endings of each prefix, the same ones whenever and with whatever else it is asked for."""

    def forget(self) -> None:
        """Drop what is kept for the responses so far."""
        return

    def settings(self) -> dict[str, Any]:
        """Return what a finding records of it."""
        sampling = None if self.sampling is None else self.sampling.record()
        return {"completer": self.name, "sampling": sampling}


Completed = Callable[[int], None]


class ModelCompleter(Completer):
    """Continues with the model that wrote the responses, from their token ids."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        *,
        batch_size: int | None = None,
        on_rows: Completed = lambda n: None,
    ):
        parts = anatomy(model)
        self.parts, self.tokenizer, self.batch_size = parts, tokenizer, batch_size
        self.sampling = self.drawing = sampling
        self.on_rows = on_rows
        self.name = provenance(parts.model)["model"]
        self.ends = end_ids(parts.model, tokenizer)
        self.trunks = Trunks(parts)
        self.n_positions = n_positions(parts.model)

    def complete(self, asked: Sequence[Asked], seed: int) -> list[list[Ending]]:
        """Return the endings, all prefixes in one batch as far as memory allows."""
        rows = [row for each in asked for row in self._rows(each)]
        written = iter(
            continued(
                self.trunks,
                rows,
                sampling=self.drawing,
                seed=seed,
                ends=self.ends,
                batch_size=self.batch_size,
                on_rows=self.on_rows,
            )
        )
        return [[self._ending(each, *next(written)) for _ in range(each.n)] for each in asked]

    def _rows(self, asked: Asked) -> list[Row]:
        prefix = self.prefix_of(asked)
        limit = min(asked.limit, self.n_positions - len(prefix))
        return [Row(prefix, asked.first + i, limit) for i in range(asked.n)]

    def prefix_of(self, asked: Asked) -> tuple[int, ...]:
        """Return the ids that are continued; reads the whole response once."""
        ids = tuple(asked.trace.input_ids.tolist())
        n = len(asked.prefix)
        self.trunks.add(ids if ids[: n - 1] == asked.prefix[: n - 1] else asked.prefix)
        return asked.prefix

    def _ending(self, asked: Asked, ids: list[int], stopped: bool) -> Ending:
        return judged(self.tokenizer, asked.trace, [*asked.prefix, *ids], stopped, len(asked.prefix))

    def forget(self) -> None:
        """Drop the keys and values of the responses so far."""
        self.trunks.clear()


def judged(
    tokenizer: PreTrainedTokenizerBase, trace: Trace, ids: Sequence[int], stopped: bool, n_prefix: int
) -> Ending:
    """Return how a whole response ended, judged as `generate` judges one."""
    whole = Trace.from_ids(tokenizer, ids, trace.response_start, problem=trace.problem, stopped=stopped)
    first = ids[n_prefix] if len(ids) > n_prefix else None
    return Ending(outcome_of(whole), answer_of(whole), first, len(ids) - n_prefix)


def outcome_of(trace: Trace) -> str:
    """Return how a response ended; "cut" also for one that the token limit ended with a wrong answer in it."""
    if trace.is_correct:
        return "right"
    return str(trace.outcome) if trace.stopped else "cut"


def answer_of(trace: Trace) -> str | None:
    """Return the answer that was read from a response."""
    return None if trace.verdict is None else trace.verdict.extracted


class OtherModel(ModelCompleter):
    """Continues with another model that is loaded.

    Where both have the same tokens it continues from the ids. Otherwise it is asked the same problem in its own way and
    continues from the text of the prefix, which it may cut into tokens elsewhere than at the prefix's end.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        *,
        written_with: PreTrainedTokenizerBase,
        batch_size: int | None = None,
    ):
        super().__init__(model, tokenizer, sampling, batch_size=batch_size)
        self.written_with = written_with
        self.has_same_tokens = tokenizer.get_vocab() == written_with.get_vocab()

    def prefix_of(self, asked: Asked) -> tuple[int, ...]:
        """Return the ids that the other model continues."""
        if self.has_same_tokens:
            return super().prefix_of(asked)
        question, text = self._texts(asked)
        ids = (*question, *self.tokenizer(text, add_special_tokens=False)["input_ids"])
        self.trunks.add(ids)
        return ids

    def _texts(self, asked: Asked) -> tuple[list[int], str]:
        problem = asked.trace.problem
        assert problem is not None
        return prompt_ids(self.tokenizer, problem), prefix_text(self.written_with, asked)

    def _ending(self, asked: Asked, ids: list[int], stopped: bool) -> Ending:
        if self.has_same_tokens:
            return super()._ending(asked, ids, stopped)
        text = prefix_text(self.written_with, asked) + decode_with_markers(self.tokenizer, ids)
        return judged_text(asked.trace, text, stopped, len(ids))

    def settings(self) -> dict[str, Any]:
        """Return what a finding records of it, and whether it continues from ids or from text."""
        return {**super().settings(), "continues_from": "token ids" if self.has_same_tokens else "text"}


def prefix_text(tokenizer: PreTrainedTokenizerBase, asked: Asked) -> str:
    """Return the text of the response in a prefix, without a character that its last tokens only begin."""
    return decode_with_markers(tokenizer, list(asked.prefix[asked.trace.response_start :])).rstrip("\ufffd")


def judged_text(trace: Trace, text: str, stopped: bool, n_tokens: int) -> Ending:
    """Return how a response given as text ended."""
    problem = trace.problem
    assert problem is not None
    verdict = problem.judge(text, is_cut=not stopped)
    if verdict.is_right:
        return Ending("right", verdict.extracted, None, n_tokens)
    outcome = "cut" if not stopped else "unread" if verdict.is_right is None else "wrong"
    return Ending(outcome, verdict.extracted, None, n_tokens)


class GoldChain(Completer):
    """Knows the right chain, and so whether a prefix can still come right: everything that it says must be right.

    An upper bound for other completers, on problems with slots. A slot that the prefix ends in counts as right as long
    as the right value begins so.
    """

    name = "gold chain"
    is_exact = True

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer

    def complete(self, asked: Sequence[Asked], seed: int) -> list[list[Ending]]:
        """Return one ending for each continuation that is wanted, all alike."""
        return [[Ending(self._outcome(each))] * each.n for each in asked]

    def _outcome(self, asked: Asked) -> str:
        problem = asked.trace.problem
        if problem is None or not problem.slots:
            raise BadInput(
                "The gold chain can only judge prefixes of problems with slots, and this one has none; leave the "
                "completer away, or name a model."
            )
        text = prefix_text(self.tokenizer, asked)
        return "right" if says_nothing_wrong(problem, text) else "wrong"


def says_nothing_wrong(problem: Problem, text: str) -> bool:
    """Return whether a response that may be unfinished has no wrong slot and no line out of shape so far.

    The short rendering has one right wording. In others a last line that is not finished counts as right as long as no
    slot in it differs.
    """
    if problem.rendering == "short":
        return problem.chain.startswith(text.rstrip())
    error = problem.first_error(text)
    if error is None:
        return problem.check(text)
    rest = text[error.start :].strip()
    if error.error_type == UNPARSED:
        return "\n" not in rest
    return rest == error.got.strip() and error.expected.casefold().startswith(error.got.casefold())


def in_words(settings: Mapping[str, Any]) -> str:
    """Return a completer's settings in words, as findings name it."""
    sampling = settings.get("sampling")
    drawn = ""
    if sampling:
        drawn = f", temperature {sampling['temperature']:g}"
        drawn += f", top-p {sampling['top_p']:g}" if sampling.get("top_p") else ""
    how = ", from text" if settings.get("continues_from") == "text" else ""
    return f"{settings['completer']}{drawn}{how}"
