"""From what was written to inspect's output: thinking apart, log-probabilities, tokens, and what the repairs did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessageAssistant,
    Content,
    ContentReasoning,
    ContentText,
    Logprob,
    Logprobs,
    ModelOutput,
    ModelUsage,
    StopReason,
    TopLogprob,
)
from transformers import PreTrainedTokenizerBase

from chainwright.integrations.server.answers import Words
from chainwright.integrations.server.choice import Choice, Written
from chainwright.integrations.server.writing import Splitter, snapshot
from chainwright.prompts.prompt import Prompt

KEY = "chainwright"
"""Where the metadata of an output, and of a sample, say what Chainwright did."""
COUNTS = ("flagged_tokens", "changed_tokens", "extra_tokens")


class Answers:
    """The answers to one prompt, in inspect's words.

    Args:
        name: The model's name.
        tokenizer: Its tokenizer.
        prompt: The prompt.
        choices: The answers, which are over.
        n_positions: How many positions the model has.
    """

    def __init__(
        self,
        name: str,
        tokenizer: PreTrainedTokenizerBase,
        prompt: Prompt,
        choices: Sequence[Choice],
        n_positions: int,
    ):
        self.name, self.tokenizer, self.prompt, self.choices = name, tokenizer, prompt, choices
        self.n_positions = n_positions
        self.words = Words(tokenizer)

    def output(self, about: Mapping[str, Any]) -> ModelOutput:
        """Return inspect's output, whose metadata also say what is in `about`."""
        n_prompt, n_new = len(self.prompt.ids), sum(len(choice.written) for choice in self.choices)
        return ModelOutput(
            model=self.name,
            choices=[self._choice(choice) for choice in self.choices],
            usage=ModelUsage(input_tokens=n_prompt, output_tokens=n_new, total_tokens=n_prompt + n_new),
            metadata={KEY: {**about, **self.counts(), **self._details()}},
        )

    def counts(self) -> dict[str, int]:
        """Return how many tokens the repairs flagged, changed, and ran again."""
        found = [(choice.n_flagged, choice.n_changed, choice.n_extra_tokens) for choice in self.choices]
        return dict(zip(COUNTS, map(sum, zip(*found, strict=True)), strict=True))

    def _details(self) -> dict[str, Any]:
        choices = [
            {
                "token_ids": [one.token for one in choice.written[: choice.n_kept]],
                "flags": self.words.report(choice.written),
            }
            for choice in self.choices
        ]
        return {"prompt_token_ids": list(self.prompt.ids), "choices": choices}

    def _choice(self, choice: Choice) -> ChatCompletionChoice:
        splitter = Splitter(self.tokenizer, self.prompt.ids[: self.prompt.n_question])
        reasoning, text = splitter.parts(snapshot(choice).text, is_over=True)
        content: str | list[Content] = text
        if reasoning:
            content = [ContentReasoning(reasoning=reasoning), *([ContentText(text=text)] if text else [])]
        return ChatCompletionChoice(
            message=ChatMessageAssistant(content=content, model=self.name, source="generate"),
            stop_reason=self._stop_reason(choice),
            logprobs=None if choice.wanted.n_likely is None else self._logprobs(choice.written),
        )

    def _stop_reason(self, choice: Choice) -> StopReason:
        if choice.finish == "stop":
            return "stop"
        is_full = len(self.prompt.ids) + len(choice.written) >= self.n_positions
        return "model_length" if is_full else "max_tokens"

    def _logprobs(self, written: Sequence[Written]) -> Logprobs:
        entries = self.words.chat_logprobs(written)["content"]
        return Logprobs(
            content=[
                Logprob(
                    token=entry["token"],
                    logprob=entry["logprob"],
                    bytes=entry["bytes"],
                    top_logprobs=[TopLogprob(**other) for other in entry["top_logprobs"]] or None,
                )
                for entry in entries
            ]
        )


def too_long(name: str, sentence: str) -> ModelOutput:
    """Return the output of a prompt that the model has no positions for, as inspect's agents look for it."""
    return ModelOutput.from_content(name, "", stop_reason="model_length", error=sentence)
