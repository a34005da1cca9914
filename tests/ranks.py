"""Functions run in several processes that are one torch.distributed group, as by torchrun: gloo on the CPU."""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

_SECONDS = 300


def run_ranks(function: str, *args: Any, n_ranks: int = 2, on_gpus: bool = False) -> list[Any]:
    """Return what "module:function" returns in each rank, as JSON; a rank that fails fails the test.

    The ranks are processes of their own, so the module has to be importable from `tests`. With `on_gpus` each has one.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = str(Path(__file__).parent)
    common = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(n_ranks),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": os.pathsep.join([here, *sys.path]),
        **({} if on_gpus else {"CUDA_VISIBLE_DEVICES": ""}),
    }
    command = [sys.executable, __file__, function, json.dumps(args)]
    ranks = [
        subprocess.Popen(
            command,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(n_ranks)
    ]
    try:
        outputs = [rank.communicate(timeout=_SECONDS) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    ends = zip(ranks, outputs, strict=True)
    errors = [f"rank {i} left with {rank.returncode}:\n{err[-6000:]}" for i, (rank, (_, err)) in enumerate(ends)]
    assert not any(rank.returncode for rank in ranks), "\n".join(errors)
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


def _main() -> None:
    name, args = sys.argv[1:]
    module, _, function = name.partition(":")
    try:
        result = getattr(importlib.import_module(module), function)(*json.loads(args))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # the other ranks may hang in a collective; the parent ends them
    print(json.dumps(result), flush=True)
    os._exit(0)  # gloo's threads may still run


if __name__ == "__main__":
    _main()
