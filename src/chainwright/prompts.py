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
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, get_args

from tokenizers.models import WordLevel
from torch import nn
from transformers import PreTrainedTokenizerBase

from chainwright._errors import BadInput, OtherRendering
from chainwright.models.seam import causal_lm
from chainwright.models.sources import bundled_models, source_of
from chainwright.tasks import fix_rendering
from chainwright.tasks.base import Problem, Rendering

if TYPE_CHECKING:
    from chainwright.traces import Trace

_TOKENS_OF_TEXT = 512
_TOKENS_OF_THINKING = 32_768
# what a chat template holds that opens the thinking of Qwen3, DeepSeek-R1, GPT-OSS, Magistral, Kimi ...
_SIGNS_OF_THINKING = ("<think>", "enable_thinking", "<|channel|>analysis", "[THINK]", "\u25c1think\u25b7")
_WHAT = {"text": "as plain text", "rendered": "as text that went through the chat template before"}
_LIMITS = {
    "given": "as given",
    "chain": "1.5 x the gold chain + 16",
    "answer": "the answer + 1",
    "text": "the default without a gold chain",
    "thinking": "the default for models that think",
}


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
            "text" or "thinking".
        is_rendered: Whether it is a string that was asked as it is although there is a chat template.
        n_prefilled: How many of the tokens, the last ones, begin the response.
    """

    index: int
    ids: list[int]
    problem: Problem | None
    max_new_tokens: int
    uses_chat: bool = False
    limit: str = "given"
    is_rendered: bool = False
    n_prefilled: int = 0

    @property
    def n_question(self) -> int:
        """Return how many of the tokens are the question."""
        return len(self.ids) - self.n_prefilled

    @property
    def info(self) -> dict[str, str | int]:
        """Return what a trace says about how it was asked."""
        rendering = "text" if self.problem is None or _is_by_hand(self.problem) else self.problem.rendering
        return {
            "rendering": "rendered" if self.is_rendered else rendering,
            "chat_template": self.uses_chat,
            "max_new_tokens": self.max_new_tokens,
            "limit": self.limit,
            **({"n_prefilled": self.n_prefilled} if self.n_prefilled else {}),
        }


class _Limit(NamedTuple):
    """A number of new tokens, and what it follows from."""

    n_tokens: int
    source: str


def prompts_of(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem | str],
    max_new_tokens: int | None = None,
    first_row: int = 0,
    *,
    raw: bool = False,
) -> list[Prompt]:
    """Return what `generate` asks each problem or string with; each of its warnings comes once.

    Raises:
        BadInput: A prompt is empty, is longer than the model's positions, or has a token that the model does not have.
    """
    _warn_of_rendering(tokenizer, problems)
    prompts = [prompt_of(model, tokenizer, i, p, max_new_tokens, raw=raw) for i, p in enumerate(problems, first_row)]
    if not raw and (rendered := [prompt.index for prompt in prompts if prompt.is_rendered]):
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
    raw: bool = False,
) -> Prompt:
    """Return what `generate` asks a problem or a string with.

    Raises:
        BadInput: The prompt is empty, is longer than the model's positions, or has a token that the model does not
            have.
    """
    problem = as_asked(tokenizer, problem)
    text = problem if isinstance(problem, str) else problem.prompt
    if not text.strip():
        raise BadInput(f"Prompt {index} is empty; give some text.")
    uses_chat = _uses_chat(tokenizer, problem, raw)
    ids = prompt_ids(tokenizer, problem, raw=raw)
    if not ids:
        raise BadInput(f"Prompt {index} has no tokens for this tokenizer; give some other text.")
    _check_known(model, tokenizer, index, ids)
    most = n_positions(model)
    if len(ids) >= most:
        raise BadInput(
            f"Prompt {index} has {len(ids)} tokens, but the model has positions for {most}; shorten "
            "it (fewer hops or fewer demonstrations)."
        )
    limit = _Limit(max_new_tokens, "given") if max_new_tokens else _default_limit(tokenizer, problem, raw)
    return Prompt(
        index,
        ids,
        None if isinstance(problem, str) else problem,
        min(limit.n_tokens, most - len(ids)),
        uses_chat=uses_chat,
        limit=limit.source,
        is_rendered=_is_plain_text(problem) and not uses_chat and is_rendered(tokenizer, text),
        n_prefilled=0 if uses_chat else _n_prefilled(tokenizer, text, ids),
    )


def _check_known(model: nn.Module, tokenizer: PreTrainedTokenizerBase, index: int, ids: list[int]) -> None:
    n_known = causal_lm(model).get_input_embeddings().weight.shape[0]
    if unknown := [token for token in ids if not 0 <= token < n_known]:
        raise BadInput(
            f"Prompt {index} has token {tokenizer.convert_ids_to_tokens(unknown[0])!r} (id {unknown[0]}), but the "
            f"model embeds {n_known} tokens and its tokenizer has {len(tokenizer)}; load the tokenizer that belongs to "
            "the model, or train the model with resized embeddings."
        )


def as_asked(tokenizer: PreTrainedTokenizerBase, problem: Problem | str) -> Problem | str:
    """Return a problem in the rendering in which a model with this tokenizer is asked.

    A rendering that was chosen stays; an open one becomes short where `reads_short` holds, else natural.

    Raises:
        BadInput: The task has the short rendering alone, and the tokenizer is not made for it.
    """
    if isinstance(problem, str) or problem.draw is None:
        return problem
    return fix_rendering(problem, "short" if reads_short(tokenizer, problem) else "natural")


def reads_short(tokenizer: PreTrainedTokenizerBase, problem: Problem) -> bool:
    """Return whether a tokenizer is made for the short text of a problem, prompt and chain.

    That takes a word-level tokenizer, as the models trained here have, without an unknown word in the text. One
    without a chat template passes with unknown words too: the natural rendering has only more of them.
    """
    if problem.rendering != "short":  # an open problem of a task without a short rendering
        return False
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not isinstance(backend.model, WordLevel):
        return False
    return not tokenizer.chat_template or _knows(tokenizer, problem)


def _knows(tokenizer: PreTrainedTokenizerBase, problem: Problem) -> bool:
    ids = tokenizer(f"{problem.prompt}{problem.chain}", add_special_tokens=False)["input_ids"]
    return tokenizer.unk_token_id not in ids


def _warn_of_rendering(tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem | str]) -> None:
    """Warn if a problem of a task is asked in a short text that the tokenizer is not made for."""
    if any(_is_foreign(tokenizer, problem) for problem in problems):
        template = ", without the chat template" if tokenizer.chat_template else ""
        warnings.warn(
            f"Problems of the short rendering go to this model as bare words{template}, but its tokenizer is not "
            "made for them (they are for the small word-level models trained here); sample them with "
            "rendering='natural', or without a rendering, which is then chosen for the model.",
            OtherRendering,
            stacklevel=4,
        )


def _is_foreign(tokenizer: PreTrainedTokenizerBase, problem: Problem | str) -> bool:
    """Return whether a problem will be asked short although the tokenizer is not made for it."""
    if isinstance(problem, str) or problem.rendering != "short" or _is_by_hand(problem):
        return False
    is_made_for_it = reads_short(tokenizer, problem)
    if problem.draw is not None and not is_made_for_it:
        return False  # it will be asked in the natural rendering
    # a question without a script has no other rendering; only a chat template would have changed how it is asked
    has_choice = bool(problem.lines or tokenizer.chat_template)
    return has_choice and not (is_made_for_it and _knows(tokenizer, problem))


def prompt_ids(tokenizer: PreTrainedTokenizerBase, problem: Problem | str, *, raw: bool = False) -> list[int]:
    """Return the tokens that `generate` asks a problem or a string with; they begin with at most one BOS token."""
    problem = as_asked(tokenizer, problem)
    text = problem if isinstance(problem, str) else problem.prompt
    if _uses_chat(tokenizer, problem, raw):
        turn = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        return _one_bos(tokenizer, list(tokenizer(text, add_special_tokens=False)["input_ids"]))
    # some tokenizers also close a text, which would end the response before it begins
    ids = list(tokenizer(text)["input_ids"])
    plain = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    n_added = next((i for i in range(len(ids) - len(plain) + 1) if ids[i : i + len(plain)] == plain), None)
    return _one_bos(tokenizer, ids if n_added is None else ids[: n_added + len(plain)])


def _one_bos(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """Return ids with one BOS where they begin with several: one in the text, and one that the tokenizer added."""
    n_bos = len(list(takewhile(lambda token: token == tokenizer.bos_token_id, ids)))
    return ids[max(0, n_bos - 1) :]


def _uses_chat(tokenizer: PreTrainedTokenizerBase, problem: Problem | str, raw: bool = False) -> bool:
    if raw or not tokenizer.chat_template:
        return False
    if _is_plain_text(problem):
        return not is_rendered(tokenizer, problem if isinstance(problem, str) else problem.prompt)
    return isinstance(problem, Problem) and problem.rendering == "natural"


def _is_plain_text(problem: Problem | str) -> bool:
    return isinstance(problem, str) or _is_by_hand(problem)


def _is_by_hand(problem: Problem) -> bool:
    """Return whether a problem was not drawn by a task: its prompt is text like any string."""
    return problem.rendering == "short" and not problem.facts and not problem.lines


class _Turn(NamedTuple):
    """What a chat template writes around the last user's message: before it, and after it up to the reply."""

    before: str
    after: str


