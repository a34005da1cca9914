"""How a model is asked: the rendering that it reads, the tokens of a prompt, and the room for the response.

1. A problem whose rendering is open is written in the one that the tokenizer is made for: short for a word-level
   tokenizer that knows every word of it (the models trained here), natural for any other.
2. Strings, problems made by hand and natural problems go through the tokenizer's chat template if it has one; short
   problems never do, and neither does a string that has been through it already, or anything with `raw=True`.
3. A text that went through the template may already begin the reply. The question ends where the template ends, and
   what comes after it is the beginning of the response, which the model continues.
4. The response gets room for half as many tokens again as the gold chain has, or far more if the chat template makes
   the model think first.

Each step leaves its choice in `Prompt.info`, which `generate` puts into the traces and `describe` puts into words.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn
from transformers import PreTrainedTokenizerBase

from chainwright._errors import BadInput, OtherRendering, TooLong
from chainwright.models.seam import causal_lm
from chainwright.prompts.asking import Asking
from chainwright.prompts.demonstrations import Shots
from chainwright.prompts.limits import Limit, default_limit, n_positions
from chainwright.prompts.question import Question, question_of
from chainwright.prompts.rendering import is_by_hand, warn_of_rendering
from chainwright.prompts.templates import n_common, one_bos, reply_start
from chainwright.tasks.base import Problem


@dataclass(frozen=True)
class Prompt:
    """A question as tokens, and the room for its response.

    Attributes:
        index: Its place among all rows of a run, which decides its sampling noise.
        ids: Its tokens.
        problem: The problem as it is asked, None for a plain string.
        max_new_tokens: Longest response.
        uses_chat: Whether it went through the chat template.
        limit: What `max_new_tokens` follows from, before the model's positions cap it: "given", "chain", "answer",
            "set", "text" or "thinking".
        is_rendered: Whether it is a string that was asked as it is although there is a chat template.
        n_prefilled: How many of the tokens, the last ones, begin the response.
        stop: Texts before which the response ends, since the next question would begin there.
        asked: What a trace says of demonstrations, system prompt and the rest.
    """

    index: int
    ids: list[int]
    problem: Problem | None
    max_new_tokens: int
    uses_chat: bool = False
    limit: str = "given"
    is_rendered: bool = False
    n_prefilled: int = 0
    stop: tuple[str, ...] = ()
    asked: Mapping[str, str | int | float | bool] = field(default_factory=dict)

    @property
    def n_question(self) -> int:
        """Return how many of the tokens are the question."""
        return len(self.ids) - self.n_prefilled

    @property
    def info(self) -> dict[str, str | int | float | bool]:
        """Return what a trace says about how it was asked."""
        rendering = "text" if self.problem is None or is_by_hand(self.problem) else self.problem.rendering
        return {
            "rendering": "rendered" if self.is_rendered else rendering,
            "chat_template": self.uses_chat,
            "max_new_tokens": self.max_new_tokens,
            "limit": self.limit,
            **({"n_prefilled": self.n_prefilled} if self.n_prefilled else {}),
            **self.asked,
        }


def prompts_of(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem | str],
    max_new_tokens: int | None = None,
    first_row: int = 0,
    *,
    asking: Asking | None = None,
    pool: Sequence[Problem] | None = None,
) -> list[Prompt]:
    """Return what `generate` asks each problem or string with; each of its warnings comes once.

    Raises:
        BadInput: A prompt is empty, is longer than the model's positions (`TooLong`), or has a token that the model
            does not have.
    """
    asking = asking or Asking()
    warn_of_rendering(tokenizer, problems)
    shots = Shots.of(asking, problems if pool is None else pool)
    prompts = [
        prompt_of(model, tokenizer, i, problem, max_new_tokens, asking=asking, shots=shots)
        for i, problem in enumerate(problems, first_row)
    ]
    _warn_of_unknown(tokenizer, prompts)
    if not asking.raw and (rendered := [prompt.index for prompt in prompts if prompt.is_rendered]):
        warnings.warn(
            f"{len(rendered)} of {len(prompts)} prompts (first: prompt {rendered[0]}) have been through the chat "
            "template already and are asked as they are; pass raw=True (--raw) to say that this is meant.",
            OtherRendering,
            stacklevel=3,
        )
    return prompts


def prompt_of(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    index: int,
    problem: Problem | str,
    max_new_tokens: int | None,
    *,
    asking: Asking | None = None,
    shots: Shots | None = None,
) -> Prompt:
    """Return what `generate` asks a problem or a string with.

    Raises:
        BadInput: The prompt is empty, is longer than the model's positions, or has a token that the model does not
            have, or it cannot be asked as `asking` says.
    """
    question = question_of(tokenizer, problem, asking, shots, index=index)
    return prompt_from(model, tokenizer, index, question, max_new_tokens)


def prompt_from(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    index: int,
    question: Question,
    max_new_tokens: int | None,
    ids: list[int] | None = None,
) -> Prompt:
    """Return the prompt of a question that has been written; raises as `prompt_of` does.

    Args:
        model: A Transformers decoder.
        tokenizer: Its tokenizer.
        index: Its place among all rows of a run.
        question: The question.
        max_new_tokens: Longest response; None takes the usual one.
        ids: Its tokens, where they are not those that the tokenizer makes of its text.
    """
    ids = ids_of(tokenizer, question) if ids is None else ids
    if not ids:
        raise BadInput(f"Prompt {index} has no tokens for this tokenizer; give some other text.")
    _check_known(model, tokenizer, index, ids)
    most = n_positions(model)
    if len(ids) >= most:
        n_shots = question.info.get("shots")
        remedy = f"lower --shots (it has {n_shots})" if n_shots else "shorten it (fewer hops or fewer demonstrations)"
        raise TooLong(f"Prompt {index} has {len(ids)} tokens, but the model has positions for {most}; {remedy}.")
    limit = Limit(max_new_tokens, "given") if max_new_tokens else default_limit(tokenizer, question)
    return Prompt(
        index,
        ids,
        question.problem,
        min(limit.n_tokens, most - len(ids)),
        uses_chat=question.uses_chat,
        limit=limit.source,
        is_rendered=question.is_rendered,
        n_prefilled=0 if question.uses_chat else n_prefilled_of(tokenizer, question.text, ids),
        stop=question.stop,
        asked=question.info,
    )


def _warn_of_unknown(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> None:
    """Warn if problems of a set have words that the tokenizer does not know."""
    unknown = tokenizer.unk_token_id
    of_sets = [prompt for prompt in prompts if prompt.problem is not None and prompt.problem.checker]
    if unknown is None or not (lost := [prompt for prompt in of_sets if unknown in prompt.ids]):
        return
    share = sum(prompt.ids.count(unknown) for prompt in lost) / sum(len(prompt.ids) for prompt in lost)
    warnings.warn(
        f"{len(lost)} of {len(of_sets)} problems have words that the tokenizer of this model does not know "
        f"({share:.0%} of their tokens), so the model does not read them as they are; name another model with --model.",
        OtherRendering,
        stacklevel=4,
    )


def _check_known(model: nn.Module, tokenizer: PreTrainedTokenizerBase, index: int, ids: list[int]) -> None:
    n_known = causal_lm(model).get_input_embeddings().weight.shape[0]
    if unknown := [token for token in ids if not 0 <= token < n_known]:
        raise BadInput(
            f"Prompt {index} has token {tokenizer.convert_ids_to_tokens(unknown[0])!r} (id {unknown[0]}), but the "
            f"model embeds {n_known} tokens and its tokenizer has {len(tokenizer)}; load the tokenizer that belongs to "
            "the model, or train the model with resized embeddings."
        )


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, problem: Problem | str, *, raw: bool = False, asking: Asking | None = None
) -> list[int]:
    """Return the tokens that `generate` asks a problem or a string with; they begin with at most one BOS token."""
    return ids_of(tokenizer, question_of(tokenizer, problem, Asking(raw=True) if raw else asking))


def ids_of(tokenizer: PreTrainedTokenizerBase, question: Question) -> list[int]:
    """Return the tokens of a question; they begin with at most one BOS token."""
    text = question.text
    if question.uses_chat:
        return one_bos(tokenizer, list(tokenizer(text, add_special_tokens=False)["input_ids"]))
    # some tokenizers also close a text, which would end the response before it begins
    ids = list(tokenizer(text)["input_ids"])
    plain = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    n_added = next((i for i in range(len(ids) - len(plain) + 1) if ids[i : i + len(plain)] == plain), None)
    return one_bos(tokenizer, ids if n_added is None else ids[: n_added + len(plain)])


def n_prefilled_of(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]) -> int:
    """Return how many of the last tokens of a text that went through the chat template begin the reply."""
    start = reply_start(tokenizer, text)
    if start is None or not text[start:].strip():
        return 0
    question = prompt_ids(tokenizer, text[:start], raw=True)
    return len(ids) - n_common(question, ids)
