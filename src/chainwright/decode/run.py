"""Decoding and scoring: traces from problems, and what a model thought of each token of a trace.

`generate` is `model.generate` with the bookkeeping around it (batches, left padding, chat templates, seeds,
traces); `score` judges every token of a trace from the tokens before it. With the same repair or the same
edits attached both see the same model, so for a greedy trace `score(...).argmax` equals the tokens that were
generated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)

from chainwright._errors import BadInput
from chainwright._progress import progress_bar
from chainwright.decode.drawing import processors
from chainwright.decode.ending import End, Endings, Watch
from chainwright.decode.sampling import Sampling
from chainwright.edits.run import following
from chainwright.markers.known import as_markers
from chainwright.models.anatomy import anatomy, evaluating
from chainwright.models.load import end_ids, source_of_model
from chainwright.models.padding import left_pad
from chainwright.models.placement import input_device
from chainwright.prompts.asking import Asking
from chainwright.prompts.limits import n_positions
from chainwright.prompts.prompt import Prompt, prompts_of
from chainwright.tasks.base import Problem
from chainwright.traces import ThinkMarkers, Trace

if TYPE_CHECKING:
    from chainwright.repair.base import Repair


def in_order(repair: Repair | Sequence[Repair] | None) -> list[Repair]:
    """Return the repairs that decode together: first those that edit the forward pass, then the one that decides.

    Raises:
        BadInput: One of them is the name or the folder of a repair, or two of them cannot decode together.
    """
    if repair is None:
        return []
    given: Sequence[object] = repair if isinstance(repair, Sequence) else [repair]
    for each in [repair, *given]:
        if isinstance(each, (str, Path)):
            raise BadInput(f"repair= takes repairs, not names; load it with Repair.from_pretrained({str(each)!r}).")
    repairs = cast("list[Repair]", list(given))
    for first, second in combinations(repairs, 2):
        first.check_beside(second)
    return sorted(repairs, key=lambda r: r.decides_tokens)  # stable, so that edits keep the order given


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem | str],
    *,
    repair: Repair | Sequence[Repair] | None = None,
    max_new_tokens: int | None = None,
    batch_size: int | None = None,
    temperature: float | None = None,
    sampling: Sampling | None = None,
    n_samples: int = 1,
    asking: Asking | None = None,
    shots_pool: Sequence[Problem] | None = None,
    max_thinking_tokens: int | None = None,
    seed: int = 0,
    first_row: int = 0,
    raw: bool = False,
    markers: ThinkMarkers | tuple[str, str] | None = None,
    progress: bool = True,
    on_traces: Callable[[list[tuple[int, Trace]]], None] | None = None,
) -> list[Trace]:
    """Return one trace for each problem and sample, in their order.

    Problems whose rendering was left open are asked in the one that the tokenizer reads. Prompts of the natural
    rendering, problems made by hand and plain strings go through the tokenizer's chat template if it has one. A string
    that has been through it is asked as it is, with a warning; what it has after the template is the beginning of the
    response. Each trace's `info` says how it was asked (see `prompts.describe`).

    Args:
        model: A Transformers decoder.
        tokenizer: Its tokenizer.
        problems: Problems, or prompts as strings.
        repair: What decodes with the model, or several together: those that edit the forward pass come first, then
            the one that decides tokens.
        max_new_tokens: Longest response. None allows 1.5 times the gold chain plus 16, 512 tokens where there is no
            chain, and 32,768 for a model whose chat template makes it think; never more than the model has
            positions for.
        batch_size: Rows decoded together. None chooses by the length of the prompts.
        temperature: 0 is greedy; above it tokens are drawn. Short for `Sampling(temperature=...)`.
        sampling: How tokens are drawn, and stop strings; None is greedy.
        n_samples: Responses to each problem, S. Their traces follow each other; where S is above 1, `info` has the
            index of the "problem" and of the "sample".
        asking: Demonstrations, system prompt and chat template; None asks with the problem's own prompt.
        shots_pool: Problems with gold solutions that demonstrations are chosen from; None takes `problems`. Pass the
            whole set where problems are decoded in several calls, so that each call chooses alike.
        max_thinking_tokens: Thinking that is still open after as many tokens ends the response there, which counts as
            cut; None sets no limit but that of the response.
        seed: Decides what is drawn. A row's draws depend on the seed, its index (that of the problem times S plus that
            of the sample) and the step alone, so they do not change with the batch size.
        first_row: Index of the first problem, where problems are decoded in several calls.
        raw: Ask with every prompt as it is, without the chat template. BOS is added where the prompt lacks it.
        markers: The pair of markers around the thinking, as in `Trace.from_text`; None knows the usual ones.
        progress: Show a progress bar.
        on_traces: Called with (row, trace) pairs after each batch, for work that is to survive a kill.

    Raises:
        BadInput: An empty prompt, a negative temperature, a batch size or token limit below 1, a prompt longer than
            the model's positions or with tokens that the model does not have, demonstrations that are not to be had,
            several samples of greedy decoding, a repair that cannot decode with another one or with this sampling, or
            markers that are no pair.
    """
    _check_counts(batch_size=batch_size)
    sampling = _sampling(temperature, sampling, n_samples)
    run, rows = rows_of(
        model,
        tokenizer,
        problems,
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        max_thinking_tokens=max_thinking_tokens,
        n_samples=n_samples,
        seed=seed,
        first_row=first_row,
        asking=(asking or Asking()).replace(raw=True) if raw else asking,
        shots_pool=shots_pool,
        markers=markers,
    )
    repairs = in_order(repair)
    check_sampling(repairs, sampling)
    traces = _decode_all(run, rows, repairs, batch_size, progress, on_traces)
    return [traces[row.index] for row in rows]


def rows_of(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem | str],
    *,
    sampling: Sampling,
    max_new_tokens: int | None = None,
    max_thinking_tokens: int | None = None,
    n_samples: int = 1,
    seed: int = 0,
    first_row: int = 0,
    asking: Asking | None = None,
    shots_pool: Sequence[Problem] | None = None,
    markers: ThinkMarkers | tuple[str, str] | None = None,
) -> tuple[Decoding, list[Prompt]]:
    """Return what all rows of a call of `generate` have in common, and the prompt of each row; nothing is decoded.

    Raises:
        BadInput: As `generate`.
    """
    _check_counts(max_new_tokens=max_new_tokens, n_samples=n_samples, max_thinking_tokens=max_thinking_tokens)
    _sampling(None, sampling, n_samples)
    pair = None if markers is None else as_markers(markers)
    endings = Endings.of(tokenizer, sampling.stop, max_thinking_tokens, pair)
    prompts = prompts_of(model, tokenizer, problems, max_new_tokens, first_row, asking=asking, pool=shots_pool)
    rows = [replace(p, index=p.index * n_samples + i) for p in prompts for i in range(n_samples)]
    return Decoding(model, tokenizer, sampling, endings, seed, n_samples, pair), rows


def _decode_all(
    run: Decoding,
    rows: list[Prompt],
    repairs: list[Repair],
    batch_size: int | None,
    progress: bool,
    on_traces: Callable[[list[tuple[int, Trace]]], None] | None,
) -> dict[int, Trace]:
    """Return the trace of each row by its index, decoded batch by batch."""
    traces: dict[int, Trace] = {}
    with (
        ExitStack() as attached,
        evaluating(anatomy(run.model).model),
        torch.no_grad(),
        progress_bar("generating", len(rows), shown=progress) as bar,
    ):
        for each in repairs:
            attached.enter_context(each.attached(run.model))
        for batch in _batches(rows, batch_size, n_positions(run.model)):
            done = _decode(run, batch)
            traces.update(done)
            if on_traces is not None:
                on_traces(done)
            bar.advance(len(batch))
    return traces


@dataclass(frozen=True)
class Decoding:
    """What all batches of a call have in common, and how what was written becomes traces."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    sampling: Sampling
    endings: Endings
    seed: int
    n_samples: int
    markers: ThinkMarkers | None

    @property
    def inner(self) -> PreTrainedModel:
        """Return the model that decodes."""
        return anatomy(self.model).model

    @cached_property
    def ends(self) -> set[int]:
        """Return the tokens that end a response."""
        return end_ids(self.inner, self.tokenizer) | self.endings.end_ids

    @property
    def end_id(self) -> int:
        """Return the token that ends a response where it is not known which did."""
        own = self.tokenizer.eos_token_id
        return int(own) if own in self.ends else min(self.ends)

    def watch(self, batch: Sequence[Prompt]) -> Watch | None:
        """Return what looks for the ends of a batch's responses besides end tokens; None if there is nothing to see."""
        if not (self.endings.are_watched or any(p.stop for p in batch)):
            return None
        return self.endings.watch([p.ids for p in batch], [p.n_question for p in batch], [p.stop for p in batch])

    def info(self, prompt: Prompt, end: End | None) -> dict[str, str | int | float]:
        """Return what a trace says about where it comes from."""
        problem, sample = divmod(prompt.index, self.n_samples)
        known: dict[str, str | int | float] = {**source_of_model(self.inner), "seed": self.seed, **self.sampling.info()}
        if stops := (*self.sampling.stop, *prompt.stop):
            known["stops"] = json.dumps(list(dict.fromkeys(stops)), ensure_ascii=False)
        if self.endings.max_thinking is not None:
            known["max_thinking_tokens"] = self.endings.max_thinking
        if end is not None:
            known |= {"thinking_cut": True} if end.stop is None else {"stop": end.stop}
        return {**known, **prompt.info, **({"problem": problem, "sample": sample} if self.n_samples > 1 else {})}

    def trace(
        self, prompt: Prompt, new_ids: list[int], end: End | None, more: Mapping[str, str | int | float] | None = None
    ) -> Trace:
        """Return the trace of a prompt and what was written after it, up to its end.

        Args:
            prompt: The prompt.
            new_ids: The tokens that were written; those after the end do not count.
            end: Where a stop string or the limit of thinking ended it; None where neither did.
            more: What else its `info` says.
        """
        length = next((i + 1 for i, token in enumerate(new_ids) if token in self.ends), len(new_ids))
        if end is not None and (end.n_tokens > prompt.max_new_tokens or end.n_tokens > length):
            end = None  # the row was over before
        if end is not None:
            length = end.n_tokens
        kept = new_ids[: min(length, prompt.max_new_tokens)]
        has_stop = end is not None and end.stop is not None
        return Trace.from_ids(
            self.tokenizer,
            [*prompt.ids, *kept],
            prompt.n_question,
            problem=prompt.problem,
            stopped=has_stop or (bool(kept) and kept[-1] in self.ends),
            info={**self.info(prompt, end), **(more or {})},
            markers=self.markers,
        )


