"""The parent's side of `_math_worker`: one process, started when it is needed, killed at a time limit, and restarted.

It works from any thread (one request at a time), sets no signal handler here, and leaves no process behind: the worker
ends when its input is closed, which the system does when this process ends in whatever way.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from queue import Empty, Queue
from typing import NamedTuple

from chainwright._errors import BadInput

_SECONDS_TO_START = 120.0


class Comparison(NamedTuple):
    """What the worker says: whether each side can be read as mathematics, and whether they are equal."""

    gold_is_read: bool
    got_is_read: bool
    is_equal: bool


class TooSlow(Exception):
    """A comparison took more than its time, and its process was ended."""


class Worker:
    """A process that compares formulas.

    Args:
        seconds: How long one comparison may take.
    """

    def __init__(self, seconds: float = 5.0):
        self.seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._replies: Queue[str] = Queue()
        self._owner = 0

    def compare(self, gold: str, got: str | None) -> Comparison:
        """Return how two formulas compare; with `got` None only whether the first can be read.

        Raises:
            TooSlow: It takes too long.
            BadInput: The library is missing.
        """
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps([2 * self.seconds, gold, got]) + "\n")
                process.stdin.flush()
                reply = json.loads(self._replies.get(timeout=self.seconds))
            except (Empty, OSError, ValueError) as error:
                self._end()
                raise TooSlow from error
            return Comparison(*reply)

    def close(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            self._end()

    def _running(self) -> subprocess.Popen[str]:
        """Return the process of this one, started if it is not there; a fork does not share its parent's."""
        if self._owner != os.getpid():
            self._process = None
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._process, self._replies, self._owner = _start(), Queue(), os.getpid()
            threading.Thread(target=_pass_on, args=(self._process, self._replies), daemon=True).start()
            atexit.unregister(self.close)
            atexit.register(self.close)
            try:
                is_ready = json.loads(self._replies.get(timeout=_SECONDS_TO_START)) == "ready"
            except (Empty, ValueError):
                is_ready = False
            if not is_ready:
                self._end()
                raise BadInput(
                    "The process that compares formulas for the checker 'math' does not start; install its library "
                    'again with pip install "chainwright[math]".'
                )
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _start() -> subprocess.Popen[str]:
    # -P: the modules beside the script must not hide those of the library (number, exact, ...)
    command = [sys.executable, "-P", str(Path(__file__).with_name("_math_worker.py"))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONIOENCODING": "utf-8"}
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        encoding="utf-8",
        start_new_session=True,  # Ctrl-C is for this program, which ends the worker itself
    )


def _pass_on(process: subprocess.Popen[str], replies: Queue[str]) -> None:
    """Put every line of the worker into a queue, and an empty one when it has ended."""
    assert process.stdout is not None
    try:
        for line in process.stdout:
            replies.put(line)
    except ValueError:  # the pipe was closed
        pass
    replies.put("")
