"""A problem as the text that the model reads: demonstrations, an instruction on the answer's form, the chat template.

- In a chat, each demonstration is a user's turn and an assistant's turn. A problem of a task asks in full in every
  turn, as models are trained to read it.
- In one text, a task's problem has its demonstrations as the worked examples of its own layout; any other is written
  "Question: ... Answer: ...", and the response ends where the model begins another question.
- The instruction is there where no demonstration shows the form, for problems that a checker judges.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from chainwright import checkers
from chainwright._errors import BadInput
from chainwright.models.load import OWN_SHOTS
from chainwright.prompts.asking import Asking
from chainwright.prompts.conversation import rendered, turns_of
from chainwright.prompts.demonstrations import Demonstration, Shots, demonstration
from chainwright.prompts.rendering import as_asked, is_plain_text
from chainwright.prompts.templates import closes_thinking, is_rendered, reply_start, uses_chat
from chainwright.tasks.base import Problem
from chainwright.tasks.demonstrations import bare, with_examples

_INSTRUCTIONS = {
    "math": "Put the final answer in \\boxed{}.",
    "number": "End with a line that says 'The answer is' and the number.",
    "choice": "End with a line that says 'The answer is' and the letter of the right option in parentheses.",
    "exact": "End with a line that says 'The answer is' and the answer.",
}
_EXAMPLE = "Worked example:\n"
_NEXT_QUESTION, _NEXT_EXAMPLES = ("\nQuestion:",), ("\nWorked example:", "\nProblem:")


@dataclass(frozen=True)
class Question:
    """A problem or string as it is asked.

    Attributes:
        problem: The problem as it is asked, None for a plain string.
        text: What the model reads.
        uses_chat: Whether it went through the chat template.
        is_rendered: Whether it is a string that has been through it before.
        is_closed: Whether the chat template has closed the thinking, so that the model does not think.
        stop: Texts before which the response ends.
        info: What a trace says about demonstrations, system prompt and the rest.
    """

    problem: Problem | None
    text: str
    uses_chat: bool = False
    is_rendered: bool = False
    is_closed: bool = False
    stop: tuple[str, ...] = ()
    info: Mapping[str, str | int | float | bool] = field(default_factory=dict)


def question_of(
    tokenizer: PreTrainedTokenizerBase,
    problem: Problem | str,
    asking: Asking | None = None,
    shots: Shots | None = None,
    *,
    index: int = 0,
) -> Question:
    """Return what the model reads for a problem or a string.

    Raises:
        BadInput: The prompt is empty, has been through the chat template although more is to go through it, is of the
            short rendering although demonstrations were asked for, or the chat template refuses it.
    """
    asking = asking or Asking()
    problem = as_asked(tokenizer, problem)
    text = problem if isinstance(problem, str) else problem.prompt
    if not text.strip():
        raise BadInput(f"Prompt {index} is empty; give some text.")
    is_chat = asking.chat_template and uses_chat(tokenizer, problem, asking.raw)
    was_rendered = is_plain_text(problem) and not is_chat and is_rendered(tokenizer, text)
    if asking.raw or was_rendered:
        if was_rendered and not asking.raw:
            _check_alone(asking, index)
        start = reply_start(tokenizer, text)
        is_closed = start is not None and closes_thinking(text[start:])
        known = None if isinstance(problem, str) else problem
        return Question(known, text, is_rendered=was_rendered, is_closed=is_closed)
    _check_template(tokenizer, asking, problem, is_chat=is_chat)
    problem, before = _with_shots(tokenizer, problem, asking, shots, is_chat=is_chat)
    return _put(tokenizer, problem, before, asking, is_chat=is_chat)


def _check_alone(asking: Asking, index: int) -> None:
    if changed := [name for name in asking.changes() if name not in ("shots_as", "shots_seed")]:
        raise BadInput(
            f"Prompt {index} has been through the chat template already, so {changed[0]} cannot be added; pass the "
            "question alone, or take that out."
        )


def _check_template(
    tokenizer: PreTrainedTokenizerBase, asking: Asking, problem: Problem | str, *, is_chat: bool
) -> None:
    """Raise BadInput for what needs the chat template where a prompt does not go through it."""
    if is_chat:
        return
    why = "this tokenizer has no chat template"
    if tokenizer.chat_template:
        why = "the short rendering does not go through the chat template"
        if not asking.chat_template:
            return
    needs = {"system": asking.system is not None, "chat_kwargs": bool(asking.chat_kwargs)}
    needs["shots_as='chat'"] = asking.shots_as == "chat"
    if asked := [name for name, is_set in needs.items() if is_set]:
        raise BadInput(f"{asked[0]} goes through the chat template, but {why}; take it out, or put it into the prompt.")


def _with_shots(
    tokenizer: PreTrainedTokenizerBase, problem: Problem | str, asking: Asking, shots: Shots | None, *, is_chat: bool
) -> tuple[Problem | str, list[Demonstration]]:
    """Return the problem with the prompt that suits its demonstrations, and those that are apart from the prompt."""
    if not asking.has_shots and asking.n_shots is None:
        return _as_trained(tokenizer, problem), []
    task = problem if isinstance(problem, Problem) and problem.lines else None
    if task is not None and task.rendering == "short":
        if asking.n_shots == 0:
            return problem, []
        raise BadInput(
            "Problems of the short rendering are asked without demonstrations, which the models that read it do not "
            "know; leave --shots out, or ask in the natural rendering (--rendering natural)."
        )
    chosen = [] if shots is None else shots.before(problem)
    if task is None:
        return problem, [demonstration(other) for other in chosen]
    if is_chat and asking.shots_as != "text":
        return bare(task), [demonstration(other) for other in chosen]
    if all(other.lines for other in chosen):
        return with_examples(task, chosen), []
    return bare(task), [demonstration(other) for other in chosen]


def _as_trained(tokenizer: PreTrainedTokenizerBase, problem: Problem | str) -> Problem | str:
    """Return a task's problem without its own worked example where the model was trained to be asked without."""
    if isinstance(problem, str) or not problem.lines or problem.rendering != "natural":
        return problem
    if tokenizer.init_kwargs.get(OWN_SHOTS) == 0 and problem.prompt.count(_EXAMPLE) == 1:
        return bare(problem)
    return problem


