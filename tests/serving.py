"""A server of the bundled reasoner in a thread of this process, with four repairs, and what its answers should be."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from random import Random
from typing import Any

from openai import AsyncOpenAI, OpenAI

from chainwright import generate, load_model, tasks
from chainwright.decode.sampling import Sampling
from chainwright.integrations.server.app import Server, listen
from chainwright.integrations.server.asking import Service
from chainwright.integrations.server.config import ServeConfig
from chainwright.integrations.server.engine import Engine
from chainwright.repair import DoLa, Repair, StepFlow
from chainwright.traces import Trace

COMBINATIONS = ("", "tcr", "lora", "flow", "dola", "flow+tcr")
N_NEW = 40


@cache
def loaded() -> Any:
    return load_model("reasoner")


@cache
def repairs() -> dict[str, Repair]:
    model, tokenizer = loaded()
    return {
        "tcr": Repair.from_pretrained("tcr-reasoner"),
        "lora": Repair.from_pretrained("tcr-reasoner-lora"),
        # both parts, so strongly that the text changes
        "flow": StepFlow((2,), (1, 3), 0.5, 0.8, tokenizer=tokenizer),
        "dola": DoLa(model.config.num_hidden_layers, end_ids=[tokenizer.eos_token_id]),
    }


def parts_of(combination: str) -> list[str]:
    return [name for name in combination.split("+") if name]


def prompts(n: int, seed: int = 5) -> list[str]:
    """Return prompts of different lengths: problems, and every other one with its words mixed up, which is doubtful."""
    hops = (2, 5, 9)
    asked = []
    for i in range(n):
        words = tasks.sample(("parity", "llc")[i // 2 % 2], hops[i % 3], 1, seed=seed + i)[0].prompt
        asked.append(words if i % 2 else " ".join(Random(i).sample(words.split(), len(words.split()))))
    return asked


def model_name(combination: str) -> str:
    return "+".join(["reasoner", *parts_of(combination)])


def expected(
    asked: Sequence[str], combination: str, *, sampling: Sampling | None = None, seed: int = 0, n: int = 1
) -> list[Trace]:
    """Return the traces that `generate` writes, in a batch that nothing enters or leaves.

    The model is one that no server uses: a model belongs to one thread.
    """
    model, tokenizer = _another()
    chosen = [_own_repairs()[name] for name in parts_of(combination)]
    options: dict[str, Any] = {"sampling": sampling, "seed": seed, "n_samples": n, "max_new_tokens": N_NEW}
    return generate(model, tokenizer, list(asked), repair=chosen, raw=True, progress=False, **options)


@cache
def _another() -> Any:
    return load_model("reasoner")


@cache
def _own_repairs() -> dict[str, Repair]:
    import copy

    return {name: copy.copy(repair) for name, repair in repairs().items()}


class Running:
    """A server that runs.

    Attributes:
        engine: Its engine.
        port: Where it listens.
        server: The server.
    """

    def __init__(self, engine: Engine, config: ServeConfig, name: str = "reasoner"):
        self.engine, self.config = engine, config
        self.socket = listen(config)
        self.port = self.socket.getsockname()[1]
        self.server = Server(Service(name, engine, config.max_new_tokens), config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, key: str = "none", **options: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, **options)

    def async_client(self, key: str = "none") -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=600)

    def wait_until_idle(self, seconds: float = 10.0) -> None:
        """Wait until no row is left: a row leaves at the token boundary after its end."""
        until = time.monotonic() + seconds
        while self.engine.load.n_rows or self.engine.load.n_waiting:
            assert time.monotonic() < until, self.engine.load
            time.sleep(0.01)


@contextmanager
def running(
    engine: Engine | None = None, config: ServeConfig | None = None, name: str = "reasoner"
) -> Iterator[Running]:
    """Run a server inside the block; one without an engine gets one of the reasoner with the four repairs."""
    config = config or ServeConfig(port=0, grace=0.0)
    model, tokenizer = loaded()
    engine = engine or Engine(
        model, tokenizer, repairs(), max_batch=config.max_batch, max_waiting=config.max_waiting, timeout=config.timeout
    )
    it = Running(engine, config, name)
    it.thread.start()
    until = time.monotonic() + 20
    while not it.server.started:
        assert time.monotonic() < until
        time.sleep(0.01)
    try:
        yield it
    finally:
        it.server.should_exit = True
        it.thread.join(20)
        it.socket.close()
        assert not it.thread.is_alive()
