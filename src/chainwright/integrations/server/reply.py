"""One request while it is answered: what it has written, and the bodies that are sent of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

from chainwright.integrations.server.answers import Body, Head, Words, usage_of
from chainwright.integrations.server.asking import Service
from chainwright.integrations.server.choice import Choice, Written
from chainwright.integrations.server.echo import Echo
from chainwright.integrations.server.engine import Full, Stopping
from chainwright.integrations.server.protocol import ChatAsked, Refused, TextAsked
from chainwright.integrations.server.writing import Parts, Snapshot, Splitter, snapshot
from chainwright.prompts.prompt import Prompt


class Reply:
    """One request while it is answered; made and used in the event loop.

    Attributes:
        choices: The answers that are written for it, `n` to each prompt.
        echoes: The prompts whose log-probabilities are read.
    """

    def __init__(self, service: Service, asked: ChatAsked | TextAsked):
        self.service, self.asked = service, asked
        self.repairs = service.repairs(asked.model, asked.repair)
        self.prompts = [service.chat_prompt(asked)] if isinstance(asked, ChatAsked) else service.text_prompts(asked)
        kind = "chat" if isinstance(asked, ChatAsked) else "text"
        self.head = Head(kind, "+".join([service.name, *self.repairs]))
        self.words = Words(service.tokenizer)
        self.choices: list[Choice] = []
        self.echoes: list[Echo] = []
        self._loop = asyncio.get_running_loop()
        self._news: dict[Choice | Echo, Snapshot | Echo] = {}  # the latest of each, in the order of their coming
        self._has_news = asyncio.Event()

    @property
    def streams(self) -> bool:
        """Whether the answer is sent while it is written."""
        return bool(self.asked.stream)

    @property
    def echo(self) -> bool:
        """Whether the prompt is given back."""
        return isinstance(self.asked, TextAsked) and bool(self.asked.echo)

    def start(self) -> None:
        """Hand everything to the engine.

        Raises:
            Refused: The queue is full, the server is stopping, or the request contradicts itself.
            BadInput: It asks for something that cannot be done.
        """
        self._check()
        wanted, echoes = self.service.wanted(self.asked, self.prompts), self._wanted_echoes()
        engine = self.service.engine
        try:
            if self.asked.limit != 0:
                self.choices = engine.submit(wanted, self._on_change, streams=self.streams)
            for echo in echoes:
                engine.read(echo)
        except Full as error:
            self.cancel()
            raise Refused(429, "Too many requests are waiting; send it again later.", "rate_limit_exceeded") from error
        except Stopping as error:
            self.cancel()
            raise Refused(503, "The server is stopping; send the request again to another one.") from error
        self.echoes = echoes

    def _check(self) -> None:
        asked = self.asked
        if self.echo and self.streams:
            raise Refused(400, "echo and stream cannot be combined; take one of them.")
        if isinstance(asked, TextAsked) and asked.response_start is not None and not (self.echo and asked.logprobs):
            raise Refused(400, "response_start is for prompts that are scored; it needs echo and logprobs.")
        if asked.limit == 0 and not self.echo:
            raise Refused(400, "max_tokens is 0, which asks for nothing; take 1 or more, or echo the prompt.")

    def _wanted_echoes(self) -> list[Echo]:
        asked = self.asked
        if not (isinstance(asked, TextAsked) and asked.echo and asked.logprobs is not None):
            return []
        starts = [self.service.response_start(asked, prompt, self.repairs) for prompt in self.prompts]
        return [
            Echo(prompt.ids, self.repairs, start, asked.logprobs, self._on_echo)
            for prompt, start in zip(self.prompts, starts, strict=True)
        ]

    def _on_change(self, choice: Choice) -> None:
        self._call(choice, snapshot(choice))

    def _on_echo(self, echo: Echo) -> None:
        self._call(echo, echo)

    def _call(self, key: Choice | Echo, item: Snapshot | Echo) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._take, key, item)

    def _take(self, key: Choice | Echo, item: Snapshot | Echo) -> None:
        self._news[key] = item  # in place of an earlier one that was not sent: a slow client costs no memory
        self._has_news.set()

    def cancel(self) -> None:
        """Have nothing more written for it."""
        for choice in self.choices:
            choice.cancelled.set()

    async def snapshots(self) -> AsyncIterator[tuple[int, Snapshot]]:
        """Yield the index of an answer with what is there of it, whenever there is more, until everything is over.

        Raises:
            Refused: Something went wrong.
        """
        n_open = len(self.choices) + len(self.echoes)
        while n_open:
            await self._has_news.wait()
            self._has_news.clear()
            news, self._news = self._news, {}
            for key, item in news.items():
                if item.failure is not None:
                    self.cancel()
                    raise Refused(item.failure.status, item.failure.message)
                if isinstance(item, Echo):
                    n_open -= 1
                    continue
                n_open -= item.finish is not None
                yield next(i for i, choice in enumerate(self.choices) if choice is key), item

    def usage(self) -> Body:
        """Return the tokens that it took."""
        n_prompt = sum(len(prompt.ids) for prompt in self.prompts)
        return usage_of(self.choices, n_prompt, has_repairs=bool(self.repairs))

    def _prompt_of(self, index: int) -> int:
        """Return which prompt an answer is to."""
        return index // (self.asked.n or 1) if self.choices else index

    def splitter(self, index: int) -> Splitter:
        """Return what splits an answer into thinking and content."""
        prompt = self.prompts[self._prompt_of(index)]
        return Splitter(self.service.tokenizer, prompt.ids[: prompt.n_question])

    # the whole response

    async def whole(self) -> Body:
        """Return the whole response.

        Raises:
            Refused: Something went wrong.
        """
        last: dict[int, Snapshot] = {}
        async for index, one in self.snapshots():
            last[index] = one
        if not self.choices:
            last = {i: Snapshot("", [], 0, "length", None) for i in range(len(self.prompts))}
        return self.head.body([self._choice(i, last[i]) for i in sorted(last)], self.usage())

    def _choice(self, index: int, one: Snapshot) -> Body:
        body: Body = {"index": index, "finish_reason": one.finish, "logprobs": None}
        at = self._prompt_of(index)
        if self.head.is_chat:
            splitter = self.splitter(index)
            reasoning, content = splitter.parts(one.text, is_over=True)
            body["message"] = {"role": "assistant", "content": content, "refusal": None}
            if splitter.splits:
                body["message"]["reasoning_content"] = reasoning or None
        else:
            body["text"] = self._with_prompt(one, self.prompts[at]) if self.echo else one.text
        if self.asked.n_likely is not None and self.head.is_chat:
            body["logprobs"] = self.words.chat_logprobs(one.written)
        elif self.asked.n_likely is not None:
            body["logprobs"] = self.words.text_logprobs(one.written, self.echoes[at] if self.echoes else None)
        if self.asked.return_token_ids:
            body["token_ids"] = [written.token for written in one.written]
        if self.asked.repair_report:
            body["repair_report"] = self.words.report(one.written)
        return body

    def _with_prompt(self, one: Snapshot, prompt: Prompt) -> str:
        ids = [*prompt.ids, *(written.token for written in one.written)]
        text = str(self.service.tokenizer.decode(ids, skip_special_tokens=True))
        end = text.rfind(one.text)  # what follows is a stop string
        return text[: end + len(one.text)] if one.text and end >= 0 else text

    # the response in chunks

    async def chunks(self) -> AsyncIterator[Body]:
        """Yield the response in chunks.

        Raises:
            Refused: Something went wrong.
        """
        sent = [Parts("", "")] * len(self.choices)
        n_sent = [0] * len(self.choices)
        splitters = [self.splitter(i) if self.head.is_chat else None for i in range(len(self.choices))]
        for i in range(len(self.choices) if self.head.is_chat else 0):
            yield self._chunk(i, {"role": "assistant", "content": ""})
        async for i, one in self.snapshots():
            splitter = splitters[i]
            is_over = one.finish is not None
            now = Parts("", one.text) if splitter is None else splitter.parts(one.text, is_over=is_over)
            new = Parts(*(text[len(old) :] for text, old in zip(now, sent[i], strict=True)))
            written = one.written[n_sent[i] : one.n_written]
            if any(new) or self._says_more(written):
                yield self._chunk(i, _delta(new), written, n_sent[i], len(sent[i].content))
                sent[i], n_sent[i] = (
                    Parts(*(max(both, key=len) for both in zip(sent[i], now, strict=True))),
                    one.n_written,
                )
            if is_over:
                yield self._chunk(i, {}, finish=one.finish)
        if self.asked.stream_options is not None and self.asked.stream_options.include_usage:
            yield self.head.body([], self.usage(), is_chunk=True)

    def _says_more(self, written: Sequence[Written]) -> bool:
        """Return whether a chunk says something of tokens besides their text."""
        has_decision = any(one.decision is not None for one in written)
        return bool(written) and (self.asked.n_likely is not None or has_decision)

    def _chunk(
        self,
        index: int,
        delta: Body,
        written: Sequence[Written] = (),
        n: int = 0,
        start: int = 0,
        finish: str | None = None,
    ) -> Body:
        body: Body = {"index": index, "finish_reason": finish, "logprobs": None}
        body |= {"delta": delta} if self.head.is_chat else {"text": delta.get("content", "")}
        if written and self.asked.n_likely is not None and self.head.is_chat:
            body["logprobs"] = self.words.chat_logprobs(written)
        elif written and self.asked.n_likely is not None:
            body["logprobs"] = self.words.text_logprobs(written, None, start)
        if self.asked.return_token_ids:
            body["token_ids"] = [each.token for each in written]
        if written and self.asked.repair_report:
            body["repair_report"] = self.words.report(written, n)
        return self.head.body([body], is_chunk=True)


def _delta(new: Parts) -> Body:
    """Return what a chunk adds."""
    delta = {"reasoning_content": new.reasoning} if new.reasoning else {}
    return {**delta, "content": new.content} if new.content or not delta else delta
