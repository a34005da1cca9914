"""A conversation through a chat template: its turns, what the template is passed, and what it makes of them.

1. A template without a system role, which refuses the turn or drops it, gets the system prompt at the start of the
   first user's turn.
2. Reasoning that an assistant's message has in a field of its own is passed in that field where the template reads one,
   otherwise inside the message between `<think>` and `</think>`.
3. Whatever a template does not write down of an earlier turn is noticed: a lost answer is refused, lost reasoning
   (which many templates remove from earlier turns) is warned of.
4. What the template is passed must be something that it reads.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from jinja2 import Environment, TemplateSyntaxError, meta
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from transformers import PreTrainedTokenizerBase

from chainwright._errors import BadInput, OtherRendering, see, unknown_name

Message = Mapping[str, Any]
_FIELDS = ("reasoning_content", "reasoning", "thinking")
_SYSTEM = "You are a probe for system prompts."
# what a template reads without being passed it
_ALWAYS = frozenset(
    "messages tools documents add_generation_prompt bos_token eos_token unk_token pad_token sep_token cls_token "
    "mask_token raise_exception strftime_now range dict lipsum cycler joiner namespace loop".split()
)


class Rendered(NamedTuple):
    """A conversation as text.

    Attributes:
        text: What the model reads.
        is_folded: Whether the system prompt is in the first user's turn.
        tail: What the template writes after the last user's text.
    """

    text: str
    is_folded: bool
    tail: str


def rendered(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], kwargs: Mapping[str, Any] | None = None
) -> Rendered:
    """Return a conversation, whose last turn is a user's, as the text that the model is to continue.

    Raises:
        BadInput: The template refuses the conversation, loses an answer of an earlier turn, or does not read what it
            is passed.
    """
    kwargs = dict(kwargs or {})
    _check_read(tokenizer, kwargs)
    is_folded = messages[0]["role"] == "system" and not has_system_role(tokenizer, kwargs)
    turns = [_with_reasoning(tokenizer, message) for message in (_folded(messages) if is_folded else messages)]
    text = _applied(tokenizer, turns, kwargs)
    _check_shown(text, messages)
    return Rendered(text, is_folded, text.rpartition(str(turns[-1]["content"]).strip())[2])


def has_system_role(tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any] | None = None) -> bool:
    """Return whether the chat template writes a system turn down."""
    turns = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": "QUESTION"}]
    try:
        return _SYSTEM in _applied(tokenizer, turns, dict(kwargs or {}))
    except BadInput:
        return False


def _folded(messages: Sequence[Message]) -> list[Message]:
    """Return a conversation with its system prompt at the start of the first user's turn."""
    system, first, *rest = messages
    return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]


def _with_reasoning(tokenizer: PreTrainedTokenizerBase, message: Message) -> Message:
    """Return a message with its reasoning where the template looks for it."""
    own = next((field for field in _FIELDS if message.get(field)), None)
    plain = {name: value for name, value in message.items() if name not in _FIELDS}
    if own is None:
        return plain
    template = _source(tokenizer)
    read = next((f for f in _FIELDS if f".{f}" in template or f"'{f}'" in template or f'"{f}"' in template), None)
    if read is not None:
        return {**plain, read: message[own]}
    return {**plain, "content": f"<think>\n{message[own]}\n</think>\n\n{plain['content']}"}


def _applied(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Message], kwargs: Mapping[str, Any]) -> str:
    try:
        return str(tokenizer.apply_chat_template(list(turns), add_generation_prompt=True, tokenize=False, **kwargs))
    except Exception as error:  # templates raise what they like
        raise BadInput(
            f"The chat template refuses a conversation of {len(turns)} turns ({error}); ask in one turn (--shots-as "
            f"text), without a system prompt, or without the template (--no-chat-template) {see('chat-template')}."
        ) from error


def _check_shown(text: str, messages: Sequence[Message]) -> None:
    """Raise BadInput if an earlier answer is not in the text, and warn if its reasoning is not."""
    answers = [message for message in messages if message["role"] == "assistant"]
    if lost := [m for m in answers if str(m["content"]).strip() not in text]:
        raise BadInput(
            f"The chat template does not write an earlier answer down as it is ({_short(lost[0]['content'])}); put the "
            "demonstrations into one turn (--shots-as text)."
        )
    reasoned = [str(m[field]).strip() for m in answers for field in _FIELDS if m.get(field)]
    if any(reasoning not in text for reasoning in reasoned):
        warnings.warn(
            "The chat template leaves the thinking of earlier turns out, so demonstrations show what follows it alone; "
            "--shots-as text shows it.",
            OtherRendering,
            stacklevel=6,
        )


def _short(text: object) -> str:
    line = " ".join(str(text).split())
    return repr(line if len(line) <= 40 else f"{line[:40]}...")


def _check_read(tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any]) -> None:
    """Raise BadInput for something that the template is passed and never reads."""
    read = variables_of(_source(tokenizer))
    if read is None:
        return
    if unread := [name for name in kwargs if name not in read]:
        known = sorted(read - _ALWAYS)
        if known:
            raise unknown_name("setting of the chat template", unread[0], known)
        raise BadInput(f"The chat template reads no settings, so chat_kwargs cannot set {unread[0]!r}; take it out.")


@lru_cache(maxsize=64)
def variables_of(template: str) -> frozenset[str] | None:
    """Return the variables that a chat template reads; None where it cannot be parsed."""
    environment = Environment(extensions=["jinja2.ext.loopcontrols", _Generation])
    try:
        return frozenset(meta.find_undeclared_variables(environment.parse(template)))
    except TemplateSyntaxError:
        return None


class _Generation(Extension):
    """Parses the tag of Transformers that marks what an assistant wrote."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> Node | list[Node]:
        """Return what is inside the tag."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _source(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text of the chat template that is used; "" without one."""
    template = tokenizer.chat_template
    return str(template.get("default", "")) if isinstance(template, dict) else str(template or "")


def turns_of(pairs: Iterable[tuple[str, Message]], question: str, system: str | None) -> list[Message]:
    """Return a conversation: the system prompt, pairs of a question and an assistant's message, and the question."""
    turns: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    for asked, answer in pairs:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", **answer}]
    return [*turns, {"role": "user", "content": question}]
