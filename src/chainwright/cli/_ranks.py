"""Commands in several processes that share one model (`--tp N`).

1. The command that was typed starts itself once for each rank, with the variables of torchrun, and waits.
2. Every rank runs the whole command, since a model that is spread over ranks needs all of them in each pass. Rank 0
   prints and writes; the others print nothing, and write to copies of the outputs, made before the start so that an
   interrupted run is resumed by all of them alike.
3. The first rank that fails ends all of them, and what it said is printed once. Ctrl-C is passed to rank 0, which says
   what is saved.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import IO, NoReturn

import typer

from chainwright._errors import BadInput
from chainwright.cli._command import ASKED
from chainwright.cli._shared import err, plain

_PARENT, _COPIES, _FOLDER = "CHAINWRIGHT_RANKS_OF", "CHAINWRIGHT_COPIES", "CHAINWRIGHT_RANK_FOLDER"
_LOST = 75  # the exit code of a rank that another one left alone
_PATIENCE = 10.0  # seconds that rank 0 has to say what went wrong, or what is saved
_GRACE = 5.0  # seconds that a rank has to end after it was told to


def in_ranks(n: int | None, *outputs: Path | None) -> tuple[Path | None, ...]:
    """Return where this rank writes; outside of the ranks, run the command in `n` of them and leave with its exit code.

    Args:
        n: How many ranks; None or 1 runs the command in this process.
        *outputs: Files and folders that the command writes.

    Raises:
        BadInput: `n` is below 1, or the command was started by torchrun.
    """
    if n is None or n == 1:
        return outputs
    if _PARENT in os.environ:
        return _as_rank(outputs)
    if n < 1:
        raise BadInput(f"--tp must be at least 1 (the number of ranks that share the model); got {n}.")
    if "RANK" in os.environ:
        raise BadInput("--tp N starts the ranks itself; start the command without torchrun.")
    raise typer.Exit(_run(n, outputs))


def _as_rank(outputs: Sequence[Path | None]) -> tuple[Path | None, ...]:
    """Prepare this process as a rank, and return where it writes."""
    threading.Thread(target=_end_with, args=(int(os.environ[_PARENT]),), daemon=True).start()
    sys.excepthook = _fail_quietly
    copies = os.environ.get(_COPIES)
    if copies is None:
        return tuple(outputs)
    return tuple(None if path is None else _copy_of(path, Path(copies), i) for i, path in enumerate(outputs))


def _copy_of(path: Path, copies: Path, i: int) -> Path:
    return copies / str(i) / path.name


def _end_with(parent: int) -> None:
    """End this process when its parent is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _fail_quietly(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error as usual, unless it may only say that another rank is gone: that one has said why."""
    said = str(error)
    if isinstance(error, RuntimeError) and any(word in said for word in ("Connection closed", "gloo", "NCCL", "peer")):
        Path(os.environ[_FOLDER], "lost").write_text(said, encoding="utf-8")
        os._exit(_LOST)
    sys.__excepthook__(kind, error, trace)


@dataclass
class _Rank:
    """A rank's process, its folder, and the file with what it wrote to its error stream; rank 0 has the terminal."""

    process: subprocess.Popen[bytes]
    folder: Path
    said: IO[bytes] | None = None

    @property
    def code(self) -> int | None:
        """Return its exit code, or None as long as it runs."""
        return self.process.poll()


def _run(n: int, outputs: Sequence[Path | None]) -> int:
    with TemporaryDirectory(prefix="chainwright-ranks-") as folder:
        ranks: list[_Rank] = []
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(n)}
        common |= {"LOCAL_WORLD_SIZE": str(n), _PARENT: str(os.getpid())}
        # as many threads in all as one process would use
        common.setdefault("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // n))))
        try:
            for rank in range(n):
                ranks.append(_started(rank, Path(folder) / str(rank), outputs, common))
            return _watched(ranks)
        except KeyboardInterrupt:
            ranks[0].process.send_signal(signal.SIGINT)
            if _code_within(ranks[0], _PATIENCE) == 130:
                return 130
            raise
        finally:
            _end(ranks)


def _started(rank: int, folder: Path, outputs: Sequence[Path | None], common: dict[str, str]) -> _Rank:
    folder.mkdir()
    own = {**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank), _FOLDER: str(folder)}
    command = [sys.executable, "-m", "chainwright", *ASKED.get()]
    # in a session of its own, so that Ctrl-C reaches this process alone, which knows what is to be said
    if rank == 0:
        return _Rank(subprocess.Popen(command, env=own, start_new_session=True), folder)
    _copy(outputs, folder)
    said = (folder / "said").open("w+b")
    process = subprocess.Popen(
        command, env={**own, _COPIES: str(folder)}, start_new_session=True, stdout=subprocess.DEVNULL, stderr=said
    )
    return _Rank(process, folder, said)


