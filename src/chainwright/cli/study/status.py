"""The command `study status`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chainwright._registry import register
from chainwright.cli._options import Folder
from chainwright.cli._shared import say

if TYPE_CHECKING:
    from chainwright.studies import Status


@register("command", "study.status")
def status(folder: Folder) -> None:
    """Show which units are done, missing, damaged or skipped, how long they took, and which processes are running."""
    from chainwright.studies import Study

    study = Study.open(folder)
    manifest, found = study.manifest, study.status()
    state = "finished" if found.is_complete else "not finished"
    say(f"{folder}: {found.kind}, {state}; made with Chainwright {manifest.chainwright}")
    if manifest.model:
        say(f"Model: {manifest.model.get('model')}, fingerprint {manifest.model.get('fingerprint')}")
    counts = [f"{found.count(s)} {s}" for s in ("done", "skipped", "missing", "damaged") if found.count(s)]
    more = "" if found.is_complete else " (later ones depend on the results of these)"
    say(f"Units: {', '.join(counts) or 'none listed yet'}{more}")
    say(f"Time: {_times(found)}")
    say(f"Locked by: {found.holder or 'none'}")
    if found.workers:
        say(f"Workers: {len(found.workers)}")
    for worker in found.workers:
        doing = f"computes {worker.unit}" if worker.unit else "waits"
        say(f"  {worker}: {doing}, {worker.n_done} units done, last sign of life at {worker.seen}")
    for unit in found.units:
        if unit.state != "done":
            say(f"  {unit.state}: {unit.unit}{unit.note and f' ({unit.note})'}")
    if found.count("damaged") or not (found.is_complete or found.holder or found.workers):
        recompute = " --recompute" if found.count("damaged") else ""
        say(f"Resume it: {manifest.again.replace('{folder}', str(folder))}{recompute}")


def _times(found: Status) -> str:
    from chainwright.studies import timing

    spent = f"{timing.words(found.seconds_spent)} spent"
    if found.is_complete and not found.seconds_left:
        return spent
    if found.seconds_left is None:
        return f"{spent}, time remaining unknown"
    return f"{spent}, about {timing.words(found.seconds_left)} left for the units listed"
