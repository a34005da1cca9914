"""How problems are asked: demonstrations, the system prompt, the chat template and what it is passed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from chainwright._config import Config, MustBe
from chainwright._errors import BadInput

ShotsAs = Literal["auto", "chat", "text", "none"]
Hops = Annotated[int, Field(ge=1)]
OURS = ("messages", "conversation", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize")
"""Arguments of a chat template that are not the user's to pass."""


def _passed(kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    if ours := [name for name in kwargs if name in OURS]:
        raise BadInput(f"chat_kwargs cannot set {ours[0]!r}, which follows from the question; take it out.")
    return kwargs


def _written(text: str | None) -> str | None:
    if text is not None and not text.strip():
        raise ValueError
    return text


class Asking(Config):
    """How each problem is put to the model.

    Raises:
        BadInput: Options that contradict each other, or a value that does not fit.
    """

    shots: int | None = Field(
        default=None,
        ge=0,
        description="Demonstrations before the question (default: the one worked example of a task's own prompt; "
        "none for an adapter whose recipe says so, such as smollm2-hops).",
    )
    shots_as: ShotsAs = Field(
        default="auto",
        description="Demonstrations as turns of the chat, as one text with the question, or none; 'auto' is 'chat' "
        "where there is a chat template, else 'text'.",
    )
    shots_from: Annotated[str | None, AfterValidator(_written), MustBe("the path of a file, or none")] = Field(
        default=None, description="File of questions with worked answers that demonstrations are taken from, in order."
    )
    shots_seed: int = Field(default=0, description="Seed that chooses the demonstrations.")
    demo_hops: Sequence[Hops] | None = Field(
        default=None,
        min_length=1,
        description="Hop counts of demonstrations from a task's generator, in turn (default: at most 4, and fewer than "
        "the question has).",
    )
    system: Annotated[str | None, AfterValidator(_written), MustBe("a text, or none")] = Field(
        default=None, description="System prompt; a template without a system role gets it in the first turn."
    )
    chat_template: bool = Field(default=True, description="Whether the chat template is used where there is one.")
    chat_kwargs: Annotated[
        Mapping[str, Any], AfterValidator(_passed), MustBe("a table of values by name, such as enable_thinking = false")
    ] = Field(default={}, description="What the chat template is passed, such as enable_thinking=false.")
    instruction: Annotated[str | None, AfterValidator(_written), MustBe("a text, or none")] = Field(
        default=None,
        description="Sentence after each question of a problem set on the form of the answer, or 'none' (default: what "
        "the checker reads best, where no demonstration shows it).",
    )
    raw: bool = Field(default=False, description="Ask with the prompt as it is, without the chat template.")

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.raw and (beside := self.changes()):
            raise BadInput(f"raw (--raw) asks with the prompt as it is, so it cannot be combined with {beside[0]}.")
        if not self.chat_template:
            for name, is_set in (("system", self.system is not None), ("chat_kwargs", bool(self.chat_kwargs))):
                if is_set:
                    raise BadInput(
                        f"{name} goes into the chat template, which --no-chat-template turns off; pass one of them."
                    )
            if self.shots_as == "chat":
                raise BadInput(
                    "shots_as='chat' needs the chat template, which --no-chat-template turns off; take 'text'."
                )
        if self.shots_as == "none" and self.has_shots:
            raise BadInput("shots_as='none' asks for no demonstrations, but some were asked for; pass one of them.")
        if self.shots == 0 and self.shots_from is not None:
            raise BadInput("shots=0 asks for no demonstrations, but shots_from names some; pass only one of them.")
        if self.demo_hops is not None and not self.shots:
            raise BadInput("demo_hops is the length of demonstrations; also say how many with shots (--shots).")
        if self.demo_hops is not None and self.shots_from is not None:
            raise BadInput("demo_hops draws demonstrations, but shots_from reads them from a file; pass only one.")
        return self

    def changes(self) -> list[str]:
        """Return what was asked for that changes a prompt."""
        plain = ("shots", "shots_as", "shots_from", "demo_hops", "system", "chat_kwargs", "instruction")
        return [name for name in plain if getattr(self, name) != type(self).model_fields[name].default]

    @property
    def n_shots(self) -> int | None:
        """Return how many demonstrations there are; None leaves it to the problem, or to the file."""
        return 0 if self.shots_as == "none" else self.shots

    @property
    def has_shots(self) -> bool:
        """Whether demonstrations were asked for."""
        return bool(self.shots) or self.shots_from is not None
