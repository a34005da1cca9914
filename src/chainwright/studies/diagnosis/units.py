"""The instruments of a diagnosis: each lists its units and computes them.

    traces/<task>-<hops>-<seed>   the traces of a cell, and the text of each of their tokens
    accuracy                      accuracy by task and hops, over all seeds
    scores/<task>-<hops>-<seed>   log-probability and entropy of each token of them, and the likeliest alternatives
    errors                        first errors, with entropies
    heads/<task>-<type>           head roles of a key error type, and what the best head does on held-out contexts
    evidence/<task>-<type>        what the model predicts at those errors with each of the outstanding heads ablated

An instrument lists units only when what they read is finished.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedTokenizerBase

from chainwright import tasks
from chainwright._errors import BadInput, UnsupportedModel
from chainwright._files import read_json, write_json
from chainwright._finding import Finding
from chainwright._registry import register
from chainwright.decode.run import generate
from chainwright.diagnose.contexts import correct_contexts, erroneous_contexts
from chainwright.diagnose.errors import ErrorTable, first_errors
from chainwright.diagnose.heads.evidence import HeadEvidence, head_evidence
from chainwright.diagnose.heads.roles import RoleFinding, check_head, head_roles
from chainwright.diagnose.other_tokens import Alternatives, alternatives
from chainwright.evaluation.accuracy import Accuracy, evaluate
from chainwright.figures.words import counted
from chainwright.repair.base import Repair
from chainwright.scoring import TokenScores, score_all
from chainwright.studies.diagnosis.config import DiagnoseConfig
from chainwright.studies.plan import Job, Results, Skip
from chainwright.traces import Trace, read_traces, write_traces


class Cell(NamedTuple):
    """The problems of one task at one hop count, drawn with one seed."""

    task: str
    hops: int
    seed: int

    @property
    def name(self) -> str:
        """Return the last part of the cell's unit ids."""
        return f"{self.task}-{self.hops:03d}-{self.seed}"


def cells(config: DiagnoseConfig) -> list[Cell]:
    """Return every cell of a diagnosis, seed by seed within a task and hop count."""
    return [Cell(task, hops, seed) for task, hops in config.cells() for seed in config.seeds]


def cell_of(config: DiagnoseConfig, unit: str) -> Cell:
    """Return the cell that a unit such as "traces/parity-012-0" is of."""
    return next(cell for cell in cells(config) if cell.name == unit.partition("/")[2])


