"""The scheduler's side: a request whose edit did not act ends with an error before that pass's token is delivered.

Requests with a repair are held at flagged tokens (`holding`).

This also covers runners that the plug-in does not know: they report nothing, so nothing has acted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from chainwright_vllm.holding import Holding
from chainwright_vllm.patching import wrap
from chainwright_vllm.spec import asked
from chainwright_vllm.worker import REPORT, Report

logger = logging.getLogger("vllm.chainwright")
_SILENT = "Chainwright's edit did not act: this vLLM uses a model runner that the plug-in does not know."


def install() -> None:
    """Wrap the scheduler's methods."""
    from vllm.v1.core.sched.scheduler import Scheduler

    wrap(Scheduler, "update_from_output", _update_from_output)
    wrap(Scheduler, "finish_requests", _finish_requests)


def unacted(requests: Mapping[str, Any], scheduled: Mapping[str, int], report: Report | None) -> dict[str, str]:
    """Return the edited requests of a pass whose edit did not act, with a sentence each.

    Args:
        requests: vLLM's Requests by id.
        scheduled: Tokens of each request in the pass.
        report: The worker's, None if it made none.
    """
    out = {}
    for req_id in scheduled:
        request = requests.get(req_id)
        if request is None or request.sampling_params is None or asked(request.sampling_params.extra_args) is None:
            continue
        if report is None or req_id not in report.acted:
            out[req_id] = _SILENT if report is None else report.failed.get(req_id, _SILENT)
    return out


def holding(scheduler: Any) -> Holding:
    """Return the held requests of a scheduler."""
    if getattr(scheduler, "chainwright", None) is None:
        scheduler.chainwright = Holding(scheduler)
    held: Holding = scheduler.chainwright
    return held


def _update_from_output(own: Callable[..., Any]) -> Callable[..., Any]:
    def update_from_output(self: Any, scheduler_output: Any, model_runner_output: Any) -> Any:
        report = getattr(model_runner_output, REPORT, None)
        ended = end_with_error(self, unacted(self.requests, scheduler_output.num_scheduled_tokens, report))
        outputs = own(self, scheduler_output, model_runner_output)
        deliver(outputs, ended)
        deliver(outputs, end_with_error(self, holding(self).take(outputs)))
        if report is not None:
            holding(self).hold(report.held)
            holding(self).n_changed += sum(report.changed.values())
        return outputs

    return update_from_output


def _finish_requests(own: Callable[..., Any]) -> Callable[..., Any]:
    def finish_requests(self: Any, request_ids: Any, finished_status: Any) -> Any:
        finished = own(self, request_ids, finished_status)
        if orphans := holding(self).dropped(finished):
            own(self, orphans, finished_status)
        return finished

    return finish_requests


def end_with_error(scheduler: Any, failed: Mapping[str, str]) -> list[tuple[int, Any]]:
    """End requests, and return for each its client and the output that says why."""
    from vllm.v1.engine import EngineCoreOutput
    from vllm.v1.request import RequestStatus

    ended: list[tuple[int, Any]] = []
    if not failed:
        return ended
    for request in scheduler.finish_requests(list(failed), RequestStatus.FINISHED_ERROR):
        why = failed[request.request_id]
        logger.error("Request %s: %s", request.request_id, why)
        output = EngineCoreOutput(
            request_id=request.request_id,
            new_token_ids=[],
            finish_reason=request.get_finished_reason(),
            stop_reason=why,
            events=request.take_events(),
            trace_headers=request.trace_headers,
        )
        ended.append((request.client_index, output))
    return ended


def deliver(outputs: dict[int, Any], ended: list[tuple[int, Any]]) -> None:
    """Put outputs beside those of a step."""
    from vllm.v1.engine import EngineCoreOutputs

    for client, output in ended:
        outputs.setdefault(client, EngineCoreOutputs()).outputs.append(output)
