"""What serving costs: 50 requests with four repairs and none, together and one by one, and beside `model.generate`.

    python benchmarks/server.py [-n 50] [--max-batch 16] [--turns 3]

The bundled reasoner is served in this process on one thread; the client, OpenAI's, runs in a process of its own.
Seconds are processor seconds of the server, web framework included, and the least of several turns that alternate:
what else runs on the machine only adds. Every text is compared with that of the same request alone.

1. Mixed: the same requests one by one, then all at once.
2. Plain: as many requests without a repair as fit into one batch, sent at once, beside one call of `model.generate`
   with the same prompts and the same limit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from chainwright import load_model, tasks
from chainwright.models.padding import left_pad
from chainwright.repair import DoLa, Repair, StepFlow

NAMES = ("", "+tcr-reasoner", "+tcr-reasoner-lora", "+stepflow", "+dola")


def mixed(n: int) -> list[dict[str, Any]]:
    """Return requests with every repair and none, of chains of different lengths."""
    out = []
    for i in range(n):
        (problem,) = tasks.sample(("parity", "llc", "mdm")[i % 3], (8, 6, 4)[i % 3], 1, seed=i)
        out.append({"model": "reasoner" + NAMES[i % len(NAMES)], "prompt": problem.prompt, "max_tokens": 200})
    return out


def plain(n: int, n_new: int) -> list[dict[str, Any]]:
    """Return requests without a repair whose answers all have `n_new` tokens."""
    prompts = [tasks.sample("parity", 40, 1, seed=i)[0].prompt for i in range(n)]
    return [{"model": "reasoner", "prompt": prompt, "max_tokens": n_new} for prompt in prompts]


def client(url: str) -> None:
    """Send the requests that stdin holds, and print the texts."""
    from openai import AsyncOpenAI

    asked = json.load(sys.stdin)

    async def run() -> list[str]:
        async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=3600) as api:
            one_by_one = asked["one_by_one"]
            works = [api.completions.create(**request) for request in asked["requests"]]
            answers = [await work for work in works] if one_by_one else await asyncio.gather(*works)
        return [answer.choices[0].text for answer in answers]

    print(json.dumps(asyncio.run(run())))


def sent(url: str, requests: list[dict[str, Any]], *, one_by_one: bool) -> list[str]:
    """Return the texts of requests that another process sends."""
    body = json.dumps({"requests": requests, "one_by_one": one_by_one})
    command = [sys.executable, __file__, "--client", url]
    done = subprocess.run(command, input=body, capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout))


def serve(max_batch: int) -> tuple[str, Callable[[], None], Any]:
    """Return the URL of a server in this process, what stops it, and its engine."""
    from chainwright.integrations.server.app import Server, listen
    from chainwright.integrations.server.asking import Service
    from chainwright.integrations.server.config import ServeConfig
    from chainwright.integrations.server.engine import Engine

    model, tokenizer = load_model("reasoner")
    repairs: dict[str, Repair] = {name: Repair.from_pretrained(name) for name in ("tcr-reasoner", "tcr-reasoner-lora")}
    repairs["stepflow"] = StepFlow((2,), (), 0.3, tokenizer=tokenizer)
    repairs["dola"] = DoLa(model.config.num_hidden_layers, end_ids=[tokenizer.eos_token_id])
    config = ServeConfig(port=0, max_batch=max_batch, grace=0)
    engine = Engine(model, tokenizer, repairs, max_batch=max_batch)
    listening = listen(config)
    server = Server(Service("reasoner", engine), config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.01)

    def stop() -> None:
        server.should_exit = True
        thread.join()

    return f"http://127.0.0.1:{listening.getsockname()[1]}/v1", stop, engine


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the processor seconds of this process that some work takes, and what it returns."""
    before = time.process_time()
    out = work()
    return time.process_time() - before, out


def generated(model: Any, tokenizer: Any, requests: list[dict[str, Any]]) -> list[str]:
    """Return what one call of `model.generate` writes."""
    rows = [tokenizer(request["prompt"])["input_ids"] for request in requests]
    ids, mask = left_pad(rows, 0, torch.device("cpu"))
    n_new = requests[0]["max_tokens"]
    with torch.no_grad():
        out = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=n_new, pad_token_id=0)
    return [tokenizer.decode(row, skip_special_tokens=True) for row in out[:, ids.shape[1] :]]


def table(n: int, max_batch: int, turns: int, n_new: int = 150) -> str:
    """Return the figures as text."""
    url, stop, engine = serve(max_batch)
    model, tokenizer = load_model("reasoner")
    requests, alike = mixed(n), plain(max_batch, n_new)
    least: dict[str, float] = {}
    texts: dict[str, list[str]] = {}
    ways: dict[str, Callable[[], list[str]]] = {
        "mixed, one by one": lambda: sent(url, requests, one_by_one=True),
        "mixed, together": lambda: sent(url, requests, one_by_one=False),
        "plain, served": lambda: sent(url, alike, one_by_one=False),
        "plain, model.generate": lambda: generated(model, tokenizer, alike),
    }
    try:
        for _ in range(turns):
            for name, work in ways.items():
                took, texts[name] = seconds(work)
                least[name] = min(took, least.get(name, took))
        n_joined = engine.load.n_joined
    finally:
        stop()
    same = [a == b for a, b in zip(texts["mixed, one by one"], texts["mixed, together"], strict=True)]
    same_plain = [a == b for a, b in zip(texts["plain, served"], texts["plain, model.generate"], strict=True)]
    lines = [f"{name:24}{took:8.2f} s" for name, took in least.items()]
    ratio = least["mixed, one by one"] / least["mixed, together"]
    beside = least["plain, served"] / least["plain, model.generate"]
    return "\n".join(
        [
            *lines,
            f"{n} mixed requests together: {ratio:.2f} times as fast as one by one; {sum(same)} of {n} texts equal",
            f"{max_batch} plain requests served: {beside:.2f} times model.generate; "
            f"{sum(same_plain)} of {max_batch} texts equal",
            f"{n_joined} rows entered while others were being decoded",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-n", type=int, default=50)
    parser.add_argument("--max-batch", type=int, default=16)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--client", metavar="URL", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.client:
        client(args.client)
    else:
        print(table(args.n, args.max_batch, args.turns))


if __name__ == "__main__":
    main()
