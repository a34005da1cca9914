"""Looking for pivots as a study: responses are drawn, some of them chosen, and searched a few at a time.

samples/<number>   responses to some of the problems, several each
chosen             what is searched: a wrong response of each problem in the band, or the traces that were passed
search/<number>    the `Pivots` of some of them
found              all of them as one finding, and the traces with their pivots as first errors
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import PreTrainedTokenizerBase

from chainwright._errors import BadInput
from chainwright._files import read_json, write_json
from chainwright._finding import Finding
from chainwright._registry import register
from chainwright.decode.run import generate
from chainwright.diagnose.pivots.band import Selection, by_rate
from chainwright.diagnose.pivots.completers import Completer
from chainwright.diagnose.pivots.config import PivotConfig
from chainwright.diagnose.pivots.drawing import drawn_as
from chainwright.diagnose.pivots.finding import Pivots
from chainwright.diagnose.pivots.first_errors import with_first_errors
from chainwright.diagnose.pivots.named import ITSELF, completer_again
from chainwright.diagnose.pivots.run import search_chosen
from chainwright.diagnose.pivots.tally import Tally
from chainwright.models import provenance
from chainwright.models.anatomy import anatomy
from chainwright.models.load import load_as
from chainwright.prompts.asking import Asking
from chainwright.studies.asked import IDENTITY, asked_again, traces_again
from chainwright.studies.engine import Study
from chainwright.studies.manifest import Manifest
from chainwright.studies.plan import Job, Plan, Results
from chainwright.tasks import Problem
from chainwright.traces import Trace, read_traces, write_traces

PROBLEMS, RESPONSES = 8, 8  # per unit
TRACES = "traces.parquet"


@register("study", "pivots")
class PivotsPlan(Plan):
    """Looks for the pivots of responses; an interrupted search resumes with the unit that was interrupted."""

    kind = "pivots"
    again = "chainwright study run {folder}"

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        asked: Sequence[Problem] | Sequence[Trace],
        config: PivotConfig,
        identity: Mapping[str, Any],
        *,
        completer: Completer | None = None,
        seed: int = 0,
        asking: Asking | None = None,
        pool: Sequence[Problem] | None = None,
    ):
        """Take problems to draw responses of, or judged responses.

        Args:
            model: The model that wrote, or will write, the responses.
            tokenizer: Its tokenizer.
            asked: Problems, or traces; not both.
            config: How pivots are looked for.
            identity: What identifies `asked`, as plain JSON values.
            completer: Who continues prefixes; None lets the model itself.
            seed: Decides what is drawn.
            asking: How problems are asked.
            pool: What demonstrations are chosen from; None takes the problems.

        Raises:
            BadInput: There is nothing to search, or the sampling is greedy.
        """
        if not asked:
            raise BadInput("There is nothing to search for pivots; pass problems, or a file of traces that has some.")
        self.model, self.tokenizer, self.asked, self.settings = model, tokenizer, list(asked), config
        self.completer, self.seed, self.asking, self.pool = completer, seed, asking, pool
        sampling = drawn_as(model, config)
        continues = {"completer": ITSELF} if completer is None else completer.settings()
        self.config = {
            **identity,
            **config.record(),
            **continues,
            "sampling": sampling.record(),
            "asking": None if asking is None else asking.record(),
            "seed": seed,
        }
        self.source = provenance(anatomy(model).model)

    @classmethod
    def resumed(cls, known: Manifest, *, device: str | None = None, trust_remote_code: bool = False) -> PivotsPlan:
        """Return the plan of a search that was begun; loads the model, and the completer if it is another one.

        Raises:
            BadInput: One of them cannot be loaded, or the problems or traces were changed.
        """
        config = known.config
        settings = PivotConfig.from_record({name: config[name] for name in PivotConfig.model_fields if name in config})
        loaded = load_as(known.model, device=device, trust_remote_code=trust_remote_code)
        asked, pool = (traces_again(known, loaded.tokenizer), None) if "traces" in config else asked_again(known)
        return cls(
            loaded.model,
            loaded.tokenizer,
            cast(Any, asked),
            settings,
            {name: config[name] for name in IDENTITY if name in config},
            completer=completer_again(loaded, config, settings),
            seed=config["seed"],
            asking=None if config["asking"] is None else Asking.from_record(config["asking"]),
            pool=pool,
        )

    @property
    def _samples(self) -> list[str]:
        if isinstance(self.asked[0], Trace):
            return []
        return [f"samples/{start // PROBLEMS:06d}" for start in range(0, len(self.asked), PROBLEMS)]

    def units(self, done: Results) -> list[str]:
        """Return the units that are known: the searches follow from what was chosen."""
        units = self._samples
        if not done.are_finished(units):
            return units
        units.append("chosen")
        if "chosen" not in done:
            return units
        n = len(read_json(done["chosen"] / "chosen.json")["tallies"])
        searches = [f"search/{start // RESPONSES:06d}" for start in range(0, n, RESPONSES)]
        units += searches
        return [*units, "found"] if done.are_finished(searches) else units

    def compute(self, job: Job) -> None:
        """Compute a unit."""
        group, _, number = job.unit.partition("/")
        if group == "samples":
            self._sample(job, PROBLEMS * int(number))
        elif group == "chosen":
            self._choose(job)
        elif group == "search":
            self._search(job, RESPONSES * int(number))
        else:
            self._join(job)

    def _sample(self, job: Job, start: int) -> None:
        problems = [each for each in self.asked[start : start + PROBLEMS] if isinstance(each, Problem)]
        traces = generate(
            self.model,
            self.tokenizer,
            problems,
            sampling=drawn_as(self.model, self.settings),
            n_samples=self.settings.n_samples,
            asking=self.asking,
            shots_pool=self.pool or [each for each in self.asked if isinstance(each, Problem)],
            seed=self.seed,
            first_row=start,
            max_new_tokens=self.settings.max_new_tokens,
            batch_size=self.settings.batch_size,
            progress=False,
            on_traces=job.counter(len(problems) * self.settings.n_samples),
        )
        write_traces(job.out / TRACES, traces)

    def _choose(self, job: Job) -> None:
        samples = [trace for unit in self._samples for trace in read_traces(job.done[unit] / TRACES)]
        if not samples:
            traces = [each for each in self.asked if isinstance(each, Trace)]
            self._write_chosen(job.out, [(trace, Tally()) for trace in traces], {}, [])
            return
        n = self.settings.n_samples
        groups = [samples[i : i + n] for i in range(0, len(samples), n)]
        drawn = by_rate(groups, self.settings)
        searched = [each for each in drawn.by_problem if each is not None]
        first_right = [next((t for t in group if t.outcome == "right"), None) for group in groups]
        # right responses are what pivots are compared with, wherever contexts are made from them
        others = [trace for trace in first_right if trace is not None]
        self._write_chosen(job.out, searched, drawn.fell_out, others, drawn.rates)

    def _write_chosen(
        self,
        out: Path,
        chosen: Sequence[tuple[Trace, Tally]],
        fell_out: Mapping[str, int],
        others: Sequence[Trace],
        rates: Sequence[float] = (),
    ) -> None:
        write_traces(out / TRACES, [trace for trace, _ in chosen])
        write_traces(out / "right.parquet", others)
        tallies = [[tally.n_right, tally.n_wrong, tally.n_cut, tally.n_unread] for _, tally in chosen]
        write_json(out / "chosen.json", {"tallies": tallies, "fell_out": dict(fell_out), "rates": list(rates)})

    def _search(self, job: Job, start: int) -> None:
        chosen = read_json(job.done["chosen"] / "chosen.json")
        traces = read_traces(job.done["chosen"] / TRACES)[start : start + RESPONSES]
        tallies = [Tally(*counts) for counts in chosen["tallies"][start : start + RESPONSES]]
        found = search_chosen(
            self.model,
            self.tokenizer,
            Selection(list(zip(traces, tallies, strict=True)), {}),
            config=self.settings,
            completer=self.completer,
            seed=self.seed,
            progress=False,
            tick=job.tick,
        )
        found.save(job.out)

    def _join(self, job: Job) -> None:
        parts = [Pivots.load(path) for unit, path in job.done.items() if unit.startswith("search/")]
        chosen = read_json(job.done["chosen"] / "chosen.json")
        traces = read_traces(job.done["chosen"] / TRACES)
        if not parts:
            write_json(job.out / "fell_out.json", chosen["fell_out"])
            return
        found = Pivots.joined([*parts], selection=chosen["fell_out"])
        found.save(job.out / "pivots")
        located = with_first_errors(self.tokenizer, traces, found)
        write_traces(job.out / TRACES, [*located, *read_traces(job.done["chosen"] / "right.parquet")])

    def title(self, unit: str) -> str:
        """Return a unit's name for readers."""
        group, _, number = unit.partition("/")
        if group == "samples":
            start = PROBLEMS * int(number)
            end = min(start + PROBLEMS, len(self.asked))
            return f"Answering problems {start + 1}-{end}, {self.settings.n_samples} times each"
        if group == "search":
            return f"Searching responses {RESPONSES * int(number) + 1}-{RESPONSES * (int(number) + 1)}"
        return {"chosen": "Choosing what to search", "found": "First errors"}[group]

    @classmethod
    def findings(cls, study: Study) -> list[Finding]:
        """Return the `Pivots` of a finished study.

        Raises:
            BadInput: No response was left to search.
        """
        folder = study.results["found"]
        if not (folder / "pivots").exists():
            reasons = ", ".join(f"{n} {why}" for why, n in read_json(folder / "fell_out.json").items() if n)
            raise BadInput(
                f"No problem was left to search for pivots ({reasons or 'none were asked'}); choose easier or harder "
                "problems, a wider --band, or another --completer with --traces."
            )
        return [Pivots.load(folder / "pivots")]


def traces_of(folder: str | Path) -> list[Trace]:
    """Return the traces of a finished search, with their pivots as first errors, and the right responses beside them.

    Raises:
        BadInput: There is no finished study of this kind, or nothing was left to search in it.
    """
    study = Study.open(folder)
    if study.manifest.kind != PivotsPlan.kind:
        raise BadInput(f"{folder} holds a study of kind {study.manifest.kind!r}; pass one of `chainwright pivots`.")
    if not study.is_complete:
        raise BadInput(f"The search in {folder} is not finished; resume it with: chainwright study run {folder}")
    PivotsPlan.findings(study)
    return read_traces(study.results["found"] / TRACES)
