"""Many requests at once, with all repairs and none, some of which are cancelled: each text is the one it has alone."""

from __future__ import annotations

import asyncio
import gc
import resource
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import pytest

from chainwright.decode.sampling import Sampling
from serving import COMBINATIONS, N_NEW, Running, expected, model_name, prompts, running


@dataclass(frozen=True)
class Request:
    """A request, and when its client leaves, in seconds after it was sent; None stays."""

    prompt: str
    combination: str
    temperature: float
    seed: int
    streams: bool
    leaves: float | None


def requests(n: int, n_prompts: int, random: Random) -> list[Request]:
    asked = prompts(n_prompts)
    made = []
    for i in range(n):
        is_sampled = i % 7 == 0
        leaves = random.uniform(0, 1.5) if random.random() < 0.2 else None
        combination = COMBINATIONS[i % len(COMBINATIONS)]
        made.append(
            Request(asked[i % n_prompts], combination, 1.2 if is_sampled else 0.0, i % 2, random.random() < 0.3, leaves)
        )
    return made


async def _send(client: Any, request: Request, delay: float) -> str | None:
    """Return the text, or None where the client left first."""
    await asyncio.sleep(delay)
    options = {"temperature": request.temperature, "seed": request.seed, "max_tokens": N_NEW}
    work = _text(client, request, options)
    if request.leaves is None:
        return await work
    try:
        return await asyncio.wait_for(work, request.leaves)
    except TimeoutError:
        return None


async def _text(client: Any, request: Request, options: dict[str, Any]) -> str:
    model = model_name(request.combination)
    if not request.streams:
        answer = await client.completions.create(model=model, prompt=request.prompt, **options)
        return str(answer.choices[0].text)
    text = ""
    stream = await client.completions.create(model=model, prompt=request.prompt, stream=True, **options)
    async with stream:
        async for chunk in stream:
            text += chunk.choices[0].text
    return text


def _all(server: Running, made: list[Request], random: Random, seconds: float) -> list[str | None]:
    async def run() -> list[str | None]:
        client = server.async_client()
        async with client:
            return await asyncio.gather(*(_send(client, one, random.uniform(0, seconds)) for one in made))

    return asyncio.run(run())


def _due(made: list[Request]) -> dict[Request, str]:
    """Return what each request writes alone, a batch of one that nothing enters or leaves."""
    due: dict[Request, str] = {}
    for one in {_alike(request) for request in made}:
        sampling = Sampling(temperature=one.temperature)
        (trace,) = expected([one.prompt], one.combination, sampling=sampling, seed=one.seed)
        due[one] = trace.response
    return due


def _alike(one: Request) -> Request:
    """Return the request whose text this one has: it does not depend on streams, nor on the seed where it is greedy."""
    return replace(one, streams=False, leaves=None, seed=one.seed if one.temperature else 0)


def _check(server: Running, made: list[Request], texts: list[str | None]) -> None:
    due = _due([one for one, text in zip(made, texts, strict=True) if text is not None])
    for one, text in zip(made, texts, strict=True):
        if text is not None:
            assert text == due[_alike(one)], one
    server.wait_until_idle()
    assert server.engine.load.n_failed == 0


def test_requests_that_come_and_go_together_have_the_texts_that_they_have_alone(server: Running) -> None:
    random = Random(0)
    made = requests(60, 4, random)
    before = server.engine.load.n_joined
    texts = _all(server, made, random, 0.5)
    assert sum(text is not None for text in texts) > 24
    assert server.engine.load.n_joined > before  # rows entered while others were being decoded
    _check(server, made, texts)


@pytest.mark.slow
def test_a_thousand_requests_with_a_fifth_cancelled_leave_no_row_and_no_memory() -> None:
    with running() as server:
        random = Random(1)
        warm = requests(200, 40, random)
        _all(server, warm, random, 5)
        server.wait_until_idle()
        gc.collect()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        made = requests(1000, 40, random)
        texts = _batches(server, made, random)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        n_left = sum(text is None for text in texts)
        assert n_left > 100
        _check(server, made, texts)
        assert not [
            lane for lane in server.engine._lanes.values() if lane.rows or lane.coming or lane._cache is not None
        ]
        assert after - before < 50_000, f"{before} -> {after} kB"


def _batches(server: Running, made: list[Request], random: Random) -> list[str | None]:
    """Send the requests in waves that fit into the queue."""
    texts: list[str | None] = []
    for start in range(0, len(made), 200):
        texts += _all(server, made[start : start + 200], random, 3)
    return texts