@dataclass(frozen=True)
class Bench:
    """The model, its tokenizer and the settings: what every instrument works with."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    config: DiagnoseConfig


class Instrument(ABC):
    """One measurement of a diagnosis.

    To add one, from inside or outside of the package, register a subclass under the kind "instrument"; its name may
    then be among `DiagnoseConfig.instruments`. What it writes is a part of the study, and what `findings` returns is a
    part of the diagnosis and its report.

    Attributes:
        name: The name it is registered under.
        needs: Instruments whose results it reads.
        groups: What its unit ids begin with; no other instrument's may begin so.
        order: Where its units come among those of other instruments, lower ones first; they count up in tens.
    """

    name: str
    needs: tuple[str, ...] = ()
    groups: tuple[str, ...]
    order: int = 60

    def is_asked(self, config: DiagnoseConfig) -> bool:
        """Return whether a diagnosis has this instrument."""
        return self.name in config.instruments

    @abstractmethod
    def units(self, config: DiagnoseConfig, done: Results) -> list[str]:
        """Return the ids of its units that are computed already or can be, given the finished ones."""

    @abstractmethod
    def compute(self, bench: Bench, job: Job) -> None:
        """Compute one of its units; see `Plan.compute`."""

    @abstractmethod
    def title(self, config: DiagnoseConfig, unit: str) -> str:
        """Return the name that is shown for a unit while it is computed."""

    def findings(self, config: DiagnoseConfig, done: Results) -> list[Finding]:
        """Return its findings in a finished study; none if every unit was skipped."""
        return []


class Traces(Instrument):
    """Lets the model answer; part of every diagnosis."""

    name, groups, order = "traces", ("traces",), 10

    def is_asked(self, config: DiagnoseConfig) -> bool:
        """Return True: everything else reads the traces."""
        return True

    def units(self, config: DiagnoseConfig, done: Results) -> list[str]:
        """Return one unit per cell."""
        return trace_units(config)

    def compute(self, bench: Bench, job: Job) -> None:
        """Write the traces of a cell, and the text of each token id in them."""
        found = decode_cell(bench, cell_of(bench.config, job.unit), job)
        write_traces(job.out / "traces.parquet", found)
        known = sorted({int(i) for trace in found for i in trace.input_ids})
        texts = {str(i): bench.tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in known}
        write_json(job.out / "token_strs.json", texts)

    def title(self, config: DiagnoseConfig, unit: str) -> str:
        """Return a title such as "Parity-NL, 12 hops: 40 problems"."""
        cell = cell_of(config, unit)
        seed = f", seed {cell.seed}" if len(config.seeds) > 1 else ""
        return f"{tasks.title(cell.task)}, {counted(cell.hops, 'hop')}{seed}: {config.n} problems"


@register("instrument", "accuracy")
class AccuracyOf(Instrument):
    """Accuracy by task and hops, from the traces alone."""

    name, groups, order = "accuracy", ("accuracy",), 20

    def units(self, config: DiagnoseConfig, done: Results) -> list[str]:
        """Return its one unit once all traces are there."""
        return ["accuracy"] if done.are_finished(trace_units(config)) else []

    def compute(self, bench: Bench, job: Job) -> None:
        """Save the `Accuracy` of all traces."""
        evaluate(load_traces(bench.config, job.done)).save(job.out)

    def title(self, config: DiagnoseConfig, unit: str) -> str:
        """Return "Accuracy by task and hops"."""
        return "Accuracy by task and hops"

    def findings(self, config: DiagnoseConfig, done: Results) -> list[Finding]:
        """Return the `Accuracy`."""
        return [Accuracy.load(done["accuracy"])]


@register("instrument", "errors")
class Errors(Instrument):
    """First errors, and how sure the model was at them."""

    name, groups, order = "errors", ("scores", "errors"), 30

    def units(self, config: DiagnoseConfig, done: Results) -> list[str]:
        """Return one unit of scores per cell and, once they are finished, the error table."""
        if not done.are_finished(trace_units(config)):
            return []
        scores = [f"scores/{cell.name}" for cell in cells(config)]
        return [*scores, "errors"] if done.are_finished(scores) else scores

    def compute(self, bench: Bench, job: Job) -> None:
        """Save the scores and alternatives of a cell's traces, or the `ErrorTable`."""
        if job.unit == "errors":
            first_errors(load_traces(bench.config, job.done), load_scores(bench.config, job.done)).save(job.out)
            return
        traces = read_traces(job.done[f"traces/{cell_of(bench.config, job.unit).name}"] / "traces.parquet")
        _save_scores(job.out / "scores.safetensors", score_all(bench.model, traces))
        alternatives(bench.model, bench.tokenizer, traces).save(job.out / "alternatives")

    def title(self, config: DiagnoseConfig, unit: str) -> str:
        """Return "First errors", or the cell whose tokens are scored."""
        if unit == "errors":
            return "First errors"
        cell = cell_of(config, unit)
        return f"Scoring every token: {tasks.title(cell.task)}, {counted(cell.hops, 'hop')}"

    def findings(self, config: DiagnoseConfig, done: Results) -> list[Finding]:
        """Return the `ErrorTable`, and the `Alternatives` if the study has them."""
        return [ErrorTable.load(done["errors"]), *load_alternatives(config, done)]


