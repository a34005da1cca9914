"""Ask a running vLLM server the same problems plainly and with a repair, in one go, and count right chains.

Usage: python packages/chainwright-vllm/examples/ask.py http://localhost:8000 tcr-reasoner
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.request import Request, urlopen

from chainwright import tasks

N_PROBLEMS = 40


def ask(server: str, prompt: str, repair: str | None) -> str:
    """Return the response to a prompt."""
    body: dict[str, Any] = {"model": "reasoner", "prompt": prompt, "max_tokens": 300, "temperature": 0}
    if repair is not None:
        body["vllm_xargs"] = {"chainwright": {"repair": repair}}
    headers = {"Content-Type": "application/json"}
    with urlopen(Request(f"{server}/v1/completions", json.dumps(body).encode(), headers)) as answer:
        text: str = json.load(answer)["choices"][0]["text"]
    return text


def main(server: str, repair: str) -> None:
    """Print how many chains are free of errors without and with the repair."""
    problems = tasks.sample("clf", 13, N_PROBLEMS, seed=1)
    with ThreadPoolExecutor(32) as pool:
        started = time.perf_counter()
        both = [[pool.submit(ask, server, p.prompt, name) for p in problems] for name in (None, repair)]
        right = [sum(p.first_error(r.result()) is None for p, r in zip(problems, some, strict=True)) for some in both]
        seconds = time.perf_counter() - started
    print(
        f"alone: {right[0]} of {N_PROBLEMS} chains right; with {repair}: {right[1]} of {N_PROBLEMS} ({seconds:.0f} s)"
    )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("Usage: python ask.py SERVER REPAIR")
    main(*sys.argv[1:])
