"""A diagnosis as a study: its plan, and what its folder holds when it is finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, overload

from torch import nn
from transformers import PreTrainedTokenizerBase

from chainwright import tasks
from chainwright._errors import BadInput
from chainwright._finding import Finding
from chainwright._registry import load, register
from chainwright.diagnose.errors import ErrorTable
from chainwright.diagnose.facts import facts_of
from chainwright.diagnose.heads.roles import RoleFinding
from chainwright.diagnose.summary import summary_lines
from chainwright.evaluation.accuracy import Accuracy
from chainwright.models import provenance
from chainwright.models.anatomy import anatomy
from chainwright.models.load import load_as
from chainwright.scoring import TokenScores
from chainwright.studies.diagnosis import repair, units
from chainwright.studies.diagnosis.base import Bench, Instrument
from chainwright.studies.diagnosis.config import DiagnoseConfig
from chainwright.studies.diagnosis.parts import load_traces, notes
from chainwright.studies.diagnosis.sources import Source, pinned
from chainwright.studies.engine import Study
from chainwright.studies.manifest import Manifest
from chainwright.studies.plan import Job, Plan, Results
from chainwright.traces import Trace

KIND = "diagnosis"
F = TypeVar("F", bound=Finding)
# not asked for by name, so they are not registered
_FIXED: tuple[type[Instrument], ...] = (repair.KeptRepair, Source, units.Traces, units.Scores, repair.Repaired)


def instruments_of(config: DiagnoseConfig) -> list[Instrument]:
    """Return the instruments of a diagnosis in the order of their units; those not asked for are not imported.

    Raises:
        BadInput: An instrument reads the results of another that was not asked for, or writes where another does.
    """
    kinds: list[type[Instrument]] = [*_FIXED, *(load("instrument", name) for name in config.instruments)]
    instruments = sorted((kind() for kind in kinds), key=lambda i: (i.order, i.name))
    owners: dict[str, str] = {}
    for instrument in (chosen := [i for i in instruments if i.is_asked(config)]):
        if missing := [name for name in instrument.needs if name not in (*config.instruments, units.Scores.name)]:
            raise BadInput(f"The instrument {instrument.name!r} needs {missing[0]!r}; add it to the instruments.")
        for group in instrument.groups:
            if owners.setdefault(group, instrument.name) != instrument.name:
                raise BadInput(
                    f"The instruments {owners[group]!r} and {instrument.name!r} both write units {group!r}; rename one."
                )
    return chosen


@register("study", "diagnosis")
class DiagnosisPlan(Plan):
    """Lets a model answer, finds the first errors and locates the heads; see `instruments` for its units."""

    kind = KIND
    again = "chainwright study run {folder}"

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, config: DiagnoseConfig):
        """Check that every cell can be asked; nothing is computed.

        Raises:
            BadInput: A task cannot have that many hops, or a file of problems or traces cannot be read.
        """
        config = pinned(config)
        for task, hops in config.cells():
            tasks.sample(task, hops, 1, rendering=config.rendering)
        self.bench = Bench(model, tokenizer, config)
        self.instruments = instruments_of(config)
        self.config = config.record()
        self.source = provenance(anatomy(model).model)

    @classmethod
    def resumed(cls, known: Manifest, *, device: str | None = None, trust_remote_code: bool = False) -> DiagnosisPlan:
        """Return the plan of a diagnosis that was begun; loads its model."""
        loaded = load_as(known.model, device=device, trust_remote_code=trust_remote_code)
        return cls(loaded.model, loaded.tokenizer, DiagnoseConfig.from_record(known.config))

    def prepare(self) -> None:
        """Read the problems or traces of a new study before its folder is made.

        Raises:
            BadInput: They cannot be read, or are too long for the model.
        """
        for instrument in self.instruments:
            if isinstance(instrument, Source):
                instrument.prepare(self.bench)

    def units(self, done: Results) -> list[str]:
        """Return the units of every instrument that was asked for, as far as they are known."""
        return [unit for instrument in self.instruments for unit in instrument.units(self.bench.config, done)]

    def compute(self, job: Job) -> None:
        """Compute a unit with its instrument."""
        self._instrument(job.unit).compute(self.bench, job)

    def title(self, unit: str) -> str:
        """Return a unit's name for readers."""
        return self._instrument(unit).title(self.bench.config, unit)

    def _instrument(self, unit: str) -> Instrument:
        return next(i for i in self.instruments if unit.partition("/")[0] in i.groups)