def is_rendered(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Return whether a text has been through the tokenizer's chat template, by what that writes around a message."""
    return _reply_start(tokenizer, text) is not None


def _reply_start(tokenizer: PreTrainedTokenizerBase, text: str) -> int | None:
    """Return where the last reply begins in a text that went through the chat template, None in any other text."""
    turn = _turn(tokenizer)
    if turn is None or turn.before not in text:
        return None
    # a template may open the thinking as well; a text that was made with other settings may have stopped before that
    for ending in dict.fromkeys((turn.after, turn.after.partition("<think>")[0], turn.after.rstrip())):
        start = text.rfind(ending, text.index(turn.before) + len(turn.before)) if ending.strip() else -1
        if start >= 0:
            return start + len(ending)
    return None


def _turn(tokenizer: PreTrainedTokenizerBase) -> _Turn | None:
    """Return what the chat template writes around a user's message, None if it writes nothing around it."""
    if not tokenizer.chat_template:
        return None
    asked = {"role": "user", "content": "QUESTION"}
    answered = {"role": "assistant", "content": "ANSWER"}
    try:
        first, second = (
            tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
            for turns in ([asked], [asked, answered, asked])
        )
    except Exception:  # templates raise what they like; one that refuses these turns is not recognised
        return None
    # the front of a conversation (BOS, a system prompt) may differ; what both turns have in common does not
    backwards, other = (text.rpartition("QUESTION")[0][::-1] for text in (first, second))
    before = backwards[: _n_common(backwards, other)][::-1].lstrip()
    after = first.rpartition("QUESTION")[2]
    return _Turn(before, after) if before and after.strip() else None


def _n_prefilled(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]) -> int:
    """Return how many of the last tokens of a text that went through the chat template begin the reply."""
    start = _reply_start(tokenizer, text)
    if start is None or not text[start:].strip():
        return 0
    question = prompt_ids(tokenizer, text[:start], raw=True)
    return len(ids) - _n_common(question, ids)


