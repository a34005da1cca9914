"""What is sent while an answer is written, and thinking apart from the answer; conversations through chat templates."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chainwright import generate
from chainwright._errors import BadInput
from chainwright.decode.ending import Endings
from chainwright.integrations.server.asking import Service
from chainwright.integrations.server.choice import Choice, Wanted
from chainwright.integrations.server.config import ServeConfig
from chainwright.integrations.server.engine import Engine
from chainwright.integrations.server.protocol import ChatAsked, TextAsked
from chainwright.integrations.server.writing import Parts, Splitter, snapshot
from chat_templates import chat_tokenizer
from instruct import instruct_model, instruct_tokenizer
from serving import running

THINKING, PLAIN = chat_tokenizer("opens_thinking"), chat_tokenizer("plain")


def splitter(tokenizer: Any, prompt: str) -> Splitter:
    return Splitter(tokenizer, tokenizer(prompt, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize(
    ("prompt", "text", "due"),
    [
        ("[user]x[end][assistant]<think>\n", "a b\n</think>\n\nso 5", Parts("a b", "so 5")),
        ("[user]x[end][assistant]<think>\n", "a b, cut", Parts("a b, cut", "")),
        ("[user]x[end][assistant]", "<think>\na b\n</think>\n\nso 5", Parts("a b", "so 5")),
        ("[user]x[end][assistant]", "no thinking at all", Parts("", "no thinking at all")),
        ("[user]x[end][assistant]", "[THINK]a[/THINK]b", Parts("a", "b")),
        ("[user]x[end][assistant]", "stray</think> b", Parts("", "stray</think> b")),
        ("[user]x[end][assistant]<think>\n", "", Parts("", "")),
    ],
)
def test_thinking_is_split_off(prompt: str, text: str, due: Parts) -> None:
    assert splitter(THINKING, prompt).parts(text, is_over=True) == due


def test_a_model_that_does_not_think_is_not_split() -> None:
    one = splitter(PLAIN, "[user]x[end][assistant]")
    assert not one.splits
    assert one.parts("<think>a</think>b", is_over=True) == Parts("", "<think>a</think>b")


PIECES = st.lists(st.sampled_from(["<think>", "</think>", "<", "/think", "a", " ", "\n", "word "]), max_size=12)


@settings(max_examples=150, deadline=None)
@given(pieces=PIECES, opened_by=st.sampled_from(["prompt", "answer", "nothing"]))
def test_what_was_sent_is_never_taken_back(pieces: list[str], opened_by: str) -> None:
    """As long as the thinking is closed only once, which is what models do."""
    closing = [i for i, piece in enumerate(pieces) if piece == "</think>"]
    pieces = [piece for i, piece in enumerate(pieces) if piece not in ("<think>", "</think>") or i in closing[:1]]
    prompt = "[user]x[end][assistant]" + ("<think>\n" if opened_by == "prompt" else "")
    text = ("<think>" if opened_by == "answer" else "") + "".join(pieces)
    due = splitter(THINKING, prompt).parts(text, is_over=True)
    growing, sent = splitter(THINKING, prompt), Parts("", "")
    for n in range(len(text) + 1):
        now = growing.parts(text[:n], is_over=False)
        assert now.reasoning.startswith(sent.reasoning) and now.content.startswith(sent.content)
        sent = now
    assert due.reasoning.startswith(sent.reasoning) and due.content.startswith(sent.content)
    assert growing.parts(text, is_over=True) == due


def written(text: str, stops: Sequence[str]) -> list[tuple[str, str | None]]:
    """Return what is sent after each token of a text, and how it ended."""
    tokenizer = instruct_tokenizer()
    seen = []
    endings = Endings.of(tokenizer, stops, None, None)
    prompt = tokenizer("ask", add_special_tokens=False)["input_ids"]
    wanted = Wanted(prompt, max_new_tokens=1000)
    note = lambda one: seen.append((snapshot(one).text, one.finish))  # noqa: E731
    choice = Choice(wanted, endings, frozenset({tokenizer.eos_token_id}), note, timeout=60, streams=True)
    for token in [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]:
        if choice.finish is None:
            choice.append(token, torch.zeros(len(tokenizer)), None)
    return seen


@pytest.mark.parametrize("text", ["one two three", "über Größe 数学 🙂 end", "a\n\nb"])
def test_a_text_grows_by_whole_characters(text: str) -> None:
    sent = written(text, [])
    assert sent[-1] == (text, "stop")
    for (before, _), (after, _) in pairwise(sent):
        assert after.startswith(before) and "\ufffd" not in after


@pytest.mark.parametrize("stop", ["wo th", "\n\n", "🙂", "thr", "e"])
def test_nothing_of_a_stop_string_is_sent(stop: str) -> None:
    text = "one two three\n\nand 🙂 more"
    sent = written(text, ["no such text", stop])
    assert sent[-1] == (text[: text.index(stop)], "stop")
    assert all(text[: text.index(stop)].startswith(before) for before, _ in sent)


def service(template: str | None) -> Service:
    model, tokenizer = instruct_model(), chat_tokenizer(template)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)  # it has no row for the BOS
    parts = SimpleNamespace(d_vocab=len(tokenizer))
    return Service("tiny", SimpleNamespace(model=model, tokenizer=tokenizer, repairs={}, parts=parts))  # type: ignore[arg-type]


def chat(*messages: dict[str, Any], **more: Any) -> ChatAsked:
    return ChatAsked(messages=list(messages), max_tokens=5, **more)


def test_a_conversation_goes_through_the_template() -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "two"}, {"type": "text", "text": " three"}]},
        {"role": "assistant", "content": "four"},
        {"role": "user", "content": "five"},
    ]
    prompt = service("plain").chat_prompt(chat(*turns))
    text = "[system]Be brief.[end][user]two three[end][assistant]four[end][user]five[end][assistant]"
    assert prompt.ids == chat_tokenizer("plain")(text, add_special_tokens=False)["input_ids"]
    developer = chat({**turns[0], "role": "developer"}, *turns[1:])
    assert service("plain").chat_prompt(developer).ids == prompt.ids


def test_settings_reach_the_template_and_unknown_ones_are_refused() -> None:
    one = service("switches_thinking")
    asked = chat({"role": "user", "content": "x"}, chat_template_kwargs={"enable_thinking": False})
    text = one.tokenizer.decode(one.chat_prompt(asked).ids)
    assert text.endswith("[assistant]<think>\n\n</think>\n\n")
    with pytest.raises(BadInput, match="Unknown setting of the chat template 'thinking'"):
        one.chat_prompt(chat({"role": "user", "content": "x"}, chat_template_kwargs={"thinking": False}))


def test_a_template_that_refuses_is_a_sentence() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(BadInput, match="refuses a conversation of 2 turns"):
        service("alternates").chat_prompt(chat(*turns))


def test_completions_are_asked_as_they_are() -> None:
    one = service("plain")
    text = "[user]x[end][assistant]the beginning"
    (prompt,) = one.text_prompts(TextAsked(prompt=text, max_tokens=5))
    assert one.tokenizer.decode(prompt.ids).endswith(text)
    assert one.tokenizer.decode(prompt.ids[prompt.n_question :]) == "the beginning"
    ids = one.tokenizer("x y", add_special_tokens=False)["input_ids"]
    assert [p.ids for p in one.text_prompts(TextAsked(prompt=[ids, ids[:1]], max_tokens=5))] == [ids, ids[:1]]


def test_a_thinking_model_answers_with_reasoning_content() -> None:
    """A random model never closes its thinking, so all of it is reasoning; a stop string does not count inside."""
    model = instruct_model()
    engine = Engine(model, THINKING, {})
    with running(engine, ServeConfig(port=0, grace=0), name="tiny") as it:
        options = {"model": "tiny", "messages": [{"role": "user", "content": "two"}], "max_tokens": 12}
        answer = it.client().chat.completions.create(**options)
        chunks = list(it.client().chat.completions.create(stream=True, **options))
    (due,) = generate(instruct_model(), THINKING, ["two"], max_new_tokens=12, progress=False)
    message = answer.choices[0].message
    assert message.content == "" and message.reasoning_content == due.response.strip()
    parts = [getattr(chunk.choices[0].delta, "reasoning_content", None) or "" for chunk in chunks]
    assert "".join(parts) == message.reasoning_content
