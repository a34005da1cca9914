"""Decoding and scoring: traces from problems, and what a model thought of each token of a trace.

`generate` is `model.generate` with the bookkeeping around it (batches, left padding, chat templates, seeds,
traces); `score` judges every token of a trace from the tokens before it. With the same repair or the same
edits attached both see the same model, so for a greedy trace `score(...).argmax` equals the tokens that were
generated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from random import Random
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from chainwright._errors import BadInput, BadTrace
from chainwright.models.anatomy import Anatomy, anatomy, evaluating
from chainwright.models.capture import position_ids
from chainwright.models.load import model_name
from chainwright.models.residual import unembed
from chainwright.models.seam import causal_lm
from chainwright.tasks.base import Problem
from chainwright.traces import Trace

_MAX_TOKENS_OF_TEXT = 512
_LOGITS_AT_ONCE = 2**26


class AttachesToModel(Protocol):
    """What `generate` and `score` need of a repair."""

    def attached(self, model: nn.Module) -> AbstractContextManager[object]:
        """Return a context in which the model decodes with the repair."""


class Corrections(NamedTuple):
    """The logits that a repair puts in place of the model's at some tokens of a trace.

    Attributes:
        positions: The positions in the trace that the logits decide, `[M]`, on the CPU.
        logits: `[M, V]`, float32.
    """

    positions: Tensor
    logits: Tensor


@runtime_checkable
class CorrectsLogits(AttachesToModel, Protocol):
    """A repair that decides token by token, so that scoring a whole trace at once needs its help."""

    def corrections(self, model: nn.Module, traces: Sequence[Trace]) -> list[Corrections]:
        """Return for each trace the logits that decoding with the repair would have seen."""


@runtime_checkable
class ReadsTraces(AttachesToModel, Protocol):
    """A repair that has to know which traces are being scored."""

    def scoring(self, model: nn.Module, traces: Sequence[Trace]) -> AbstractContextManager[object]:
        """Return a context in which one pass over these traces, left-padded, goes as decoding them would have."""


@dataclass(frozen=True)
class TokenScores:
    """What a model gave each token of a trace, judged from the tokens before it.

    The first token has nothing before it: its numbers are NaN and its argmax is -1.

    Attributes:
        logprob: Log-probability of the token that stands there, `[T]`, nats.
        entropy: Entropy of the distribution it was drawn from, `[T]`, nats.
        argmax: The likeliest token, `[T]`.
    """

    logprob: Tensor
    entropy: Tensor
    argmax: Tensor


@dataclass(frozen=True)
class _Prompt:
    index: int
    ids: list[int]
    problem: Problem | None
    max_new_tokens: int


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem | str],
    *,
    repair: AttachesToModel | None = None,
    max_new_tokens: int | None = None,
    batch_size: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    first_row: int = 0,
    progress: bool = True,
    on_traces: Callable[[list[tuple[int, Trace]]], None] | None = None,
) -> list[Trace]:
    """Return one trace for each problem, in their order.

    Prompts of the natural rendering and plain strings go through the tokenizer's chat template if it has one.

    Args:
        model: A Transformers decoder.
        tokenizer: Its tokenizer.
        problems: Problems, or prompts as strings.
        repair: Something with `attached(model)`, in force while decoding.
        max_new_tokens: Longest response. None allows half as many again as the gold chain has, plus 16, and
            512 for strings; never more than the model has positions for.
        batch_size: Rows decoded together. None chooses by the length of the prompts.
        temperature: 0 is greedy; above it tokens are drawn.
        seed: Decides what is drawn. A row's draws depend on the seed, its index and the step alone, so they
            do not change with the batch size.
        first_row: Index of the first problem, where problems are decoded in several calls.
        progress: Show a progress bar.
        on_traces: Called with (index, trace) pairs after each batch, for work that is to survive a kill.

    Raises:
        BadInput: An empty prompt, a negative temperature, a batch size or token limit below 1, or a prompt
            longer than the model's positions.
    """
    _check_options(temperature, batch_size, max_new_tokens)
    rows = enumerate(problems, first_row)
    prompts = [_prompt(model, tokenizer, i, problem, max_new_tokens) for i, problem in rows]
    traces: dict[int, Trace] = {}
    attached = nullcontext() if repair is None else repair.attached(model)
    with (
        attached,
        evaluating(anatomy(model).model),
        torch.no_grad(),
        _bar(progress) as bar,
    ):
        shown = bar.add_task("generating", total=len(prompts))
        for batch in _batches(prompts, batch_size, _n_positions(model)):
            done = _decode(model, tokenizer, batch, temperature, seed)
            traces.update(done)
            if on_traces is not None:
                on_traces(done)
            bar.advance(shown, len(batch))
    return [traces[prompt.index] for prompt in prompts]


def _bar(progress: bool) -> Progress:
    """Return a bar on the error stream, shown only where somebody can watch it."""
    console = Console(stderr=True)
    return Progress(console=console, disable=not (progress and console.is_terminal), transient=True)


def _check_options(temperature: float, batch_size: int | None, max_new_tokens: int | None) -> None:
    if not 0 <= temperature < float("inf"):
        raise BadInput(f"temperature must be 0 (greedy) or a positive number; got {temperature}.")
    for name, value in (("batch_size", batch_size), ("max_new_tokens", max_new_tokens)):
        if value is not None and value < 1:
            raise BadInput(f"{name} must be at least 1; got {value}.")


def _prompt(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    index: int,
    problem: Problem | str,
    limit: int | None,
) -> _Prompt:
    text = problem if isinstance(problem, str) else problem.prompt
    if not text.strip():
        raise BadInput(f"Prompt {index} is empty; give some text.")
    ids = prompt_ids(tokenizer, problem)
    if not ids:
        raise BadInput(f"Prompt {index} has no tokens for this tokenizer; give some other text.")
    n_positions = _n_positions(model)
    if len(ids) >= n_positions:
        raise BadInput(
            f"Prompt {index} has {len(ids)} tokens, but the model has positions for {n_positions}; shorten "
            "it (fewer hops or fewer demonstrations)."
        )
    n_new = limit or _room(tokenizer, problem)
    known = None if isinstance(problem, str) else problem
    return _Prompt(index, ids, known, min(n_new, n_positions - len(ids)))


def prompt_ids(tokenizer: PreTrainedTokenizerBase, problem: Problem | str) -> list[int]:
    """Return the tokens that `generate` asks a problem or a string with."""
    text = problem if isinstance(problem, str) else problem.prompt
    chat = bool(tokenizer.chat_template) and (isinstance(problem, str) or problem.rendering == "natural")
    if chat:
        turn = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text, add_special_tokens=not chat)["input_ids"])


def _room(tokenizer: PreTrainedTokenizerBase, problem: Problem | str) -> int:
    if isinstance(problem, str):
        return _MAX_TOKENS_OF_TEXT
    n_gold = len(tokenizer(problem.chain, add_special_tokens=False)["input_ids"])
    return n_gold + n_gold // 2 + 16


def _n_positions(model: nn.Module) -> int:
    return int(getattr(causal_lm(model).config.get_text_config(), "max_position_embeddings", None) or 2**31)


def _batches(prompts: list[_Prompt], batch_size: int | None, n_positions: int) -> Iterator[list[_Prompt]]:
    """Yield prompts of like length together, the longest answers first: a lack of memory then shows at once.

    All rows of a batch are decoded until its longest answer may end; those that would run out of positions on
    the way wait for a later batch.
    """
    waiting = sorted(prompts, key=lambda p: (-p.max_new_tokens, -len(p.ids), p.index))
    while waiting:
        first = waiting[0]
        size = batch_size or max(1, min(64, 2**15 // (len(first.ids) + first.max_new_tokens)))
        fits = [p for p in waiting if len(p.ids) + first.max_new_tokens <= n_positions][:size]
        taken = {p.index for p in fits}
        waiting = [p for p in waiting if p.index not in taken]
        yield fits


def left_pad(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return rows of unequal length as left-padded ids and their mask, both `[N, T]`."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.as_tensor(row)
        mask[i, width - len(row) :] = 1
    return ids.to(device), mask.to(device)


def _decode(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, batch: list[_Prompt], temperature: float, seed: int
) -> list[tuple[int, Trace]]:
    inner = anatomy(model).model
    ends = _end_ids(inner, tokenizer)
    pad = next((i for i in (tokenizer.pad_token_id, *sorted(ends)) if i is not None), 0)
    ids, mask = left_pad([p.ids for p in batch], pad, inner.device)
    processors = LogitsProcessorList()
    if temperature > 0:
        processors.append(_SeededDraw([p.index for p in batch], temperature, seed, ids.shape[1]))
    with _own_defaults(inner):
        output = model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max(p.max_new_tokens for p in batch),
            do_sample=False,
            eos_token_id=sorted(ends) or None,
            pad_token_id=pad,
            logits_processor=processors,
        )
    info: dict[str, str | int | float] = {"model": model_name(inner), "seed": seed, "temperature": float(temperature)}
    return [
        (p.index, _trace(tokenizer, p, row[ids.shape[1] :].tolist(), ends, info))
        for p, row in zip(batch, output, strict=True)
    ]


@contextmanager
def _own_defaults(model: PreTrainedModel) -> Iterator[None]:
    """Set the decoding habits that come with a checkpoint aside (repetition penalties, bans, beams ...).

    They would make the tokens differ from what `score` sees: the model's own distribution.
    """
    given = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = given


def _end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    ends = model.generation_config.eos_token_id
    listed = ends if isinstance(ends, list) else [ends]
    return {int(e) for e in (*listed, tokenizer.eos_token_id) if e is not None}


def _trace(
    tokenizer: PreTrainedTokenizerBase,
    prompt: _Prompt,
    new_ids: list[int],
    ends: set[int],
    info: dict[str, str | int | float],
) -> Trace:
    length = next((i + 1 for i, token in enumerate(new_ids) if token in ends), len(new_ids))
    length = min(length, prompt.max_new_tokens)
    kept = new_ids[:length]
    stopped = bool(kept) and kept[-1] in ends
    return Trace.from_ids(
        tokenizer, [*prompt.ids, *kept], len(prompt.ids), problem=prompt.problem, stopped=stopped, info=info
    )


class _SeededDraw(LogitsProcessor):  # type: ignore[misc]
    """Draws tokens by adding Gumbel noise, seeded by (seed, row, step), before the greedy choice.

    argmax(logits / temperature + Gumbel noise) is distributed as softmax(logits / temperature).
    """

    def __init__(self, rows: list[int], temperature: float, seed: int, n_prompt: int):
        self.rows = rows
        self.temperature = temperature
        self.seed = seed
        self.n_prompt = n_prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.n_prompt
        noise = torch.stack([self._noise(row, step, scores.shape[1]) for row in self.rows])
        return scores.float() / self.temperature + noise.to(scores.device)

    def _noise(self, row: int, step: int, size: int) -> Tensor:
        generator = torch.Generator().manual_seed(Random(f"{self.seed}/{row}/{step}").getrandbits(63))
        return -torch.empty(size).exponential_(generator=generator).log()


def score(model: nn.Module, trace: Trace, *, repair: AttachesToModel | None = None) -> TokenScores:
    """Return log-probability, entropy and likeliest token at each position of a trace, from one forward pass.

    Args:
        model: A Transformers decoder.
        trace: The trace; its ids must be of this model's vocabulary.
        repair: Something with `attached(model)`, in force while scoring; one that decides token by token gives its
            `corrections` instead.

    Raises:
        BadTrace: The trace has ids outside the model's vocabulary, or more tokens than the model has
            positions.
    """
    return score_all(model, [trace], repair=repair, batch_size=1)[0]


def score_all(
    model: nn.Module,
    traces: Sequence[Trace],
    *,
    repair: AttachesToModel | None = None,
    batch_size: int | None = None,
) -> list[TokenScores]:
    """Return `score` of many traces, several a forward pass."""
    parts = anatomy(model)
    for trace in traces:
        check_fits(parts, trace)
    order = sorted(range(len(traces)), key=lambda i: -len(traces[i]))
    scores: dict[int, TokenScores] = {}
    corrects = repair if isinstance(repair, CorrectsLogits) else None
    reads = repair if isinstance(repair, ReadsTraces) else None
    attached: AbstractContextManager[object] = nullcontext()
    if repair is not None and corrects is None and reads is None:
        attached = repair.attached(model)
    with attached, evaluating(parts.model), torch.no_grad():
        start = 0
        while start < len(order):
            size = batch_size or max(1, min(64, 2**14 // len(traces[order[start]])))
            batch = order[start : start + size]
            chosen = [traces[i] for i in batch]
            with nullcontext() if reads is None else reads.scoring(model, chosen):
                found = _score_batch(parts, chosen, [] if corrects is None else corrects.corrections(model, chosen))
            scores.update(zip(batch, found, strict=True))
            start += size
    return [scores[i] for i in range(len(traces))]


def check_fits(parts: Anatomy, trace: Trace) -> None:
    """Raise BadTrace unless the model has the trace's ids in its vocabulary and positions for all of them."""
    outside = [i for i in trace.input_ids.tolist() if not 0 <= i < parts.d_vocab]
    if outside:
        raise BadTrace(
            f"The trace has token id {outside[0]}, but the model's vocabulary has {parts.d_vocab} entries; "
            "score it with the model whose tokenizer made it."
        )
    n_positions = _n_positions(parts.model)
    if len(trace) > n_positions:
        raise BadTrace(f"The trace has {len(trace)} tokens, but the model has positions for {n_positions}.")


