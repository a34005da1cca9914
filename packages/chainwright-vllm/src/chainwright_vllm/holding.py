"""The scheduler's side of a repair: flagged requests wait while runs without single heads are made.

A held request gives its blocks back, as a preempted one does, and is in no queue. Its runs are requests of one
token; they are scheduled like any other, find its prefix or their own from earlier flags in the prefix cache, and their
outputs are dropped here. When the last has finished, the request is put at the front of the queue. What the runs said
is known to the worker only (`doubts`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from chainwright_vllm.repairs import load
from chainwright_vllm.spec import RUN, Head, KnockOut, asked_repair

_LOST = "A run without a head, which Chainwright's repair waits for, failed; the request was ended."


class Holding:
    """The held requests of one scheduler.

    Attributes:
        n_flagged: Tokens that were flagged so far.
        n_changed: Tokens whose likeliest choice was changed.
        n_runs: Runs without a head that were started.
    """

    def __init__(self, scheduler: Any):
        self._scheduler = scheduler
        self._waiting: dict[str, tuple[Any, set[str]]] = {}  # held requests, and the runs that each waits for
        self._asked_by: dict[str, str] = {}  # runs, and who waits for them
        self.n_flagged = self.n_changed = self.n_runs = 0

    def hold(self, held: Mapping[str, tuple[Head, ...]]) -> None:
        """Let flagged requests wait for runs without these heads."""
        for req_id, heads in held.items():
            request = self._scheduler.requests.get(req_id)
            if request is None or request.is_finished():
                continue
            self._set_aside(request)
            self.n_flagged += 1
            runs = [self._run(request, k, head) for k, head in enumerate(heads)]
            self._waiting[req_id] = request, {run.request_id for run in runs}
            for run in reversed(runs):
                self._asked_by[run.request_id] = req_id
                self._scheduler.add_request(run)
                self._to_the_front(run)
            self.n_runs += len(runs)

    def take(self, outputs: Mapping[int, Any]) -> dict[str, str]:
        """Take the outputs of runs out of those of a step, and let requests go on whose runs are all done.

        Returns:
            The requests that have to end because a run failed, with a sentence.
        """
        lost = {}
        for outs in outputs.values():
            own = [output for output in outs.outputs if output.request_id in self._asked_by]
            if not own:
                continue
            outs.outputs = [output for output in outs.outputs if output.request_id not in self._asked_by]
            for output in own:
                if output.finish_reason is not None and (req_id := self._done(output)) is not None:
                    lost[req_id] = _LOST
        return lost

    def dropped(self, requests: Iterable[Any]) -> list[str]:
        """Forget requests that were ended from outside, and return the runs that nobody waits for any more."""
        orphans: list[str] = []
        for request in requests:
            _, runs = self._waiting.pop(request.request_id, (None, set()))
            orphans += runs
            for run in runs:
                self._asked_by.pop(run)
        return orphans

    def _done(self, output: Any) -> str | None:
        """Note that a run has ended; return who asked for it if it failed."""
        req_id = self._asked_by.pop(output.request_id)
        request, runs = self._waiting[req_id]
        runs.discard(output.request_id)
        if output.finish_reason.name == "ERROR":
            return req_id
        if not runs:
            del self._waiting[req_id]
            self._scheduler.waiting.prepend_request(request)
        return None

    def _set_aside(self, request: Any) -> None:
        scheduler = self._scheduler
        scheduler.running = [other for other in scheduler.running if other is not request]
        scheduler._preempt_request(request, time.monotonic())
        scheduler.waiting.remove_request(request)
        scheduler.prev_step_scheduled_req_ids.discard(request.request_id)

    def _to_the_front(self, run: Any) -> None:
        self._scheduler.waiting.remove_request(run)
        self._scheduler.waiting.prepend_request(run)

    def _run(self, request: Any, k: int, head: Head) -> Any:
        from vllm import SamplingParams
        from vllm.v1.request import Request

        repair = asked_repair(request.sampling_params.extra_args)
        assert repair is not None
        tcr = load(repair.folder).tcr
        without = KnockOut((head,), tcr.positions, tcr.scale)
        params = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            detokenize=False,
            extra_args={**without.extra_args(), RUN: [request.request_id, k]},
        )
        return Request(
            request_id=f"{request.request_id}-without-{k}-of-{self.n_flagged}",
            prompt_token_ids=list(request.all_token_ids),
            sampling_params=params,
            pooling_params=None,
            client_index=request.client_index,
            arrival_time=request.arrival_time,
            mm_features=request.mm_features,
            lora_request=request.lora_request,
            cache_salt=request.cache_salt,
            priority=request.priority,
            block_hasher=request._block_hasher,
        )
