"""The thread that decodes: it takes waiting answers into lanes, and lets the lanes take turns.

Answers that may share a batch are in one lane, which nearly all are. Where there are several lanes, each decodes
`_TURN` tokens before the next one does. Prompts whose log-probabilities are asked for are scored between turns.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from chainwright._errors import BadInput
from chainwright.decode.ending import Endings
from chainwright.decode.run import in_order
from chainwright.integrations.server.caches import new_cache
from chainwright.integrations.server.choice import Choice, Wanted
from chainwright.integrations.server.echo import Echo, read_echoes
from chainwright.integrations.server.lane import Lane, failure_of
from chainwright.models.anatomy import anatomy, evaluating
from chainwright.models.load import end_ids
from chainwright.models.sharding import is_sharded
from chainwright.repair.base import Repair

_TURN = 32


class Full(Exception):
    """Too many answers wait already."""


class Stopping(Exception):
    """The engine takes nothing more."""


@dataclass(frozen=True)
class Load:
    """How busy an engine is.

    Attributes:
        n_rows: Rows that are being decoded.
        n_waiting: Answers that wait for a row.
        n_steps: Passes of the model so far.
        n_joined: Rows that entered while others were being decoded.
        n_failed: Passes that raised.
    """

    n_rows: int
    n_waiting: int
    n_steps: int
    n_joined: int
    n_failed: int


class Engine:
    """Decodes and scores for any number of requests, in a thread of its own.

    Args:
        model: A Transformers decoder.
        tokenizer: Its tokenizer.
        repairs: The repairs that may be asked for, by name.
        max_batch: Rows that decode together.
        max_waiting: Answers that may wait.
        timeout: Seconds for an answer.

    Raises:
        BadInput: A repair was made for another model, or the model is spread over several processes.
        UnsupportedModel: The model's cache holds more than keys and values.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        repairs: dict[str, Repair],
        *,
        max_batch: int = 16,
        max_waiting: int = 256,
        timeout: float = 600.0,
    ):
        self.model, self.tokenizer, self.repairs = model, tokenizer, repairs
        self.parts = anatomy(model)
        if is_sharded(self.parts.model):
            raise BadInput(
                "This model is spread over several processes, and requests reach only one of them; serve it from one, "
                "over several devices with device_map='auto' (--device-map auto)."
            )
        new_cache(self.parts)
        for repair in repairs.values():
            repair.check_model(model)
        self.max_batch, self.max_waiting, self.timeout = max_batch, max_waiting, timeout
        self.end_ids = frozenset(end_ids(self.parts.model, tokenizer))
        self._lanes: dict[tuple[str, ...], Lane] = {}
        self._waiting: deque[Choice] = deque()
        self._echoes: deque[Echo] = deque()
        self._changed = threading.Condition()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._loop, name="chainwright-engine", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Return whether it still decodes."""
        return self._thread.is_alive()

    @property
    def load(self) -> Load:
        """Return how busy the engine is."""
        lanes = list(self._lanes.values())
        return Load(
            sum(lane.n_rows for lane in lanes),
            len(self._waiting) + len(self._echoes),
            sum(lane.n_steps for lane in lanes),
            sum(lane.n_joined for lane in lanes),
            sum(lane.n_failed for lane in lanes),
        )

    def together(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return names of repairs in the order in which they act.

        Raises:
            BadInput: One is named twice, or they cannot decode together.
        """
        if len(set(names)) < len(names):
            raise BadInput(f"A repair is named twice in {', '.join(names)}; name each once.")
        ordered = in_order([self.repairs[name] for name in names])
        return tuple(next(name for name in names if self.repairs[name] is repair) for repair in ordered)

    def submit(self, wanted: Sequence[Wanted], on_change: Callable[[Choice], None], *, streams: bool) -> list[Choice]:
        """Return answers that will be written.

        Args:
            wanted: What each of them is.
            on_change: Called in the engine's thread when one is over, and if `streams` at each of its tokens.
            streams: Whether each token is reported.

        Raises:
            Full: Too many wait already; none of these was taken.
            Stopping: The engine takes nothing more.
            BadInput: A stop string that cannot be looked for.
        """
        made = []
        for one in wanted:
            endings = Endings.of(self.tokenizer, one.sampling.stop, None, None)
            ends = self.end_ids | endings.end_ids
            made.append(Choice(one, endings, ends, on_change, timeout=self.timeout, streams=streams))
        with self._changed:
            self._check_room(len(made))
            self._waiting.extend(made)
            self._changed.notify()
        return made

    def read(self, echo: Echo) -> None:
        """Have a prompt's log-probabilities read; raises as `submit` does."""
        with self._changed:
            self._check_room(1)
            self._echoes.append(echo)
            self._changed.notify()

    def _check_room(self, n: int) -> None:
        if self._is_stopping:
            raise Stopping
        if len(self._waiting) + len(self._echoes) + n > self.max_waiting:
            raise Full

    def stop(self, grace: float = 0.0) -> None:
        """Take nothing more, let what is running finish for `grace` seconds, end what then remains, and return."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._thread.join(grace)
        for choice in self._unfinished():
            choice.is_given_up.set()
        self._thread.join()

    def _unfinished(self) -> list[Choice]:
        with self._changed:
            lanes = list(self._lanes.values())
            return [*self._waiting, *(choice for lane in lanes for choice in (*lane.coming, *lane.rows))]

    # in the engine's thread

    def _loop(self) -> None:
        with torch.no_grad(), evaluating(self.parts.model):
            while self._wait():
                self._take_in()
                for echoes in self._next_echoes():
                    read_echoes(self.model, self.tokenizer, self.repairs, echoes)
                for lane in list(self._lanes.values()):
                    if lane.n_rows:
                        self._turn(lane)

    def _wait(self) -> bool:
        """Wait until there is something to do; return whether there is."""
        with self._changed:
            while not (self._waiting or self._echoes or any(lane.n_rows for lane in self._lanes.values())):
                if self._is_stopping:
                    return False
                self._changed.wait()
        return True

    def _next_echoes(self) -> list[list[Echo]]:
        """Return waiting echoes in groups that go through one scoring."""
        groups: dict[tuple[str, ...], list[Echo]] = {}
        with self._changed:
            while self._echoes:
                echo = self._echoes.popleft()
                groups.setdefault(echo.repairs, []).append(echo)
        return list(groups.values())

    def _take_in(self) -> None:
        """Take waiting answers into lanes, as far as there is room, in the order in which they came."""
        with self._changed:
            n_rows = sum(lane.n_rows for lane in self._lanes.values())
            while self._waiting and n_rows < self.max_batch:
                choice = self._waiting.popleft()
                self._lane(choice.wanted.repairs).coming.append(choice)
                n_rows += 1
            waiting = list(self._waiting)
        for choice in waiting:
            choice.check_time()
        if any(choice.finish is not None for choice in waiting):
            with self._changed:
                self._waiting = deque(choice for choice in self._waiting if choice.finish is None)

    def _lane(self, names: tuple[str, ...]) -> Lane:
        """Return the lane of a combination of repairs: the shared one if all of them act by row."""
        shared = self._lanes.get(())
        if shared is None:
            by_row = {name: repair for name, repair in self.repairs.items() if repair.acts_by_row}
            ordered = sorted(by_row, key=lambda name: by_row[name].decides_tokens)  # edits first
            shared = self._lanes[()] = Lane(self.parts, {name: by_row[name] for name in ordered})
        if all(name in shared.repairs for name in names):
            return shared
        if names not in self._lanes:
            self._lanes[names] = Lane(self.parts, {name: self.repairs[name] for name in names})
        return self._lanes[names]

    def _turn(self, lane: Lane) -> None:
        """Decode in one lane until it is empty, or its turn is over and something else waits."""
        n = 0
        try:
            lane.resume()
            while lane.n_rows and (n < _TURN or lane.is_fixed or not self._others_wait(lane)):
                lane.advance()
                self._take_in()
                n += 1
        except Exception as error:  # no request may stop the thread that serves all of them
            lane.failed("a pass of %d rows failed", len(lane.rows))
            lane.clear(failure_of(error))
        finally:
            with suppress(Exception):
                lane.pause()

    def _others_wait(self, lane: Lane) -> bool:
        return bool(self._echoes) or any(other.n_rows for other in self._lanes.values() if other is not lane)
