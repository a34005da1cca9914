"""Requests that cannot be answered: each gets a 4xx with a sentence, as OpenAI's clients read errors."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from chainwright.integrations.server.config import ServeConfig
from serving import Running, running

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
GOOD = {CHAT: {"messages": [{"role": "user", "content": "parity"}]}, TEXT: {"prompt": "parity"}}
_WRONG: dict[str, tuple[Any, ...]] = {
    "n": (0, -1, 1.5, "2", 129, [], True, {}, 2),  # 2 answers of greedy decoding are one
    "temperature": (-1, "hot", [1], True, 101, {}),
    "top_p": (0, 1.1, -0.5, "all", [], 0.5),  # with temperature 0
    "top_k": (-2, "5", 1.5, [], 5),
    "min_p": (2, -1, "x", 0.5),
    "repetition_penalty": (0, -1, "x"),
    "seed": ("one", 1.5, 2**70, -(2**70), [], True),
    "stop": ("", [""], 5, [1], {}, "<think>"),
    "stream": ("yes", 1, []),
    "stream_options": ("yes", {"include_usage": 1}, {"other": True}),
    "max_tokens": (-1, "5", 1.5, 10**6, [], True),
    "model": ("gpt-4", "reasoner+none", "reasoner+tcr+lora", "reasoner+tcr+tcr", 5, []),
    "repair": ("none", ["tcr", "lora"], 5, ["tcr", "tcr"], {}),
    "repair_report": ("yes", 1),
    "frequency_penalty": (0.5, "x"),
    "presence_penalty": (-1,),
    "logit_bias": ({"5": 1}, []),
    "best_of": (2,),
    "tools": ([{"type": "function"}],),
    "response_format": ({"type": "json_object"},),
    "suffix": ("end",),
    "temprature": (1,),
    "unknown": (None, 1),
}
_WRONG_CHAT: dict[str, tuple[Any, ...]] = {
    "messages": (
        None,
        [],
        "hello",
        {},
        [{}],
        ["hello"],
        [5],
        [{"role": "user"}],
        [{"content": "x"}],
        [{"role": "user", "content": ""}],
        [{"role": "user", "content": "  "}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": []}],
        [{"role": "user", "content": [{"type": "image_url"}]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "wizard", "content": "x"}],
        [{"role": "assistant", "content": "x"}],
        [{"role": "system", "content": "x"}],
        [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
        [{"role": "user", "content": "x", "tool_calls": []}],
        [{"role": "user", "content": "x y " * 2000}],
        [{"role": "user", "content": "\ud800"}],
    ),
    "logprobs": (1, "yes"),
    "top_logprobs": (-1, 21, "3", 2),  # without logprobs
    "max_completion_tokens": (0, -1, "x", 10**6),
    "chat_template_kwargs": ({"enable_thinking": True}, [], 5),
    "prompt": ("x",),
    "echo": (True,),
}
_WRONG_TEXT: dict[str, tuple[Any, ...]] = {
    "prompt": (
        None, "", "  ", [], [""], [[]], [[1], "x"], 5, {}, [-1], [10**9], [[10**9]], [1.5], "x y " * 2000, "\udcff",
        ["parity", ""], [True], [None],
    ),
    "logprobs": (-1, 21, "3", True, 1.5),
    "echo": ("yes", 1),
    "response_start": (0, -1, "x", 1.5, 3),  # without echo
    "messages": ([],),
    "max_tokens": (0,),
}  # fmt: skip
_RAW = (
    b"", b"{", b"null", b"[]", b"5", b'"text"', b"\xff\xfe", b"{'prompt': 1}", b'{"prompt": "x",}', b"{}",
    b'{"prompt": NaN}', b'{"prompt": "x", "temperature": Infinity}', b'{"prompt": "x", "temperature": 1e999}',
    b"[" * 100_000, b'{"a":' * 50_000, b'{"prompt": "\\ud800"}', b"prompt=x", b"<xml/>", b'{"prompt" "x"}', b"\x00",
)  # fmt: skip


def _bodies() -> Iterator[tuple[str, bytes]]:
    own = {CHAT: _WRONG_CHAT, TEXT: _WRONG_TEXT}
    for path, good in GOOD.items():
        for field, values in [*_WRONG.items(), *own[path].items()]:
            for value in values:
                yield path, json.dumps({**good, field: value}).encode()
        yield from ((path, raw) for raw in _RAW)


def _post(server: Running, path: str, body: bytes, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("POST", path, body, {"Content-Type": "application/json", **headers})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def test_200_malformed_bodies_get_a_sentence(server: Running) -> None:
    bodies = list(_bodies())
    assert len(bodies) >= 200
    for path, body in bodies:
        status, answer = _post(server, path, body)
        assert 400 <= status < 500, (body[:200], answer)
        message = answer["error"]["message"]
        assert message.endswith((".", "?")) and " " in message and len(message) < 2000, message
        assert answer["error"]["type"] in ("invalid_request_error", "not_found_error"), answer
    assert server.engine.load.n_rows == server.engine.load.n_waiting == 0
    assert server.client().completions.create(model="reasoner", prompt="parity", max_tokens=1).choices


@pytest.mark.parametrize(
    ("error", "fields", "words"),
    [
        (openai.NotFoundError, {"model": "gpt-4"}, "The model 'gpt-4' is not served here; served: reasoner, reasoner"),
        (openai.NotFoundError, {"model": "reasoner+mine"}, "no repair 'mine' here; served: tcr, lora, flow, dola"),
        (openai.BadRequestError, {"model": "reasoner+tcr+dola"}, "both decide single tokens"),
        (openai.BadRequestError, {"max_tokens": 1536}, "positions for 1536 in all"),
        (openai.BadRequestError, {"temperature": -1}, "temperature must be a number from 0"),
        (openai.BadRequestError, {"extra_body": {"temprature": 1}}, "Did you mean 'temperature'?"),
        (openai.BadRequestError, {"prompt": "x y " * 2000}, "the model has positions for 1536"),
        (openai.BadRequestError, {"n": 2}, "set a temperature"),
        (
            openai.BadRequestError,
            {"model": "reasoner+flow", "echo": True, "logprobs": 1},
            "say with response_start how many tokens",
        ),
        (
            openai.BadRequestError,
            {"model": "reasoner+tcr", "extra_body": {"repetition_penalty": 1.2}},
            "leave repetition_penalty out",
        ),
    ],
)
def test_the_official_client_raises_with_the_sentence(
    server: Running, error: type[Exception], fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(error, match=words.replace("(", r"\(").replace("?", r"\?")):
        server.client().completions.create(**{"model": "reasoner", "prompt": "parity", **fields})


def test_paths_and_methods_that_there_are_not(server: Running) -> None:
    for method, path, status in (("GET", CHAT, 405), ("POST", "/v1/embeddings", 404), ("GET", "/", 404)):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        connection.request(method, path)
        response = connection.getresponse()
        assert response.status == status
        assert f"There is no {method} {path} here" in json.loads(response.read())["error"]["message"]


def test_a_key_a_length_and_a_queue() -> None:
    config = ServeConfig(port=0, api_key="secret", max_body=500, max_new_tokens=20, max_batch=1, max_waiting=2, grace=0)
    with running(config=config) as it:
        for key in ("wrong", "secret2", "secre"):
            with pytest.raises(openai.AuthenticationError, match="needs its key as a bearer token"):
                it.client(key).models.list()
        client = it.client("secret")
        assert client.models.list().data
        with pytest.raises(openai.APIStatusError, match="more than 500 bytes") as caught:
            client.completions.create(model="reasoner", prompt="x " * 400)
        assert caught.value.status_code == 413
        with pytest.raises(openai.BadRequestError, match="this server writes at most 20"):
            client.completions.create(model="reasoner", prompt="x", max_tokens=21)
        with pytest.raises(openai.RateLimitError, match="Too many requests are waiting"):
            client.completions.create(model="reasoner", prompt="x", n=8, temperature=1.0)
        assert client.completions.create(model="reasoner", prompt="x").usage.completion_tokens <= 20
        assert client.completions.create(model="reasoner", prompt="x", n=2, temperature=1.0, max_tokens=2).choices


def test_a_request_that_takes_too_long_ends_with_an_error() -> None:
    with running(config=ServeConfig(port=0, timeout=0.05, grace=0)) as it:
        with pytest.raises(openai.InternalServerError, match="not answered within the time limit") as caught:
            it.client().completions.create(model="reasoner", prompt="start start", max_tokens=1500)
        assert caught.value.status_code == 504
        it.wait_until_idle()


def test_a_client_that_sends_half_a_request_holds_nobody_up(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as half:
        half.sendall(f"POST {TEXT} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode())
        assert server.client().completions.create(model="reasoner", prompt="parity", max_tokens=1).choices
    server.wait_until_idle()


def test_a_prompt_that_is_too_long_has_the_code_that_clients_look_for(server: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="the model has positions for") as caught:
        server.client().completions.create(model="reasoner", prompt="src/ " * 2000, max_tokens=1)
    assert caught.value.code == "context_length_exceeded"