@register("instrument", "heads")
class Heads(Instrument):
    """Head roles at each key error type with a check of the best head, and the evidence for them."""

    name, needs, groups, order = "heads", ("errors",), ("heads", "evidence"), 40

    def units(self, config: DiagnoseConfig, done: Results) -> list[str]:
        """Return one unit per key error type, once those are known, and one of evidence for each that has roles."""
        heads = [head_unit(task, kind) for task, kind in key_types(done)] if "errors" in done else []
        located = heads if done.are_finished(heads) else []
        return [*heads, *(evidence_unit(unit) for unit in located if unit in done)]

    def compute(self, bench: Bench, job: Job) -> None:
        """Save a `RoleFinding`, or the `HeadEvidence` for one."""
        key = next(k for k in key_types(job.done) if job.unit in (head_unit(*k), evidence_unit(head_unit(*k))))
        if job.unit == head_unit(*key):
            self._roles(bench, job, *key)
            return
        found = RoleFinding.load(job.done[head_unit(*key)])
        traces, n = load_traces(bench.config, job.done), 2 * bench.config.n_contexts
        head_evidence(bench.model, bench.tokenizer, traces, found, n=n).save(job.out)

    def _roles(self, bench: Bench, job: Job, task: str, kind: str) -> None:
        rank = [k for t, k in key_types(job.done) if t == task].index(kind)
        if rank >= bench.config.max_types:
            raise Skip(f"more than {bench.config.max_types} key types")
        try:
            found = _locate(bench, load_traces(bench.config, job.done), task, kind)
        except (BadInput, UnsupportedModel) as error:
            raise Skip(str(error)) from error
        found.save(job.out)

    def title(self, config: DiagnoseConfig, unit: str) -> str:
        """Return a title with the task and the error type."""
        group, _, name = unit.partition("/")
        # a task's name may have hyphens too, and one name may begin like another
        task = max((task for task in config.hops if name.startswith(f"{task}-")), key=len)
        what = "Heads" if group == "heads" else "Evidence for heads"
        return f"{what} at {tasks.title(task)}, {name.removeprefix(f'{task}-').replace('-', ' ')}"

    def findings(self, config: DiagnoseConfig, done: Results) -> list[Finding]:
        """Return the head roles at each key error type that was searched, then the evidence for them."""
        located = [head_unit(*key) for key in key_types(done)]
        return [*(RoleFinding.load(done[unit]) for unit in located if unit in done), *load_evidence(done)]


def decode_seed(cell: Cell) -> int:
    """Return the seed that a cell is decoded with.

    Within one call of `generate` each row has its own noise, but row 3 of two calls with one seed has the same; so each
    cell has its own seed.
    """
    return Random(f"{cell.seed}/{cell.task}/{cell.hops}").getrandbits(32)


def decode_cell(bench: Bench, cell: Cell, job: Job, repair: Repair | None = None) -> list[Trace]:
    """Return the traces of a cell's problems, alone or with a repair, ticking as they come."""
    config = bench.config
    problems = tasks.sample(cell.task, cell.hops, config.n, cell.seed, rendering=config.rendering)
    return generate(
        bench.model,
        bench.tokenizer,
        problems,
        repair=repair,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
        temperature=config.temperature,
        seed=decode_seed(cell),
        progress=False,
        on_traces=job.counter(len(problems)),
    )


def trace_units(config: DiagnoseConfig) -> list[str]:
    """Return the ids of the units that hold traces, in the order of the cells."""
    return [f"traces/{cell.name}" for cell in cells(config)]


def head_unit(task: str, kind: str) -> str:
    """Return the id of the unit that locates the heads of a key error type."""
    return f"heads/{task}-{kind.replace(' ', '-')}"


def evidence_unit(unit: str) -> str:
    """Return the id of the unit with the evidence for the heads that another unit located."""
    return f"evidence/{unit.partition('/')[2]}"