def _n_common(first: Sequence[object], second: Sequence[object]) -> int:
    """Return how long the beginning is that two sequences share."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))))


def thinks(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the chat template opens a thinking segment or lets the model open one."""
    template = tokenizer.chat_template
    texts = template.values() if isinstance(template, dict) else [template or ""]
    return any(sign in text for text in texts for sign in _SIGNS_OF_THINKING)


def _default_limit(tokenizer: PreTrainedTokenizerBase, problem: Problem | str, raw: bool = False) -> _Limit:
    # a chain of thought is not bounded by the gold chain: a limit that cuts it makes a right model look wrong
    text = problem if isinstance(problem, str) else problem.prompt
    is_chat = _uses_chat(tokenizer, problem, raw) or is_rendered(tokenizer, text)
    if is_chat and thinks(tokenizer):
        return _Limit(_TOKENS_OF_THINKING, "thinking")
    if isinstance(problem, str) or not problem.chain:
        return _Limit(_TOKENS_OF_TEXT, "text")
    n_gold = len(tokenizer(problem.chain, add_special_tokens=False)["input_ids"])
    if problem.is_answer_only and problem.rendering == "short" and not is_chat:
        # one more shows where the model ends, or that it continues to another number
        after_space = len(tokenizer(f" {problem.chain}", add_special_tokens=False)["input_ids"])
        return _Limit(max(n_gold, after_space) + 1, "answer")
    return _Limit(n_gold + n_gold // 2 + 16, "chain")


def n_positions(model: nn.Module) -> int:
    """Return how many positions a model has; a number beyond any prompt where its config sets no limit."""
    return int(getattr(causal_lm(model).config.get_text_config(), "max_position_embeddings", None) or 2**31)


def rendering_for(requested: str, model: str) -> Rendering:
    """Return the rendering to use where no tokenizer is loaded: as requested, or for "auto" by the model's name.

    A bundled model, or a folder with the `recipe.json` that Chainwright's training writes, reads the short rendering.
    That is what `reads_short` says of their tokenizers.

    Raises:
        BadInput: Neither "auto" nor a rendering.
    """
    if requested == "auto":
        source = source_of(model)
        place = model if source is None else source.place
        is_ours = model in bundled_models() or (Path(place) / "recipe.json").is_file()
        return "short" if is_ours else "natural"
    if requested not in get_args(Rendering):
        raise BadInput(f"--rendering must be auto, {' or '.join(get_args(Rendering))}; got {requested!r}.")
    return requested  # type: ignore[return-value]


def describe(traces: Sequence[Trace]) -> str:
    """Return one line on how the traces of `generate` were asked: rendering, chat template, room for the response."""
    known = [trace.info for trace in traces if "rendering" in trace.info]
    parts = []
    for (rendering, uses_chat, limit), n in Counter(
        (i["rendering"], i["chat_template"], i["limit"]) for i in known
    ).items():
        sizes = [int(i["max_new_tokens"]) for i in known if (i["rendering"], i["limit"]) == (rendering, limit)]
        what = _WHAT.get(str(rendering), f"in the {rendering} rendering")
        how = "through the chat template" if uses_chat else "without a chat template"
        room = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
        parts.append(f"{n} {what}, {how}, at most {room} new tokens ({_LIMITS[str(limit)]})")
    if n_unknown := len(traces) - len(known):
        parts.append(f"{n_unknown} in an unknown way")
    return f"Asked {'; '.join(parts)}." if parts else "Nothing was asked."