def _sampling(temperature: float | None, sampling: Sampling | None, n_samples: int) -> Sampling:
    """Return how tokens are drawn, of which `temperature` alone may be passed."""
    if temperature is not None and not 0 <= temperature < float("inf"):
        raise BadInput(f"temperature must be 0 (greedy) or a positive number; got {temperature}.")
    if sampling is None:
        sampling = Sampling(temperature=temperature or 0.0)
    elif temperature not in (None, sampling.temperature):
        raise BadInput(
            f"temperature is {temperature}, but sampling says {sampling.temperature}; pass it in sampling alone."
        )
    if n_samples > 1 and sampling.temperature == 0:
        raise BadInput(
            f"n_samples is {n_samples}, but greedy decoding (temperature 0) gives the same response each time; set a "
            "temperature, such as 1.0."
        )
    return sampling


def _check_counts(**counts: int | None) -> None:
    for name, value in counts.items():
        if value is not None and value < 1:
            raise BadInput(f"{name} must be at least 1; got {value}.")


def check_sampling(repairs: Sequence[Repair], sampling: Sampling) -> None:
    """Raise BadInput where a repair's logits would not mean what the sampling takes them for."""
    deciding = next((repair for repair in repairs if repair.decides_tokens), None)
    if deciding is not None and sampling.repetition_penalty not in (None, 1.0):
        raise BadInput(
            f"A {deciding.kind} repair puts in log-probabilities, on which a repetition penalty acts otherwise than on "
            "the model's logits; leave repetition_penalty out, or the repair."
        )