def _score_batch(parts: Anatomy, traces: list[Trace], corrections: list[Corrections]) -> list[TokenScores]:
    ids, mask = left_pad([t.input_ids.tolist() for t in traces], 0, parts.model.device)
    hidden = parts.model.base_model(
        input_ids=ids, attention_mask=mask, position_ids=position_ids(mask), use_cache=False
    ).last_hidden_state
    logprob, entropy = torch.full(ids.shape, float("nan")), torch.full(ids.shape, float("nan"))
    argmax = torch.full(ids.shape, -1)
    step = max(1, _LOGITS_AT_ONCE // (parts.d_vocab * len(traces)))
    for start in range(0, ids.shape[1] - 1, step):
        here = slice(start, min(start + step, ids.shape[1] - 1))
        after = slice(here.start + 1, here.stop + 1)
        logits = unembed(parts, hidden[:, here].flatten(0, 1)).view(len(traces), here.stop - here.start, -1)
        for row, changed in enumerate(corrections):
            columns = changed.positions + ids.shape[1] - len(traces[row]) - after.start
            inside = (columns >= 0) & (columns < logits.shape[1])
            logits[row, columns[inside]] = changed.logits[inside].to(logits)
        log_probs = logits.log_softmax(-1)
        logprob[:, after] = log_probs.gather(-1, ids[:, after, None])[..., 0].float().cpu()
        entropy[:, after] = torch.special.entr(log_probs.exp()).sum(-1).float().cpu()
        argmax[:, after] = log_probs.argmax(-1).cpu()
    return [_cut(len(t), logprob[i], entropy[i], argmax[i]) for i, t in enumerate(traces)]


def _cut(n_tokens: int, logprob: Tensor, entropy: Tensor, argmax: Tensor) -> TokenScores:
    """Return the scores of a row without its padding, and with none for the token that follows the padding."""
    logprob, entropy, argmax = (row[-n_tokens:].clone() for row in (logprob, entropy, argmax))
    logprob[0], entropy[0], argmax[0] = float("nan"), float("nan"), -1
    return TokenScores(logprob, entropy, argmax)
