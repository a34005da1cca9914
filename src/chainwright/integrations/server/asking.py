"""From a request to what the engine writes: the prompt as `generate` asks it, the repairs, and the sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from chainwright._errors import BadInput, TooLong
from chainwright.decode.run import check_sampling
from chainwright.decode.sampling import Sampling
from chainwright.integrations.server.choice import Wanted
from chainwright.integrations.server.engine import Engine
from chainwright.integrations.server.protocol import Asked, ChatAsked, Refused, TextAsked
from chainwright.prompts.asking import Asking
from chainwright.prompts.conversation import rendered
from chainwright.prompts.limits import n_positions
from chainwright.prompts.prompt import Prompt, prompt_from
from chainwright.prompts.question import Question, question_of
from chainwright.prompts.templates import closes_thinking

_ROLES = ("system", "developer", "user", "assistant")


@dataclass(frozen=True)
class Service:
    """A model that is served under a name, with its repairs.

    Attributes:
        name: The name.
        engine: What decodes.
        max_new_tokens: Most tokens that a request may ask for; None leaves it to the model.
    """

    name: str
    engine: Engine
    max_new_tokens: int | None = None

    @property
    def names(self) -> list[str]:
        """Return the names that requests use: the model alone, and with each repair."""
        return [self.name, *(f"{self.name}+{repair}" for repair in self.engine.repairs)]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the model's tokenizer."""
        return self.engine.tokenizer

    def repairs(self, model: str | None, repair: str | Sequence[str] | None = None) -> tuple[str, ...]:
        """Return the names of the repairs that a model's name and a list of repairs ask for, in the order of acting.

        Raises:
            Refused: Another model, an unknown repair, or repairs that cannot decode together.
        """
        model = self.name if model is None else model
        if model != self.name and not model.startswith(f"{self.name}+"):
            known = ", ".join(self.names)
            raise Refused(404, f"The model {model!r} is not served here; served: {known}.", "model_not_found")
        named = [part for part in model[len(self.name) + 1 :].split("+") if part] if model != self.name else []
        if repair is not None:
            own = [repair] if isinstance(repair, str) else list(repair)
            if named and named != own:
                raise Refused(
                    400, f"model names the repairs {'+'.join(named)} and repair {'+'.join(own)}; name them once."
                )
            named = own
        if unknown := [name for name in named if name not in self.engine.repairs]:
            known = ", ".join(self.engine.repairs) or "none"
            status, code = (404, "model_not_found") if repair is None else (400, None)
            raise Refused(status, f"There is no repair {unknown[0]!r} here; served: {known}.", code)
        try:
            return self.engine.together(named)
        except BadInput as error:
            raise Refused(400, str(error)) from error

    def sampling(self, asked: Asked, repairs: Sequence[str]) -> Sampling:
        """Return how the tokens of an answer are drawn, and what ends it.

        Raises:
            BadInput: Settings that contradict each other or the repairs.
        """
        stops = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
        sampling = Sampling(
            temperature=asked.temperature or 0.0,
            top_p=None if asked.top_p == 1 else asked.top_p,
            top_k=None if asked.top_k in (0, -1) else asked.top_k,
            min_p=None if asked.min_p == 0 else asked.min_p,
            repetition_penalty=None if asked.repetition_penalty == 1 else asked.repetition_penalty,
            stop=stops,
        )
        check_sampling([self.engine.repairs[name] for name in repairs], sampling)
        if (asked.n or 1) > 1 and sampling.temperature == 0:
            raise BadInput(
                f"n is {asked.n}, but greedy decoding (temperature 0, the default here) gives the same answer each "
                "time; set a temperature, such as 1.0."
            )
        return sampling

    def chat_prompt(self, asked: ChatAsked) -> Prompt:
        """Return the prompt of a conversation; raises as `chat_question` does, or Refused where it is too long."""
        return self._prompt(self.chat_question(asked), asked.limit)

    def chat_question(self, asked: ChatAsked) -> Question:
        """Return a conversation as text, through the chat template if there is one.

        Raises:
            BadInput: It cannot be asked.
        """
        turns = [_turn(message) for message in asked.messages]
        if turns[-1]["role"] != "user":
            raise BadInput(f"The last message must be the user's; it is of the role {turns[-1]['role']!r}.")
        if self.tokenizer.chat_template:
            done = rendered(self.tokenizer, turns, asked.chat_template_kwargs)
            return Question(None, done.text, uses_chat=True, is_closed=closes_thinking(done.tail))
        if len(turns) > 1 or asked.chat_template_kwargs:
            raise BadInput(
                "This model has no chat template, so it is asked with one message of the user; put the whole text into "
                "that."
            )
        return question_of(self.tokenizer, turns[0]["content"], Asking())

    def text_prompts(self, asked: TextAsked) -> list[Prompt]:
        """Return the prompts of a request for completions, which are asked as they are.

        Raises:
            BadInput: One of them cannot be asked.
        """
        given: Any = asked.prompt
        several = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else list(given)
        if not several:
            raise BadInput("prompt is an empty list; give at least one text.")
        prompts = []
        for prompt in several:
            ids = None if isinstance(prompt, str) else list(prompt)
            if ids is None:
                question = question_of(self.tokenizer, prompt, Asking(raw=True))
            else:
                self._check_ids(ids)
                question = Question(None, str(self.tokenizer.decode(ids)))
            prompts.append(self._prompt(question, asked.limit, ids))
        return prompts

    def _check_ids(self, ids: list[int]) -> None:
        n = self.engine.parts.d_vocab
        if outside := [i for i in ids if i >= n]:
            raise BadInput(f"The prompt has token id {outside[0]}; the model's ids go from 0 to {n - 1}.")

    def _prompt(self, question: Question, limit: int | None, ids: list[int] | None = None) -> Prompt:
        if limit is not None and self.max_new_tokens is not None and limit > self.max_new_tokens:
            raise BadInput(f"max_tokens is {limit}; this server writes at most {self.max_new_tokens}.")
        try:
            prompt = prompt_from(self.engine.model, self.tokenizer, 0, question, limit or self.max_new_tokens, ids)
        except TooLong as error:
            raise Refused(400, str(error), "context_length_exceeded") from error
        room = n_positions(self.engine.model) - len(prompt.ids)
        if limit is not None and limit > room:
            raise Refused(
                400,
                f"The prompt has {len(prompt.ids)} tokens and max_tokens is {limit}, but the model has positions for "
                f"{room + len(prompt.ids)} in all; shorten one of them.",
                "context_length_exceeded",
            )
        return prompt

    def wanted(self, asked: ChatAsked | TextAsked, prompts: Sequence[Prompt]) -> list[Wanted]:
        """Return the answers that a request asks for: `n` to each prompt.

        Raises:
            BadInput: As for `sampling`.
            Refused: As for `repairs`.
        """
        repairs = self.repairs(asked.model, asked.repair)
        sampling = self.sampling(asked, repairs)
        return [
            Wanted(
                prompt.ids,
                n_prefilled=prompt.n_prefilled,
                repairs=repairs,
                sampling=sampling,
                index=i,
                seed=asked.seed or 0,
                max_new_tokens=prompt.max_new_tokens,
                stop=prompt.stop,
                n_likely=asked.n_likely,
                has_report=asked.repair_report,
            )
            for prompt in prompts
            for i in range(asked.n or 1)
        ]

    def response_start(self, asked: TextAsked, prompt: Prompt, repairs: Sequence[str]) -> int:
        """Return from where on a prompt that is scored is judged as repairs would have decoded it.

        Raises:
            BadInput: A repair needs to know, and the request does not say.
        """
        n = len(prompt.ids)
        if asked.response_start is not None:
            if asked.response_start > n:
                raise BadInput(f"response_start is {asked.response_start}, but the prompt has {n} tokens.")
            return asked.response_start
        reads = [name for name in repairs if self.engine.repairs[name].acts_by_row]
        if others := [name for name in reads if not self.engine.repairs[name].decides_tokens]:
            raise BadInput(
                f"The repair {others[0]!r} acts on the response alone; say with response_start how many tokens of the "
                "prompt are the question."
            )
        return 1


def _turn(message: Mapping[str, Any]) -> dict[str, str]:
    """Return a message with its text.

    Raises:
        BadInput: An unknown role, or content that is no text.
    """
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        raise BadInput(f"The role of a message must be one of {', '.join(_ROLES)}; got {role!r}.")
    if isinstance(content, (list, tuple)):
        parts = [
            part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in content
        ]
        content = None if None in parts or not parts else "".join(map(str, parts))
    if not isinstance(content, str):
        raise BadInput("The content of a message must be a text, or a list of parts of the type 'text'.")
    if not content.strip():
        raise BadInput("The content of a message is empty; give some text.")
    others = {"reasoning_content", "reasoning", "thinking"}
    if unknown := [name for name in message if name not in {"role", "content", "name", *others}]:
        raise BadInput(f"A message cannot have {unknown[0]!r} here; it has a role and a content.")
    kept = {name: message[name] for name in others if isinstance(message.get(name), str)}
    return {"role": "system" if role == "developer" else str(role), "content": content, **kept}
