"""How a model is asked: the rendering that it reads, the tokens of a prompt, and the room for the response.

1. A problem whose rendering is open is written in the one that the tokenizer is made for: short for a word-level
   tokenizer that knows every word of it (the models trained here), natural for any other.
2. Strings and natural problems go through the tokenizer's chat template if it has one; short problems never do.
3. The response gets room for half as many tokens again as the gold chain has, or far more if the chat template makes
   the model think first.

Each step leaves its choice in `Prompt.info`, which `generate` puts into the traces and `describe` puts into words.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
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
    """

    index: int
    ids: list[int]
    problem: Problem | None
    max_new_tokens: int
    uses_chat: bool = False
    limit: str = "given"

    @property
    def info(self) -> dict[str, str | int]:
        """Return what a trace says about how it was asked."""
        rendering = "text" if self.problem is None else self.problem.rendering
        return {
            "rendering": rendering,
            "chat_template": self.uses_chat,
            "max_new_tokens": self.max_new_tokens,
            "limit": self.limit,
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
) -> list[Prompt]:
    """Return what `generate` asks each problem or string with; its warning about the rendering comes once.

    Raises:
        BadInput: A prompt is empty, or longer than the model's positions.
    """
    _warn_of_rendering(tokenizer, problems)
    return [prompt_of(model, tokenizer, i, p, max_new_tokens) for i, p in enumerate(problems, first_row)]


def prompt_of(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    index: int,
    problem: Problem | str,
    max_new_tokens: int | None,
) -> Prompt:
    """Return what `generate` asks a problem or a string with.

    Raises:
        BadInput: The prompt is empty, or longer than the model's positions.
    """
    problem = as_asked(tokenizer, problem)
    text = problem if isinstance(problem, str) else problem.prompt
    if not text.strip():
        raise BadInput(f"Prompt {index} is empty; give some text.")
    ids = prompt_ids(tokenizer, problem)
    if not ids:
        raise BadInput(f"Prompt {index} has no tokens for this tokenizer; give some other text.")
    most = n_positions(model)
    if len(ids) >= most:
        raise BadInput(
            f"Prompt {index} has {len(ids)} tokens, but the model has positions for {most}; shorten "
            "it (fewer hops or fewer demonstrations)."
        )
    limit = _Limit(max_new_tokens, "given") if max_new_tokens else _default_limit(tokenizer, problem)
    return Prompt(
        index,
        ids,
        None if isinstance(problem, str) else problem,
        min(limit.n_tokens, most - len(ids)),
        uses_chat=_uses_chat(tokenizer, problem),
        limit=limit.source,
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
    if isinstance(problem, str) or problem.rendering != "short":
        return False
    is_made_for_it = reads_short(tokenizer, problem)
    if problem.draw is not None and not is_made_for_it:
        return False  # it will be asked in the natural rendering
    # a question without a script has no other rendering; only a chat template would have changed how it is asked
    has_choice = bool(problem.lines or tokenizer.chat_template)
    return has_choice and not (is_made_for_it and _knows(tokenizer, problem))


def prompt_ids(tokenizer: PreTrainedTokenizerBase, problem: Problem | str) -> list[int]:
    """Return the tokens that `generate` asks a problem or a string with."""
    problem = as_asked(tokenizer, problem)
    text = problem if isinstance(problem, str) else problem.prompt
    chat = _uses_chat(tokenizer, problem)
    if chat:
        turn = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text, add_special_tokens=not chat)["input_ids"])


def _uses_chat(tokenizer: PreTrainedTokenizerBase, problem: Problem | str) -> bool:
    return bool(tokenizer.chat_template) and (isinstance(problem, str) or problem.rendering == "natural")


def thinks(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the chat template opens a thinking segment or lets the model open one."""
    template = tokenizer.chat_template
    texts = template.values() if isinstance(template, dict) else [template or ""]
    return any(sign in text for text in texts for sign in _SIGNS_OF_THINKING)


def _default_limit(tokenizer: PreTrainedTokenizerBase, problem: Problem | str) -> _Limit:
    # a chain of thought is not bounded by the gold chain: a limit that cuts it makes a right model look wrong
    if _uses_chat(tokenizer, problem) and thinks(tokenizer):
        return _Limit(_TOKENS_OF_THINKING, "thinking")
    if isinstance(problem, str) or not problem.chain:
        return _Limit(_TOKENS_OF_TEXT, "text")
    n_gold = len(tokenizer(problem.chain, add_special_tokens=False)["input_ids"])
    if problem.is_answer_only and problem.rendering == "short":
        # one more shows where the model ends, or that it goes on to another number
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
        what = "as plain text" if rendering == "text" else f"in the {rendering} rendering"
        how = "through the chat template" if uses_chat else "without a chat template"
        room = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
        parts.append(f"{n} {what}, {how}, at most {room} new tokens ({_LIMITS[str(limit)]})")
    if n_unknown := len(traces) - len(known):
        parts.append(f"{n_unknown} in an unknown way")
    return f"Asked {'; '.join(parts)}." if parts else "Nothing was asked."
