"""An entry of a file as a trace: its prompt as the model would read it, its reasoning between markers, its tokens.

1. A prompt is taken as it is. Messages, and a bare question where the tokenizer has a chat template, go through that.
2. Reasoning from a field of its own goes between the markers of the style. Where the template leaves thinking open that
   the response never had, it is closed at once.
3. Token ids of the file are used where they are this tokenizer's; else the text is tokenised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from chainwright._errors import BadTrace
from chainwright.markers.borders import prompt_family
from chainwright.markers.known import PAIRS, ThinkMarkers
from chainwright.traces._entries import Entry
from chainwright.traces.offsets import Tokenizer
from chainwright.traces.segments import SegmentConfig, detect_style, is_opened_by
from chainwright.traces.trace import Trace
from chainwright.traces.trace import _ids_with_front_tokens as prompt_token_ids

if TYPE_CHECKING:
    from chainwright.tasks.base import Problem

_HARMONY = ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>")


@dataclass(frozen=True)
class Reading:
    """How entries become traces.

    Attributes:
        tokenizer: The tokenizer of the model that is to read the traces.
        style: The style of the markers of thinking, or "auto".
        markers: The pair around the thinking; None for the known ones.
        chat_template: Whether a bare question goes through the chat template, if there is one.
        separates: Whether a bare question that does not is parted from the response by a blank line.
    """

    tokenizer: Tokenizer
    style: str = "auto"
    markers: ThinkMarkers | None = None
    chat_template: bool = True
    separates: bool = True

    def trace(self, entry: Entry, info: Mapping[str, Any], problem: Problem | None = None) -> Trace:
        """Return the trace of an entry, judged by its problem if that is known, else as the file says.

        Raises:
            BadTrace: There is no question, or reasoning and style do not go together.
        """
        question = self._question(entry, problem)
        style, response = self._with_reasoning(entry, question)
        if not entry.reasoning and entry.prompt is None:
            question = self._closed(question, entry)
        if (ids := self._own_ids(entry, question)) is not None:
            made = Trace.from_ids(
                self.tokenizer, *ids, style=style, problem=problem, stopped=entry.stopped, info=info,
                markers=self.markers,
            )  # fmt: skip
            return made if problem is not None else replace(made, is_correct=entry.label)
        return Trace.from_text(
            self.tokenizer, question, response, style=style, problem=problem, is_correct=entry.label, info=info,
            markers=self.markers, stopped=entry.stopped,
        )  # fmt: skip

    def has_own_ids(self, entry: Entry) -> bool:
        """Say whether the token ids of an entry are this tokenizer's."""
        ids = entry.response_ids
        if ids is None or max(ids) >= _size(self.tokenizer) or max(entry.prompt_ids or [0]) >= _size(self.tokenizer):
            return False
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        parts = [part.strip() for part in (entry.reasoning, entry.response)]
        if not any(parts):  # some engines write ids alone
            return True
        return all(part in text for part in parts) and (bool(parts[0]) or text.strip() == parts[1])

    def _own_ids(self, entry: Entry, question: str) -> tuple[list[int], int] | None:
        if entry.response_ids is None or not self.has_own_ids(entry):
            return None
        before = list(entry.prompt_ids or prompt_token_ids(self.tokenizer, question))
        return [*before, *entry.response_ids], len(before)

    def _question(self, entry: Entry, problem: Problem | None) -> str:
        """Return the prompt of an entry; one that lacks its question has that of its problem."""
        if entry.prompt is not None:
            return entry.prompt
        if entry.turns:
            return self._rendered(entry.turns)
        question = entry.question if entry.question is not None or problem is None else problem.prompt
        if question is None:
            raise BadTrace("there is no question (a field such as 'question', 'prompt', 'problem' or 'messages')")
        if self.chat_template and self._has_template() and not self._is_rendered(question):
            return self._rendered([{"role": "user", "content": question}])
        ends = question[-1:].isspace() or entry.response[:1].isspace()
        return question if ends or not self.separates else f"{question}\n\n"

    def _has_template(self) -> bool:
        return bool(getattr(self.tokenizer, "chat_template", None))

    def _is_rendered(self, text: str) -> bool:
        return any(token in text for token in getattr(self.tokenizer, "all_special_tokens", ()))

    def _rendered(self, turns: Sequence[Mapping[str, Any]]) -> str:
        if not self._has_template():
            return "\n\n".join(turn["content"] for turn in turns)
        try:
            return str(
                self.tokenizer.apply_chat_template(  # type: ignore[attr-defined]
                    [dict(turn) for turn in turns], add_generation_prompt=True, tokenize=False
                )
            )
        except Exception as error:  # templates raise what they like
            raise BadTrace(f"the chat template refuses the messages: {error}") from error

    def _closed(self, question: str, entry: Entry) -> str:
        """Return a prompt with the thinking closed that its chat template left open and the response never had."""
        family = prompt_family(question, "think", self.markers)
        pair = next((pair for pair in PAIRS if pair.open == family), self.markers if family else None)
        if pair is None or pair.close in entry.response or not entry.stopped:
            return question
        return f"{question.rstrip()}\n\n{pair.close}\n\n"

    def _with_reasoning(self, entry: Entry, question: str) -> tuple[str, str]:
        """Return the style and the response of an entry, with reasoning from a field of its own at its front."""
        if not entry.reasoning:
            return self.style, entry.response
        if self.style == "plain":
            raise BadTrace("there is reasoning, but the plain style has no thinking; use another style, such as 'auto'")
        if detect_style("", entry.response, SegmentConfig(markers=self.markers)) != "plain":
            raise BadTrace("there is reasoning in a field of its own and thinking in the response; keep one of the two")
        style = self.style
        if style == "auto":
            style = "harmony" if is_opened_by(question, "harmony") else "think"
        # a chat template may have opened the thinking at the end of the prompt
        family = prompt_family(question, style, self.markers)
        opening, closing = self._around(style, family)
        return style, f"{'' if family else opening}{entry.reasoning}{closing}{entry.response}"

    def _around(self, style: str, family: str | None) -> tuple[str, str]:
        """Return what goes around reasoning: the pair of the user, of the prompt, or the usual one."""
        if style == "harmony":
            return _HARMONY
        pair = self.markers or next((pair for pair in PAIRS if pair.open == family), PAIRS[0])
        return f"{pair.open}\n", f"\n{pair.close}\n\n"


def _size(tokenizer: Tokenizer) -> int:
    try:
        return len(tokenizer)  # type: ignore[arg-type]
    except TypeError:
        return 2**31