def _copy(outputs: Sequence[Path | None], folder: Path) -> None:
    """Copy what an earlier run left at the outputs, and beside them (`NAME.parts`)."""
    for i, path in enumerate(outputs):
        if path is None:
            continue
        into = _copy_of(path, folder, i).parent
        into.mkdir()
        for old in (path, path.with_name(f"{path.name}.parts")):
            if old.is_dir():
                shutil.copytree(old, into / old.name)
            elif old.exists():
                shutil.copy2(old, into / old.name)


def _watched(ranks: list[_Rank]) -> int:
    """Return the exit code when all ranks are done, or one has failed."""
    while True:
        codes = [rank.code for rank in ranks]
        if any(codes):
            return _failed(ranks)
        if codes == [0] * len(ranks):
            return 0
        time.sleep(0.05)


def _failed(ranks: list[_Rank]) -> int:
    """Say why a rank failed, unless rank 0 has said it, and return the exit code."""
    first = _culprit(ranks)
    if first != 0 and ranks[first].code == 2 and _code_within(ranks[0], _PATIENCE) == 2:
        first = 0  # all were asked for the same mistake, and rank 0 has named it
    code = ranks[first].code or 1
    if code == _LOST:
        _say_ended(first, code, (ranks[first].folder / "lost").read_text(encoding="utf-8"))
    elif first != 0:
        _say(ranks[first], first)
    elif code < 0:
        _say_ended(0, code)
    return code if 0 < code != _LOST else 1


def _culprit(ranks: list[_Rank]) -> int:
    """Return the rank that failed by itself; those that it left alone may be seen to end first."""
    until = time.monotonic() + _GRACE
    while True:
        failed = {i: rank.code for i, rank in enumerate(ranks) if rank.code}
        alone = [i for i, code in failed.items() if code != _LOST]
        if alone or time.monotonic() > until:
            return min(alone or failed)
        time.sleep(0.05)


def _say(rank: _Rank, number: int) -> None:
    assert rank.said is not None
    rank.said.seek(0)
    said = rank.said.read().decode(errors="replace").strip()
    if said:
        err.print(plain(said), highlight=False, soft_wrap=True)
    if rank.code != 2:
        _say_ended(number, rank.code or 1)


def _say_ended(number: int, code: int, why: str = "") -> None:
    if why:
        err.print(plain(why), highlight=False, soft_wrap=True)
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"left with exit code {code}"
    err.print(
        f"[bold red]error:[/] Rank {number} {how}, so all were ended. Finished work under --out is saved; run the "
        "same command again to resume.",
        highlight=False,
        soft_wrap=True,
    )


def _code_within(rank: _Rank, seconds: float) -> int | None:
    try:
        return rank.process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def _end(ranks: list[_Rank]) -> None:
    """End the ranks that still run."""
    for rank in ranks:
        if rank.code is None:
            rank.process.terminate()
    for rank in ranks:
        if _code_within(rank, _GRACE) is None:
            rank.process.kill()
            rank.process.wait()
        if rank.said is not None:
            rank.said.close()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def check_alone(tp: int | None) -> None:
    """Raise BadInput if a command that runs a model in one process was asked for ranks."""
    if tp is not None and tp != 1 and _PARENT not in os.environ:
        _refuse()


def _refuse() -> NoReturn:
    raise BadInput(
        "--tp is for generate, evaluate and diagnose; this command runs its model in one process, over several devices "
        "with --device-map auto."
    )
