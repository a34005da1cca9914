"""How long a response may be where no limit is set, and how many positions a model has."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn
from transformers import PreTrainedTokenizerBase

from chainwright.models.seam import causal_lm
from chainwright.prompts.question import Question
from chainwright.prompts.templates import is_rendered, thinks

_TOKENS_OF_TEXT = 512
_TOKENS_OF_SOLUTION = 1024
_TOKENS_OF_THINKING = 32_768


class Limit(NamedTuple):
    """A number of new tokens, and what it follows from."""

    n_tokens: int
    source: str


def default_limit(tokenizer: PreTrainedTokenizerBase, question: Question) -> Limit:
    """Return the longest response where none was passed."""
    # a chain of thought is not bounded by the gold chain: a limit that cuts it makes a right model look wrong
    problem = question.problem
    is_chat = question.uses_chat or is_rendered(tokenizer, question.text)
    if is_chat and not question.is_closed and thinks(tokenizer):
        return Limit(_TOKENS_OF_THINKING, "thinking")
    if problem is not None and problem.checker and not problem.lines:
        # another model's solution may take several times as many words as the gold one
        n_gold = len(tokenizer(problem.chain, add_special_tokens=False)["input_ids"])
        return Limit(max(_TOKENS_OF_SOLUTION, 3 * n_gold), "set")
    if problem is None or not problem.chain:
        return Limit(_TOKENS_OF_TEXT, "text")
    n_gold = len(tokenizer(problem.chain, add_special_tokens=False)["input_ids"])
    if problem.is_answer_only and problem.rendering == "short" and not is_chat:
        # one more shows where the model ends, or that it continues to another number
        after_space = len(tokenizer(f" {problem.chain}", add_special_tokens=False)["input_ids"])
        return Limit(max(n_gold, after_space) + 1, "answer")
    return Limit(n_gold + n_gold // 2 + 16, "chain")


def n_positions(model: nn.Module) -> int:
    """Return how many positions a model has; a number beyond any prompt where its config sets no limit."""
    return int(getattr(causal_lm(model).config.get_text_config(), "max_position_embeddings", None) or 2**31)