@dataclass(frozen=True, eq=False)
class Diagnosis(Sequence[Finding]):
    """What a diagnosis found, in memory: a sequence of findings, with the traces that they refer to.

    Attributes:
        config: The settings.
        provenance: Model, revision, number type, package versions.
        findings: What the instruments returned: accuracy, first errors, head roles at each key error type, and what
            else was asked for (alternatives, evidence for heads, step maps, what a repair gains).
        traces: All traces, cell by cell.
        scores: Token scores of each trace, in the same order; None if no instrument needed them.
        token_strs: The text of each token of each trace.
        skipped: Key error types that were not searched for heads, and why.
        notes: Of an open diagnosis, what was noticed when problems or traces were read (see `parts.notes`).
    """

    config: DiagnoseConfig
    provenance: Mapping[str, str]
    findings: list[Finding]
    traces: list[Trace]
    scores: list[TokenScores] | None
    token_strs: list[list[str]]
    skipped: list[str] = field(default_factory=list)
    notes: Mapping[str, Any] = field(default_factory=dict)

    @overload
    def __getitem__(self, index: int) -> Finding: ...

    @overload
    def __getitem__(self, index: slice) -> list[Finding]: ...

    def __getitem__(self, index: int | slice) -> Finding | list[Finding]:
        """Return a finding by its place, or several."""
        return self.findings[index]

    def __len__(self) -> int:
        """Return the number of findings."""
        return len(self.findings)

    def of(self, kind: type[F]) -> list[F]:
        """Return the findings of one kind, such as `HeadEvidence`."""
        return [finding for finding in self.findings if isinstance(finding, kind)]

    @property
    def accuracy(self) -> Accuracy:
        """Return the accuracy by task and hops."""
        return self.of(Accuracy)[0]

    @property
    def errors(self) -> ErrorTable:
        """Return the first errors."""
        return self.of(ErrorTable)[0]

    @property
    def roles(self) -> list[RoleFinding]:
        """Return the head roles at each key error type that was searched."""
        return self.of(RoleFinding)

    def summary(self) -> list[str]:
        """Return in lines of words where the model fails, how, how sure it was, and which heads matter.

        With a repair, a last line says what that gains.
        """
        return summary_lines(facts_of(self.findings), searched_heads=self.config.searches_heads)


def config_of(study: Study) -> DiagnoseConfig:
    """Return the config of a diagnosis.

    Raises:
        BadInput: It is another kind of study, or its config was damaged.
    """
    known = study.manifest
    if known.kind != KIND:
        raise BadInput(
            f"{study.folder} holds a study of kind {known.kind!r}, not a diagnosis; resume it with: "
            f"{known.again.replace('{folder}', str(study.folder))}"
        )
    try:
        return DiagnoseConfig.from_record(known.config)
    except BadInput as error:
        raise BadInput(f"The config of the study in {study.folder} is damaged: {error}") from error


def has_report(config: DiagnoseConfig) -> bool:
    """Say whether a diagnosis has the instruments that its summary and report are made of."""
    return set(_needed(config)) <= set(config.instruments)


def _needed(config: DiagnoseConfig) -> tuple[str, ...]:
    return ("accuracy", "errors") if config.hops else ("accuracy",)


def check_instruments(config: DiagnoseConfig, what: str) -> None:
    """Raise BadInput unless a diagnosis has the instruments that its summary and report are made of."""
    needed = _needed(config)
    if missing := sorted(set(needed) - set(config.instruments)):
        raise BadInput(
            f"{what} needs the instrument{'s' if len(needed) > 1 else ''} {' and '.join(needed)}, but "
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; `chainwright study show` shows "
            "what a study has."
        )


def diagnosis_of(study: Study) -> Diagnosis:
    """Return what a finished diagnosis found; neither model nor tokenizer is needed.

    Raises:
        BadInput: It is another kind of study, unfinished, damaged, or has no accuracy or errors.
    """
    config = config_of(study)
    if not study.is_complete:
        raise BadInput(
            f"The study in {study.folder} is not finished; resume it with: chainwright study run {study.folder}"
        )
    check_instruments(config, f"The report of the study in {study.folder}")
    return _read(config, study.manifest.model, study.results)


def _read(config: DiagnoseConfig, source: Mapping[str, str], done: Results) -> Diagnosis:
    traces = load_traces(config, done)
    texts = units.load_token_strs(config, done)
    keys = units.key_types(done) if "errors" in done else []
    located = {key: units.head_unit(*key) for key in keys}
    findings = [finding for instrument in instruments_of(config) for finding in instrument.findings(config, done)]
    return Diagnosis(
        config=config,
        provenance=source,
        findings=findings,
        traces=traces,
        scores=units.load_scores(config, done) if units.have_scores(config, done) else None,
        token_strs=[[texts.get(int(i), "") for i in trace.input_ids] for trace in traces],
        skipped=[f"{key[0]}, {key[1]}: {done.skipped[unit]}" for key, unit in located.items() if unit in done.skipped],
        notes=notes(done),
    )


def open_diagnosis(folder: str | Path) -> Diagnosis:
    """Return a finished diagnosis from its folder; neither model nor tokenizer is needed.

    Raises:
        BadInput: No study there, an unfinished one, another schema, or damaged files.
    """
    return diagnosis_of(Study.open(folder))


def study_config(folder: str | Path) -> DiagnoseConfig:
    """Return the config of the diagnosis in a folder.

    Raises:
        BadInput: No study there, of another schema or of another kind.
    """
    return config_of(Study.open(folder))
