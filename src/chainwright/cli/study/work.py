"""The command `study work`."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Annotated

import typer

from chainwright._registry import register
from chainwright.cli._options import Device, Folder, Quiet, RemoteCode
from chainwright.cli._shared import say
from chainwright.cli._studies import print_finished, watch

_TERMINATED = 128 + signal.SIGTERM


@register("command", "study.work")
def work(
    folder: Folder,
    device: Device = None,
    trust_remote_code: RemoteCode = False,
    lease: Annotated[
        float | None,
        typer.Option(
            "--lease", help="Seconds of silence after which others take this worker's unit (default: 60); from 1."
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Compute units of a study together with other workers, until it is finished."""
    from chainwright.studies import Study
    from chainwright.studies.crew import LEASE
    from chainwright.studies.workers import work as work_on

    study = Study.open(folder)
    if study.is_complete:
        say(f"{folder} is finished; `chainwright study show {folder}` shows what it found.")
        return
    plan = study.with_plan(device=device, trust_remote_code=trust_remote_code).plan
    assert plan is not None
    before = signal.signal(signal.SIGTERM, _give_up)
    try:
        worked = work_on(folder, plan, watch(quiet), lease=LEASE if lease is None else lease)
    finally:
        signal.signal(signal.SIGTERM, before)
    lost = f", and {worked.n_lost} in vain" if worked.n_lost else ""
    say(f"{folder} is finished; this worker computed {worked.n_units} of its {len(study.units)} units{lost}.")
    if worked.has_finished:
        print_finished(study)


def _give_up(number: int, frame: FrameType | None) -> None:
    """End in order, so that the unit in flight is given back; schedulers send this signal before they kill."""
    raise SystemExit(_TERMINATED)
