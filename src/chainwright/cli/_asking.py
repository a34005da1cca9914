"""How problems are asked, as command options: demonstrations, system prompt, chat template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from chainwright._config import Config
from chainwright._errors import BadInput
from chainwright.cli._command import ConfigOptions, Values
from chainwright.prompts.asking import Asking, ShotsAs

if TYPE_CHECKING:
    from chainwright.prompts.asking import Asking as AskingType


def _as(name: str) -> Any:
    """Return the default and description of a setting of `Asking`."""
    return Asking.model_fields[name]


class AskingOptions(Config):
    """The options of `Asking`; hops and settings of the template are written as on a command line."""

    shots: int | None = _as("shots")
    shots_as: ShotsAs = _as("shots_as")
    shots_from: str | None = _as("shots_from")
    shots_seed: int = _as("shots_seed")
    demo_hops: str | None = Field(default=None, description=Asking.model_fields["demo_hops"].description)
    system: str | None = _as("system")
    chat_template: bool = _as("chat_template")
    chat_kwargs: tuple[str, ...] | None = Field(
        default=None,
        description="NAME=VALUE for the chat template, such as enable_thinking=false; may be repeated.",
    )
    instruction: str | None = _as("instruction")


ASKING = ConfigOptions(
    "chainwright.cli._asking:AskingOptions",
    *AskingOptions.model_fields,
    flags={"chat_template": "--chat-template/--no-chat-template"},
)


def asking_of(values: Values, *, raw: bool = False) -> AskingType:
    """Return how problems are asked, as the options of `ASKING` and `--raw` say.

    Raises:
        BadInput: Hops or settings of the template that cannot be read, or options that contradict each other.
    """
    from chainwright.tasks.cells import parse_hops

    changed = {name: value for name, value in values.items() if name not in ("demo_hops", "chat_kwargs")}
    hops = values.get("demo_hops")
    return Asking(
        **changed,
        demo_hops=None if hops is None else parse_hops(hops),
        chat_kwargs=parse_chat_kwargs(values.get("chat_kwargs") or ()),
        raw=raw,
    )


def parse_chat_kwargs(texts: Sequence[str]) -> dict[str, Any]:
    """Return the values that texts such as "enable_thinking=false" name, read as JSON, otherwise as text.

    Raises:
        BadInput: A text without a name or an equals sign, or a name twice.
    """
    made: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip().isidentifier():
            raise BadInput(f"--chat-kwargs takes NAME=VALUE, such as enable_thinking=false; got {text!r}.")
        if name.strip() in made:
            raise BadInput(f"--chat-kwargs sets {name.strip()!r} twice; pass it once.")
        made[name.strip()] = _value(value.strip())
    return made


def _value(text: str) -> Any:
    if text in ("True", "False", "None"):  # as in Python
        return {"True": True, "False": False, "None": None}[text]
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
