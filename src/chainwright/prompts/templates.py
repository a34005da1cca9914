"""The chat template of a tokenizer: who goes through it, what it writes around a message, whether it makes think."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from chainwright.markers.known import events
from chainwright.markers.scan import Scan, scan
from chainwright.prompts.rendering import is_plain_text
from chainwright.tasks.base import Problem

# what a chat template holds that opens the thinking of Qwen3, DeepSeek-R1, GPT-OSS, Magistral, Kimi ...
_SIGNS_OF_THINKING = ("<think>", "enable_thinking", "<|channel|>analysis", "[THINK]", "\u25c1think\u25b7")


def uses_chat(tokenizer: PreTrainedTokenizerBase, problem: Problem | str, raw: bool = False) -> bool:
    """Return whether a problem or a string goes through the chat template."""
    if raw or not tokenizer.chat_template:
        return False
    if is_plain_text(problem):
        return not is_rendered(tokenizer, problem if isinstance(problem, str) else problem.prompt)
    return isinstance(problem, Problem) and problem.rendering == "natural"


def closes_thinking(tail: str) -> bool:
    """Return whether what a template writes after the question opens the thinking and closes it again."""
    core = scan(events("auto"), Scan(), tail, len(tail), final=True).core
    return core.depth == 0 and core.border >= 0


def one_bos(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """Return ids with one BOS where they begin with several: one in the text, and one that the tokenizer added."""
    n_bos = len(list(takewhile(lambda token: token == tokenizer.bos_token_id, ids)))
    return ids[max(0, n_bos - 1) :]


class _Turn(NamedTuple):
    """What a chat template writes around the last user's message: before it, and after it up to the reply."""

    before: str
    after: str


def is_rendered(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Return whether a text has been through the tokenizer's chat template, by what that writes around a message."""
    return reply_start(tokenizer, text) is not None


def reply_start(tokenizer: PreTrainedTokenizerBase, text: str) -> int | None:
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
    before = backwards[: n_common(backwards, other)][::-1].lstrip()
    after = first.rpartition("QUESTION")[2]
    return _Turn(before, after) if before and after.strip() else None


def n_common(first: Sequence[object], second: Sequence[object]) -> int:
    """Return how long the beginning is that two sequences share."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))))


def thinks(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the chat template opens a thinking segment or lets the model open one."""
    template = tokenizer.chat_template
    texts = template.values() if isinstance(template, dict) else [template or ""]
    return any(sign in text for text in texts for sign in _SIGNS_OF_THINKING)
