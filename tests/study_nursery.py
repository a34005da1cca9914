"""Runs small diagnoses in forked processes, and kills them with SIGKILL after some time.

PyTorch and the model are loaded once. Standard input names runs, "<seconds> <folder>" a line; the answer to each is
"killed", or "ended" if it was finished before.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from chainwright.studies.diagnosis.run import DiagnoseConfig, run_diagnosis

CONFIG = DiagnoseConfig(
    model="reasoner", hops={"clf": (13, 2), "parity": (13, 14)}, n=6, n_contexts=2, min_errors=2, max_types=2
)
SMALL = DiagnoseConfig(
    model="reasoner", hops={"clf": (2, 13), "moas": (3,)}, n=4, n_contexts=2, min_errors=1, max_types=1,
    temperature=0.7,
)  # fmt: skip


def environment() -> dict[str, str]:
    """Return the environment in which this file runs as a script."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


def _main() -> None:
    import torch

    from chainwright.models.load import load_model

    torch.set_num_threads(1)
    model, tokenizer = load_model("reasoner", device="cpu")
    print("ready", flush=True)
    for line in sys.stdin:
        seconds, _, folder = line.strip().partition(" ")
        child = os.fork()
        if child == 0:
            run_diagnosis(model, tokenizer, SMALL, Path(folder), progress=False)
            os._exit(0)
        print("killed" if _killed(child, float(seconds)) else "ended", flush=True)


def _killed(child: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, status
            return False
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    _main()
