"""Many traces for one file: decoded in parts that survive a kill, then joined.

The parts are a study in `<file>.parts`, beside the file, which is removed when the file is complete. Joined, they equal
the result of one call of `generate`, since the noise of a row depends on the seed and the row's number alone.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import PreTrainedTokenizerBase

from chainwright._errors import BadInput, OtherRendering
from chainwright._files import clear_disk_errors
from chainwright._registry import register
from chainwright.decode.run import generate
from chainwright.models import provenance
from chainwright.models.anatomy import anatomy
from chainwright.models.load import load_as
from chainwright.prompts.asking import Asking
from chainwright.prompts.prompt import prompts_of
from chainwright.repair.base import Repair
from chainwright.repair.composed import Composed
from chainwright.repair.run import Cost
from chainwright.studies.asked import IDENTITY, asked_again
from chainwright.studies.config import DecodeSettings
from chainwright.studies.display import Display
from chainwright.studies.engine import Study
from chainwright.studies.manifest import Manifest
from chainwright.studies.plan import Job, Plan, Results, Watch
from chainwright.studies.records import sha256_of
from chainwright.tasks import Problem
from chainwright.traces import Trace, read_traces, write_traces

ROWS = 64  # per part: about one batch


@register("study", "traces")
class TracesPlan(Plan):
    """Decodes a list of problems part by part."""

    kind = "traces"
    again = "the same command again; its parts are in {folder}"
    # `chainwright study run` and `work` compute parts, too; the command joins them

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        asked: Sequence[Problem | str],
        settings: DecodeSettings,
        repair: Repair | None,
        config: Mapping[str, object],
        *,
        asking: Asking | None = None,
        pool: Sequence[Problem] | None = None,
        markers: tuple[str, str] | None = None,
    ) -> None:
        """Take the problems (or prompts) to decode, and in `config` the settings that they were drawn with.

        Args:
            model: The model.
            tokenizer: Its tokenizer.
            asked: Problems or prompts.
            settings: How they are decoded.
            repair: What decodes with the model.
            config: What the problems were drawn with.
            asking: Demonstrations, system prompt and chat template.
            pool: What demonstrations are chosen from; None takes the problems.
            markers: The pair of markers around the thinking.
        """
        self.model, self.tokenizer, self.asked, self.settings, self.repair = model, tokenizer, asked, settings, repair
        self.asking, self.markers = asking or Asking(), markers
        of_sets = [p for p in asked if isinstance(p, Problem)]
        self.pool = of_sets if pool is None else list(pool)
        self.config = {**config, **settings.identity(model), "rows": ROWS}
        # only where they are passed, so that files that were begun before these options are resumed
        self.config |= {"markers": markers} if markers else {}
        self.config |= identity_of_asking(self.asking)
        self.source = provenance(anatomy(model).model)
        self._costs: list[Cost] = []

    @classmethod
    def resumed(cls, known: Manifest, *, device: str | None = None, trust_remote_code: bool = False) -> TracesPlan:
        """Return the plan of parts that were begun; loads the model and the repair.

        Raises:
            BadInput: The model, the repair or the problems cannot be loaded, or were changed.
        """
        config = known.config
        asked, pool = asked_again(known)
        again = {
            kind: kind.from_record({name: config[name] for name in kind.model_fields if name in config})
            for kind in (DecodeSettings, Asking)
        }
        loaded = load_as(known.model, device=device, trust_remote_code=trust_remote_code)
        return cls(
            loaded.model,
            loaded.tokenizer,
            asked,
            cast(DecodeSettings, again[DecodeSettings]),
            _repair_again(config["repair"]),
            {name: config[name] for name in (*IDENTITY, "repair") if name in config},
            asking=cast(Asking, again[Asking]),
            pool=pool,
            markers=tuple(config["markers"]) if "markers" in config else None,
        )

    def decode(self, asked: Sequence[Problem | str], **options: Any) -> list[Trace]:
        """Return the traces of some of the problems."""
        traces = generate(
            self.model,
            self.tokenizer,
            asked,
            repair=self.repair,
            **self.settings.options(self.model),
            asking=self.asking,
            shots_pool=self.pool,
            markers=self.markers,
            **options,
        )
        if self.repair is not None:
            self._costs.append(self.repair.cost)
        return traces

    @property
    def cost(self) -> Cost | None:
        """Return what decoding with the repair took in this run, without parts of an earlier one; None without any."""
        return Cost.one_after_the_other(self._costs) if self._costs else None

    def check(self) -> None:
        """Raise BadInput, before anything is decoded, for a problem that cannot be asked."""
        prompts_of(
            self.model,
            self.tokenizer,
            self.asked,
            self.settings.max_new_tokens,
            asking=self.asking,
            pool=self.pool,
        )

    def units(self, done: Results) -> list[str]:
        """Return one unit per part of the list."""
        return [f"part-{start // ROWS:06d}" for start in range(0, len(self.asked), ROWS)]

    def compute(self, job: Job) -> None:
        """Write the traces of a part."""
        start = ROWS * int(job.unit.removeprefix("part-"))
        asked = self.asked[start : start + ROWS]
        n_rows = len(asked) * self.settings.n_samples
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OtherRendering)  # `check` has warned of all problems
            traces = self.decode(asked, first_row=start, progress=False, on_traces=job.counter(n_rows))
        write_traces(job.out / "traces.parquet", traces)

    def title(self, unit: str) -> str:
        """Return a title such as "problems 65-128"."""
        start = ROWS * int(unit.removeprefix("part-"))
        return f"problems {start + 1}-{min(start + ROWS, len(self.asked))}"


def decode_in_memory(plan: TracesPlan, *, progress: bool = True) -> list[Trace]:
    """Decode all problems of a plan in one call, without a file."""
    return plan.decode(plan.asked, progress=progress)


def generate_to(path: Path, plan: TracesPlan, *, overwrite: bool = False, progress: bool = True) -> list[Trace]:
    """Decode the problems of a plan into a Parquet file, resuming from the parts of an interrupted run.

    Raises:
        BadInput: The file exists and `overwrite` is off, parts of other settings are there, or it cannot be written.
    """
    parts = path.with_name(f"{path.name}.parts")
    if path.exists() and not overwrite:
        raise BadInput(f"{path} exists; pass --overwrite to replace it, or choose another name.")
    plan.check()
    study = _parts_study(parts, plan, overwrite)
    with Display() if progress else nullcontext(Watch()) as watch:
        results = study.run(watch, recompute=True)
    traces = [trace for folder in results.values() for trace in read_traces(folder / "traces.parquet")]
    write_traces(path, traces, overwrite=overwrite)
    with clear_disk_errors(parts):
        shutil.rmtree(parts)
    return traces


def _parts_study(parts: Path, plan: TracesPlan, overwrite: bool) -> Study:
    """Return the study of the parts; `overwrite` replaces one with other settings."""
    # Without `overwrite` first: parts of the same settings are resumed either way, never decoded again.
    try:
        return Study.make(parts, plan)
    except BadInput:
        if not overwrite:
            raise
    return Study.make(parts, plan, overwrite=True)


def identity_of_asking(asking: Asking) -> dict[str, Any]:
    """Return what identifies a way of asking: what is not the default, and the hash of a file of demonstrations."""
    default = Asking()
    made = {name: value for name, value in asking.record().items() if value != default.record()[name]}
    if asking.shots_from is not None and Path(asking.shots_from).is_file():
        made["shots_sha256"] = sha256_of(Path(asking.shots_from))
    return made


def identity_of(repair: str | None) -> str | None:
    """Return what identifies a repair: its name and, if it is a folder, the hashes of its files."""
    if repair is None or not Path(repair).is_dir():
        return repair
    files = sorted(path for path in Path(repair).rglob("*") if path.is_file())
    return f"{repair} ({', '.join(f'{path.name} {sha256_of(path)[:16]}' for path in files)})"


def _repair_again(identity: str | Sequence[str] | None) -> Repair | None:
    """Return the repair that `identity_of` describes, or several as one.

    Raises:
        BadInput: It cannot be loaded, or its files were changed.
    """
    if identity is None:
        return None
    if not isinstance(identity, str):
        found = [repair for each in identity if (repair := _repair_again(each)) is not None]
        return Composed(found) if len(found) > 1 else next(iter(found), None)
    name = identity.rpartition(" (")[0] if identity.endswith(")") else identity
    if identity_of(name) != identity:
        raise BadInput(
            f"The repair {name} was changed since the study began, so it cannot be resumed with it; put it back, or "
            "begin again with --overwrite."
        )
    return Repair.from_pretrained(name)
