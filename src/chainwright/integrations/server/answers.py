"""The bodies of responses, as OpenAI's clients read them, with fields of our own for what repairs did."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from chainwright.integrations.server.choice import Choice, Likely, Written
from chainwright.integrations.server.echo import Echo
from chainwright.traces.offsets import token_bytes, token_offsets

Body = dict[str, Any]


@dataclass(frozen=True)
class Head:
    """What every body of one response begins with."""

    kind: str
    model: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def is_chat(self) -> bool:
        """Whether it answers a conversation."""
        return self.kind == "chat"

    def body(self, choices: Sequence[Body], usage: Body | None = None, *, is_chunk: bool = False) -> Body:
        """Return a response, or a chunk of a streamed one."""
        name = "text_completion"
        if self.is_chat:
            name = "chat.completion.chunk" if is_chunk else "chat.completion"
        prefix = "chatcmpl-" if self.is_chat else "cmpl-"
        body = {"id": prefix + self.id, "object": name, "created": self.created, "model": self.model}
        return {**body, "choices": list(choices), **({} if usage is None else {"usage": usage})}


def usage_of(choices: Sequence[Choice], n_prompt: int, *, has_repairs: bool) -> Body:
    """Return the tokens of a response; `repair` has what its repairs did, and the tokens that they ran again."""
    n_new = sum(len(choice.written) for choice in choices)
    usage: Body = {"prompt_tokens": n_prompt, "completion_tokens": n_new, "total_tokens": n_prompt + n_new}
    if has_repairs:
        usage["repair"] = {
            "flagged_tokens": sum(choice.n_flagged for choice in choices),
            "changed_tokens": sum(choice.n_changed for choice in choices),
            "extra_tokens": sum(choice.n_extra_tokens for choice in choices),
        }
    return usage


class Words:
    """Tokens as texts and bytes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer

    def text(self, token: int) -> str:
        """Return a token as a text of its own."""
        return str(self.tokenizer.decode([token]))

    def entry(self, likely: Likely) -> Body:
        """Return a token with its log-probability."""
        text = self.text(likely.token)
        raw = token_bytes(self.tokenizer, {likely.token})
        known = raw.get(likely.token) if raw else None
        return {"token": text, "logprob": likely.logprob, "bytes": list(text.encode() if known is None else known)}

    def chat_logprobs(self, written: Sequence[Written]) -> Body:
        """Return the log-probabilities of tokens of a conversation's answer."""
        content = []
        for one in written:
            assert one.logprob is not None
            likely = [self.entry(other) for other in one.likely]
            content.append({**self.entry(Likely(one.token, one.logprob)), "top_logprobs": likely})
        return {"content": content, "refusal": None}

    def text_logprobs(self, written: Sequence[Written], echo: Echo | None, start: int = 0) -> Body:
        """Return the log-probabilities of the tokens of a completion, those of an echoed prompt in front.

        Args:
            written: The tokens.
            echo: The prompt.
            start: The place of the first token in the text.
        """
        ids = [*(echo.ids if echo else ()), *(one.token for one in written)]
        places = [span.start + start for span in token_offsets(self.tokenizer, ids).offsets] if ids else []
        likely = [*(echo.likely if echo else ()), *(one.likely for one in written)]
        first = bool(echo)  # nothing was known before the first token of a prompt
        return {
            "tokens": [self.text(token) for token in ids],
            "token_logprobs": [*(echo.logprobs if echo else ()), *(one.logprob for one in written)],
            "top_logprobs": [
                None if first and not i else {self.text(token): value for token, value in best}
                for i, best in enumerate(likely)
            ],
            "text_offset": places,
        }

    def report(self, written: Sequence[Written], start: int = 0) -> list[Body]:
        """Return what repairs did, a record for each token that one flagged.

        Args:
            written: The tokens.
            start: Index of the first of them in the answer.
        """
        return [
            {
                "index": i,
                "token": self.text(one.token),
                "repair": decision.repair,
                "flagged": True,
                "changed": decision.is_changed,
                "model_candidates": [self._candidate(other) for other in decision.before],
                "candidates": [self._candidate(other) for other in decision.after],
            }
            for i, one in enumerate(written, start)
            if (decision := one.decision) is not None
        ]

    def _candidate(self, likely: Likely) -> Body:
        logprob = max(likely.logprob, -1e4)  # a token that is ruled out has minus infinity, which JSON does not
        return {"token": self.text(likely.token), "logprob": logprob}