def key_types(done: Mapping[str, Path]) -> list[tuple[str, str]]:
    """Return (task, error type) of every key error type, the most frequent of a task first."""
    found = ErrorTable.load(done["errors"]).key_types
    return [(task, kind) for task, kinds in found.items() for kind in kinds]


def load_traces(config: DiagnoseConfig, done: Mapping[str, Path]) -> list[Trace]:
    """Return all traces, cell by cell."""
    return [trace for unit in trace_units(config) for trace in read_traces(done[unit] / "traces.parquet")]


def load_scores(config: DiagnoseConfig, done: Mapping[str, Path]) -> list[TokenScores]:
    """Return the scores of all traces, in their order."""
    paths = [done[f"scores/{cell.name}"] / "scores.safetensors" for cell in cells(config)]
    return [scores for path in paths for scores in _load_scores(path)]


def load_alternatives(config: DiagnoseConfig, done: Mapping[str, Path]) -> list[Alternatives]:
    """Return the alternatives of all cells as one finding; none in a study of an older version."""
    folders = [(unit, done[f"scores/{unit.partition('/')[2]}"] / "alternatives") for unit in trace_units(config)]
    if not all(folder.exists() for _, folder in folders):
        return []
    n_traces = [len(read_traces(done[unit] / "traces.parquet")) for unit, _ in folders]
    return [Alternatives.joined([Alternatives.load(folder) for _, folder in folders], n_traces)]


def load_evidence(done: Mapping[str, Path]) -> list[HeadEvidence]:
    """Return the evidence for heads at every error type that has some, in the order of the key types."""
    units = [evidence_unit(head_unit(*key)) for key in key_types(done)]
    return [HeadEvidence.load(done[unit]) for unit in units if unit in done]


def load_token_strs(config: DiagnoseConfig, done: Mapping[str, Path]) -> dict[int, str]:
    """Return the text of each token id that occurs in a trace."""
    read = [read_json(done[unit] / "token_strs.json") for unit in trace_units(config)]
    return {int(i): text for texts in read for i, text in texts.items()}


def _locate(bench: Bench, traces: Sequence[Trace], task: str, kind: str) -> RoleFinding:
    """Locate heads on every other context and check the best of them on the rest."""
    config = bench.config
    wrong = erroneous_contexts(bench.tokenizer, traces, task, kind, 2 * config.n_contexts)
    if len(wrong) < config.min_errors:
        raise BadInput(f"only {len(wrong)} contexts, fewer than {config.min_errors}")
    right = correct_contexts(traces, wrong, 2 * config.n_contexts)
    holds_out = min(len(wrong), len(right)) >= 2 * config.min_errors
    chosen, rest = (slice(0, None, 2), slice(1, None, 2)) if holds_out else (slice(None), slice(0, 0))
    roles = head_roles(bench.model, right.take(chosen), wrong.take(chosen))
    check = check_head(bench.model, right.take(rest), wrong.take(rest), roles.best_head) if holds_out else None
    return RoleFinding.of(task, kind, roles, check)


def _save_scores(path: Path, scores: Sequence[TokenScores]) -> None:
    save_file(
        {
            "logprob": torch.cat([s.logprob for s in scores]),
            "entropy": torch.cat([s.entropy for s in scores]),
            "argmax": torch.cat([s.argmax for s in scores]),
            "n_tokens": torch.tensor([len(s.logprob) for s in scores]),
        },
        path,
    )


def _load_scores(path: Path) -> list[TokenScores]:
    try:
        read = load_file(path)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{path} is missing or damaged: {error}") from error
    if {"logprob", "entropy", "argmax", "n_tokens"} - read.keys():
        raise BadInput(f"{path} holds no token scores.")
    lengths = read["n_tokens"].tolist()
    columns = [read[name].tensor_split(list(accumulate(lengths))[:-1]) for name in ("logprob", "entropy", "argmax")]
    return [TokenScores(*parts) for parts in zip(*columns, strict=True)]