def _put(
    tokenizer: PreTrainedTokenizerBase,
    problem: Problem | str,
    before: Sequence[Demonstration],
    asking: Asking,
    *,
    is_chat: bool,
) -> Question:
    own = problem if isinstance(problem, str) else problem.prompt
    n_inside = own.count(_EXAMPLE) if isinstance(problem, Problem) and problem.lines else 0
    n_shots = len(before) or (n_inside if asking.has_shots else 0)
    instruction = _instruction(problem, asking, has_shots=n_shots > 0)
    asked = own if instruction is None else f"{own.rstrip()}\n\n{instruction}"
    as_turns = is_chat and asking.shots_as != "text"
    stop: tuple[str, ...] = ()
    if before and not as_turns:
        asked, stop = _one_text(before, asked), _NEXT_QUESTION
    elif asking.has_shots and n_inside:
        stop = _NEXT_EXAMPLES
    info = _info(asking, n_shots, as_turns=as_turns, instruction=instruction)
    known = None if isinstance(problem, str) else problem
    if not is_chat:
        return Question(known, asked, stop=stop, info=info)
    pairs = [(shot.question, shot.message) for shot in before] if as_turns else []
    done = rendered(tokenizer, turns_of(pairs, asked, asking.system), asking.chat_kwargs)
    if done.is_folded:
        info["system_folded"] = True
    return Question(known, done.text, uses_chat=True, is_closed=closes_thinking(done.tail), stop=stop, info=info)


def _one_text(before: Sequence[Demonstration], question: str) -> str:
    blocks = [f"Question: {shot.question.strip()}\nAnswer: {shot.solution}" for shot in before]
    return "\n\n".join([*blocks, f"Question: {question.strip()}\nAnswer:"])


def _instruction(problem: Problem | str, asking: Asking, *, has_shots: bool) -> str | None:
    """Return what is asked for besides: as passed, or the form that the checker reads unless demonstrations show it."""
    if asking.instruction is not None:
        return None if asking.instruction.strip().lower() == "none" else asking.instruction
    if isinstance(problem, str) or has_shots or not problem.checker:
        return None
    own = _INSTRUCTIONS.get(problem.checker)
    return own or getattr(checkers.load(problem.checker), "instruction", None)


def _info(
    asking: Asking, n_shots: int, *, as_turns: bool, instruction: str | None
) -> dict[str, str | int | float | bool]:
    info: dict[str, str | int | float | bool] = {}
    if asking.n_shots is not None or n_shots:
        info["shots"] = n_shots
    if n_shots:
        info |= {"shots_as": "chat" if as_turns else "text", "shots_seed": asking.shots_seed}
        info |= {} if asking.shots_from is None else {"shots_from": asking.shots_from}
    if asking.system is not None:
        info["system"] = asking.system
    if asking.chat_kwargs:
        info["chat_kwargs"] = json.dumps(dict(asking.chat_kwargs), ensure_ascii=False)
    if instruction is not None:
        info["instruction"] = instruction
    return info
