"""Decoding and scoring: traces from problems, and what a model thought of each token of a trace.

`generate` is `model.generate` with the bookkeeping around it (batches, left padding, chat templates, seeds,
traces); `score` judges every token of a trace from the tokens before it. With the same repair or the same
edits attached both see the same model, so for a greedy trace `score(...).argmax` equals the tokens that were
generated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from chainwright._errors import BadInput
from chainwright._progress import progress_bar
from chainwright.edits.run import following
from chainwright.markers.known import as_markers
from chainwright.models.anatomy import anatomy, evaluating
from chainwright.models.load import end_ids, model_name
from chainwright.models.padding import left_pad
from chainwright.models.placement import input_device
from chainwright.models.sampling import gumbel_noise
from chainwright.prompts.limits import n_positions
from chainwright.prompts.prompt import Prompt, prompts_of
from chainwright.tasks.base import Problem
from chainwright.traces import ThinkMarkers, Trace

if TYPE_CHECKING:
    from chainwright.repair.base import Repair


def in_order(repair: Repair | Sequence[Repair] | None) -> list[Repair]:
    """Return the repairs that decode together: first those that edit the forward pass, then the one that decides.

    Raises:
        BadInput: Two of them cannot decode together.
    """
    if repair is None:
        return []
    repairs = list(repair) if isinstance(repair, Sequence) else [repair]
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
    temperature: float = 0.0,
    seed: int = 0,
    first_row: int = 0,
    raw: bool = False,
    markers: ThinkMarkers | tuple[str, str] | None = None,
    progress: bool = True,
    on_traces: Callable[[list[tuple[int, Trace]]], None] | None = None,
) -> list[Trace]:
    """Return one trace for each problem, in their order.

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
        temperature: 0 is greedy; above it tokens are drawn.
        seed: Decides what is drawn. A row's draws depend on the seed, its index and the step alone, so they
            do not change with the batch size.
        first_row: Index of the first problem, where problems are decoded in several calls.
        raw: Ask with every prompt as it is, without the chat template. BOS is added where the prompt lacks it.
        markers: The pair of markers around the thinking, as in `Trace.from_text`; None knows the usual ones.
        progress: Show a progress bar.
        on_traces: Called with (index, trace) pairs after each batch, for work that is to survive a kill.

    Raises:
        BadInput: An empty prompt, a negative temperature, a batch size or token limit below 1, a prompt longer than
            the model's positions or with tokens that the model does not have, repairs that cannot decode together, or
            markers that are no pair.
    """
    _check_options(temperature, batch_size, max_new_tokens)
    if markers is not None:
        markers = as_markers(markers)
    prompts = prompts_of(model, tokenizer, problems, max_new_tokens, first_row, raw=raw)
    traces: dict[int, Trace] = {}
    repairs = in_order(repair)
    with (
        ExitStack() as attached,
        evaluating(anatomy(model).model),
        torch.no_grad(),
        progress_bar("generating", len(prompts), shown=progress) as bar,
    ):
        for each in repairs:
            attached.enter_context(each.attached(model))
        for batch in _batches(prompts, batch_size, n_positions(model)):
            done = _decode(model, tokenizer, batch, temperature, seed, markers)
            traces.update(done)
            if on_traces is not None:
                on_traces(done)
            bar.advance(len(batch))
    return [traces[prompt.index] for prompt in prompts]


def _check_options(temperature: float, batch_size: int | None, max_new_tokens: int | None) -> None:
    if not 0 <= temperature < float("inf"):
        raise BadInput(f"temperature must be 0 (greedy) or a positive number; got {temperature}.")
    for name, value in (("batch_size", batch_size), ("max_new_tokens", max_new_tokens)):
        if value is not None and value < 1:
            raise BadInput(f"{name} must be at least 1; got {value}.")


def _batches(prompts: list[Prompt], batch_size: int | None, n_positions: int) -> Iterator[list[Prompt]]:
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


def _decode(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    batch: list[Prompt],
    temperature: float,
    seed: int,
    markers: ThinkMarkers | tuple[str, str] | None,
) -> list[tuple[int, Trace]]:
    inner = anatomy(model).model
    ends = end_ids(inner, tokenizer)
    n_known = inner.get_input_embeddings().weight.shape[0]
    # a padding token is often added to a tokenizer without a row in the embedding
    pad = next((i for i in (tokenizer.pad_token_id, *sorted(ends)) if i is not None and i < n_known), 0)
    ids, mask = left_pad([p.ids for p in batch], pad, input_device(inner))
    processors = LogitsProcessorList()
    if temperature > 0:
        processors.append(_SeededDraw([p.index for p in batch], temperature, seed, ids.shape[1]))
    with _own_defaults(inner, ends, pad), _prefilled(inner, [p.n_prefilled for p in batch]):
        output = model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max(p.max_new_tokens for p in batch),
            do_sample=False,
            eos_token_id=sorted(ends) or None,
            pad_token_id=pad,
            logits_processor=processors,
        )
    shared: dict[str, str | int | float] = {"model": model_name(inner), "seed": seed, "temperature": float(temperature)}
    return [
        (p.index, _trace(tokenizer, p, row[ids.shape[1] :].tolist(), ends, {**shared, **p.info}, markers))
        for p, row in zip(batch, output, strict=True)
    ]


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
def _prefilled(model: PreTrainedModel, n_prefilled: list[int]) -> Iterator[None]:
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


def _trace(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    new_ids: list[int],
    ends: set[int],
    info: dict[str, str | int | float],
    markers: ThinkMarkers | tuple[str, str] | None,
) -> Trace:
    length = next((i + 1 for i, token in enumerate(new_ids) if token in ends), len(new_ids))
    length = min(length, prompt.max_new_tokens)
    kept = new_ids[:length]
    stopped = bool(kept) and kept[-1] in ends
    return Trace.from_ids(
        tokenizer,
        [*prompt.ids, *kept],
        prompt.n_question,
        problem=prompt.problem,
        stopped=stopped,
        info=info,
        markers=markers,
    )


class _SeededDraw(LogitsProcessor):  # type: ignore[misc]
    """Draws tokens by adding noise, which depends on (seed, row, step) alone, before the greedy choice."""

    def __init__(self, rows: list[int], temperature: float, seed: int, n_prompt: int):
        self.rows = rows
        self.temperature = temperature
        self.seed = seed
        self.n_prompt = n_prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.n_prompt
        noise = gumbel_noise(self.seed, self.rows, step, scores.shape[1], scores.device)
        return scores.float() / self.temperature + noise