def usual_batch(n_tokens: int) -> int:
    """Return how many rows are decoded together where no batch size is set, by the tokens that each may come to."""
    return max(1, min(64, 2**15 // n_tokens))


def _batches(prompts: list[Prompt], batch_size: int | None, n_positions: int) -> Iterator[list[Prompt]]:
    """Yield prompts of like length together, the longest answers first: a lack of memory then shows at once.

    All rows of a batch are decoded until its longest answer may end; those that would run out of positions on
    the way wait for a later batch.
    """
    waiting = sorted(prompts, key=lambda p: (-p.max_new_tokens, -len(p.ids), p.index))
    while waiting:
        first = waiting[0]
        size = batch_size or usual_batch(len(first.ids) + first.max_new_tokens)
        fits = [p for p in waiting if len(p.ids) + first.max_new_tokens <= n_positions][:size]
        taken = {p.index for p in fits}
        waiting = [p for p in waiting if p.index not in taken]
        yield fits


def _decode(run: Decoding, batch: list[Prompt]) -> list[tuple[int, Trace]]:
    inner, ends, watch = run.inner, run.ends, run.watch(batch)
    pad = padding(inner, run.tokenizer, ends, is_end=watch is not None)
    ids, mask = left_pad([p.ids for p in batch], pad, input_device(inner))
    with _own_defaults(inner, ends, pad), prefilled(inner, [p.n_prefilled for p in batch]):
        output = inner.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max(p.max_new_tokens for p in batch),
            do_sample=False,
            eos_token_id=sorted(ends) or None,
            pad_token_id=pad,
            logits_processor=processors(run.sampling, [p.index for p in batch], run.seed, mask),
            stopping_criteria=StoppingCriteriaList([] if watch is None else [watch]),
        )
    written = output[:, ids.shape[1] :].tolist()
    found = [None] * len(batch) if watch is None else [row.end for row in watch.rows]
    return [(p.index, run.trace(p, new, end)) for p, new, end in zip(batch, written, found, strict=True)]


def padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ends: set[int], *, is_end: bool) -> int:
    """Return the padding token; an end token where rows end without one, so that what follows the run sees the end."""
    n_known = model.get_input_embeddings().weight.shape[0]
    # a padding token is often added to a tokenizer without a row in the embedding
    choices = [tokenizer.pad_token_id, *sorted(ends)]
    if is_end:
        choices = choices[1:] + choices[:1]
    return next((i for i in choices if i is not None and i < n_known), 0)


@contextmanager
def _own_defaults(model: PreTrainedModel, ends: set[int], pad: int) -> Iterator[None]:
    """Temporarily ignore the checkpoint's generation_config (repetition penalty, bad words, beams).

    It would make the tokens differ from what `score` sees: the model's own distribution. The end tokens are put there,
    where what follows the run finds them.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig(eos_token_id=sorted(ends) or None, pad_token_id=pad)
    try:
        yield
    finally:
        model.generation_config = own


@contextmanager
def prefilled(model: PreTrainedModel, n_prefilled: list[int]) -> Iterator[None]:
    """Have what reads segments while decoding know which tokens of the prompts are the beginning of a response."""
    if not any(n_prefilled):
        yield
        return
    with following(anatomy(model)) as run:
        run.n_prefilled = n_prefilled
        try:
            yield
        finally:
            run.n_prefilled = []
