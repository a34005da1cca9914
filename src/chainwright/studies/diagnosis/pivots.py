"""Pivots as an instrument of a diagnosis: where its wrong responses lose their chance to end right.

pivots/<number>   the `Pivots` of some of the first wrong responses, in the order of the traces

Not part of the usual diagnosis, since it decodes many times what the diagnosis itself does. Head roles and repairs are
made from pivots by `chainwright pivots` and what reads its folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from chainwright._finding import Finding
from chainwright._registry import register
from chainwright.diagnose.pivots.band import Selection
from chainwright.diagnose.pivots.config import PivotConfig
from chainwright.diagnose.pivots.finding import Pivots
from chainwright.diagnose.pivots.run import search_chosen
from chainwright.diagnose.pivots.tally import Tally
from chainwright.studies.diagnosis.config import DiagnoseConfig
from chainwright.studies.diagnosis.units import Bench, Instrument, load_traces
from chainwright.studies.plan import Job, Results, Skip
from chainwright.traces import Trace

RESPONSES = 4  # per unit


@register("instrument", "pivots")
class PivotsOf(Instrument):
    """Searches as many wrong responses as head roles have contexts; needs the accuracy, which all traces go into."""

    name, needs, groups, order = "pivots", ("accuracy",), ("pivots",), 55

    def units(self, config: DiagnoseConfig, done: Results) -> list[str]:
        """Return one unit per few wrong responses, at least one, once all traces are there."""
        if "accuracy" not in done:
            return []
        n = len(_wrong(config, done))
        return [f"pivots/{start // RESPONSES:06d}" for start in range(0, max(1, n), RESPONSES)]

    def compute(self, bench: Bench, job: Job) -> None:
        """Save the `Pivots` of some responses.

        Raises:
            Skip: No response is wrong.
        """
        start = RESPONSES * int(job.unit.partition("/")[2])
        traces = _wrong(bench.config, job.done)[start : start + RESPONSES]
        if not traces:
            raise Skip("no response to a problem with an answer is wrong, so there is no first error to look for")
        config = PivotConfig(temperature=bench.config.temperature or None)
        chosen = Selection([(trace, Tally()) for trace in traces], {})
        found = search_chosen(bench.model, bench.tokenizer, chosen, config=config, progress=False, tick=job.tick)
        found.save(job.out)

    def title(self, config: DiagnoseConfig, unit: str) -> str:
        """Return a title such as "Pivots of wrong responses 1-4"."""
        start = RESPONSES * int(unit.partition("/")[2])
        return f"Pivots of wrong responses {start + 1}-{start + RESPONSES}"

    def findings(self, config: DiagnoseConfig, done: Results) -> list[Finding]:
        """Return the pivots of all responses as one finding."""
        parts = [Pivots.load(path) for unit, path in done.items() if unit.startswith("pivots/")]
        return [Pivots.joined(parts)] if parts else []


def _wrong(config: DiagnoseConfig, done: Mapping[str, Path]) -> list[Trace]:
    """Return the first wrong responses to problems with an answer, two for each context of a head role."""
    wrong = [
        t for t in load_traces(config, done) if t.outcome == "wrong" and t.problem is not None and t.problem.answer
    ]
    return wrong[: 2 * config.n_contexts]
