"""The instruments of a diagnosis: each lists its units and computes them.

    traces/<part>                 the traces of a cell of a task or of 64 problems, and the text of each of their tokens
    accuracy                      accuracy by task and hops, over all seeds
    scores/<part>                 log-probability and entropy of each token of them, and the likeliest alternatives
    errors                        first errors, with entropies
    curves                        entropy and log-probability along responses, right against wrong
    heads/<task>-<type>           head roles of a key error type, and what the best head does on held-out contexts
    evidence/<task>-<type>        what the model predicts at those errors with each of the outstanding heads ablated

An instrument lists units only when what they read is finished.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from chainwright import tasks
from chainwright._errors import BadInput, UnsupportedModel
from chainwright._files import read_json, write_json
from chainwright._finding import Finding
from chainwright._registry import load, register
from chainwright.diagnose.contexts import correct_contexts, erroneous_contexts
from chainwright.diagnose.curves import Curves, curves
from chainwright.diagnose.errors import ErrorTable, first_errors
from chainwright.diagnose.heads.evidence import HeadEvidence, head_evidence
from chainwright.diagnose.heads.role_sweep import RolesConfig
from chainwright.diagnose.heads.roles import RoleFinding, check_head, head_roles
from chainwright.diagnose.other_tokens import Alternatives, score_with_alternatives
from chainwright.engines.base import Engine
from chainwright.evaluation.accuracy import Accuracy, evaluate
from chainwright.scoring import TokenScores
from chainwright.studies.diagnosis.base import Bench, Instrument
from chainwright.studies.diagnosis.by_engine import engine_check, engine_part, open_engine
from chainwright.studies.diagnosis.config import DiagnoseConfig
from chainwright.studies.diagnosis.decoding import decode_part
from chainwright.studies.diagnosis.parts import (
    NOTHING,
    Slice,
    load_part,
    load_traces,
    part_of,
    parts,
    trace_units,
)
from chainwright.studies.diagnosis.sources import source_file
from chainwright.studies.plan import Job, Results, Skip
from chainwright.traces import Trace, read_traces, write_traces

__all__ = [
    "Bench",
    "Instrument",
    "decode_part",
    "have_scores",
    "have_traces",
    "load_scores",
    "load_traces",
    "trace_units",
]


class Traces(Instrument):
    """Lets the model answer, or takes the traces of files; part of every diagnosis."""

    name, groups, order = "traces", ("traces",), 10

    def __init__(self) -> None:
        self._engine: Engine | None = None

    def is_asked(self, config: DiagnoseConfig) -> bool:
        """Return True: everything else reads the traces."""
        return True

    def units(self, config: DiagnoseConfig, done: Results) -> list[str]:
        """Return one unit per part, once it is known how many there are."""
        return trace_units(config, done)

    def compute(self, bench: Bench, job: Job) -> None:
        """Write the traces of a part, and the text of each token id in them."""
        part = part_of(bench.config, job.unit)
        is_read = bench.config.traces is not None and isinstance(part, Slice)
        if is_read:
            found = read_traces(source_file(part, job.done))  # type: ignore[arg-type]
        elif bench.config.engine is not None:
            self._engine = self._engine or open_engine(bench)
            found = engine_part(bench, self._engine, part, job)
        else:
            found = decode_part(bench, part, job)
        write_traces(job.out / "traces.parquet", found)
        known = sorted({int(i) for trace in found for i in trace.input_ids})
        texts = {str(i): bench.tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in known}
        write_json(job.out / "token_strs.json", texts)

    def title(self, config: DiagnoseConfig, unit: str) -> str:
        """Return a title such as "Parity-NL, 12 hops: 40 problems"."""
        part = part_of(config, unit)
        if isinstance(part, Slice):
            return f"{'Answers to' if config.traces is None else 'Taking'} {part.title}"
        seed = f", seed {part.seed}" if len(config.seeds) > 1 else ""
        return f"{part.title}{seed}: {config.n} problems"

    def findings(self, config: DiagnoseConfig, done: Results) -> list[Finding]:
        """Return the `EngineCheck` where an engine wrote the traces."""
        return [] if config.engine is None else [engine_check(config, done)]


@register("instrument", "accuracy")
class AccuracyOf(Instrument):
    """Accuracy by task and hops, from the traces alone."""

    name, groups, order = "accuracy", ("accuracy",), 20

    def units(self, config: DiagnoseConfig, done: Results) -> list[str]:
        """Return its one unit once all traces are there."""
        return ["accuracy"] if have_traces(config, done) else []

    def compute(self, bench: Bench, job: Job) -> None:
        """Save the `Accuracy` of all traces that were judged."""
        traces = load_traces(bench.config, job.done)
        judged = [trace for trace in traces if trace.is_correct is not None]
        if not judged:
            raise Skip(
                "no response was judged, so it is unknown which are right; name the problems with --problems, or a "
                "field that holds the answers"
            )
        evaluate(judged).save(job.out)

    def title(self, config: DiagnoseConfig, unit: str) -> str:
        """Return "Accuracy by task and hops", or "Accuracy" of a problem set."""
        return "Accuracy by task and hops" if config.hops else "Accuracy"

    def findings(self, config: DiagnoseConfig, done: Results) -> list[Finding]:
        """Return the `Accuracy`; none if nothing was judged."""
        return [Accuracy.load(done["accuracy"])] if "accuracy" in done else []


class Scores(Instrument):
    """How sure the model was at every token, and which others it thought of; computed for instruments that need it."""

    name, groups, order = "scores", ("scores",), 28

    def is_asked(self, config: DiagnoseConfig) -> bool:
        """Return whether an instrument that was asked for reads the scores."""
        return any("scores" in load("instrument", name).needs for name in config.instruments)

    def units(self, config: DiagnoseConfig, done: Results) -> list[str]:
        """Return one unit per part."""
        return score_units(config, done) if have_traces(config, done) else []

    def compute(self, bench: Bench, job: Job) -> None:
        """Save the scores and alternatives of a part's traces."""
        traces = load_part(part_of(bench.config, job.unit), job.done)
        scores, others = score_with_alternatives(bench.model, bench.tokenizer, traces)
        _save_scores(job.out / "scores.safetensors", scores)
        others.save(job.out / "alternatives")

    def title(self, config: DiagnoseConfig, unit: str) -> str:
        """Return which tokens are scored."""
        return f"Scoring every token: {part_of(config, unit).title}"

    def findings(self, config: DiagnoseConfig, done: Results) -> list[Finding]:
        """Return the `Alternatives` if the study has them."""
        return list(load_alternatives(config, done))


@register("instrument", "errors")
class Errors(Instrument):
    """First errors, and how sure the model was at them."""

    name, needs, groups, order = "errors", ("scores",), ("errors",), 30

    def units(self, config: DiagnoseConfig, done: Results) -> list[str]:
        """Return its one unit once every token is scored."""
        return ["errors"] if have_scores(config, done) else []

    def compute(self, bench: Bench, job: Job) -> None:
        """Save the `ErrorTable`."""
        first_errors(load_traces(bench.config, job.done), load_scores(bench.config, job.done)).save(job.out)

    def title(self, config: DiagnoseConfig, unit: str) -> str:
        """Return "First errors"."""
        return "First errors"

    def findings(self, config: DiagnoseConfig, done: Results) -> list[Finding]:
        """Return the `ErrorTable`."""
        return [ErrorTable.load(done["errors"])]


@register("instrument", "curves")
class CurvesOf(Instrument):
    """Entropy and log-probability along responses, right ones against wrong ones; usual where there are no slots."""

    name, needs, groups, order = "curves", ("scores",), ("curves",), 35

    def units(self, config: DiagnoseConfig, done: Results) -> list[str]:
        """Return its one unit once every token is scored."""
        return ["curves"] if have_scores(config, done) else []

    def compute(self, bench: Bench, job: Job) -> None:
        """Save the `Curves`."""
        traces, scores = load_traces(bench.config, job.done), load_scores(bench.config, job.done)
        curves(traces, scores, bench.tokenizer).save(job.out)

    def title(self, config: DiagnoseConfig, unit: str) -> str:
        """Return what is compared."""
        return "How sure the model was, right answers against wrong ones"

    def findings(self, config: DiagnoseConfig, done: Results) -> list[Finding]:
        """Return the `Curves`."""
        return [Curves.load(done["curves"])]


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
        n_heads = bench.config.n_evidence
        head_evidence(bench.model, bench.tokenizer, traces, found, n=n, n_heads=n_heads).save(job.out)

    def _roles(self, bench: Bench, job: Job, task: str, kind: str) -> None:
        config, traces = bench.config, load_traces(bench.config, job.done)
        kinds = [k for t, k in key_types(job.done) if t == task]
        # a more frequent type with too few contexts leaves its place to the next; no unit waits for another
        more_frequent = kinds[: kinds.index(kind)]
        if sum(_has_contexts(bench, traces, task, k) for k in more_frequent) >= config.max_types:
            raise Skip(f"more than {config.max_types} key types")
        try:
            found = _locate(bench, traces, task, kind, job.tick)
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


def have_traces(config: DiagnoseConfig, done: Results) -> bool:
    """Return whether all traces are there."""
    units = trace_units(config, done)
    return bool(units) and done.are_finished(units)


def have_scores(config: DiagnoseConfig, done: Results) -> bool:
    """Return whether every token of all traces is scored."""
    return have_traces(config, done) and done.are_finished(score_units(config, done))


def score_units(config: DiagnoseConfig, done: Mapping[str, Path] = NOTHING) -> list[str]:
    """Return the ids of the units that hold scores, in the order of the parts."""
    return [f"scores/{part.name}" for part in parts(config, done)]


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


def load_scores(config: DiagnoseConfig, done: Mapping[str, Path]) -> list[TokenScores]:
    """Return the scores of all traces, in their order."""
    paths = [done[unit] / "scores.safetensors" for unit in score_units(config, done)]
    return [scores for path in paths for scores in _load_scores(path)]


def load_alternatives(config: DiagnoseConfig, done: Mapping[str, Path]) -> list[Alternatives]:
    """Return the alternatives of all parts as one finding; none in a study of an older version."""
    folders = [done[unit] / "alternatives" for unit in score_units(config, done)]
    if not all(folder.exists() for folder in folders):
        return []
    n_traces = [len(load_part(part, done)) for part in parts(config, done)]
    return [Alternatives.joined([Alternatives.load(folder) for folder in folders], n_traces)]


def load_evidence(done: Mapping[str, Path]) -> list[HeadEvidence]:
    """Return the evidence for heads at every error type that has some, in the order of the key types."""
    units = [evidence_unit(head_unit(*key)) for key in key_types(done)]
    return [HeadEvidence.load(done[unit]) for unit in units if unit in done]


def load_token_strs(config: DiagnoseConfig, done: Mapping[str, Path]) -> dict[int, str]:
    """Return the text of each token id that occurs in a trace."""
    read = [read_json(done[unit] / "token_strs.json") for unit in trace_units(config, done)]
    return {int(i): text for texts in read for i, text in texts.items()}


def _has_contexts(bench: Bench, traces: Sequence[Trace], task: str, kind: str) -> bool:
    """Return whether an error type has the fewest contexts that heads are searched on."""
    n = bench.config.min_errors
    try:
        return len(erroneous_contexts(bench.tokenizer, traces, task, kind, n)) >= n
    except BadInput:  # there is none
        return False


def _locate(
    bench: Bench, traces: Sequence[Trace], task: str, kind: str, tick: Callable[[int, int], None]
) -> RoleFinding:
    """Locate heads on every other context and check the best of them on the rest."""
    config = bench.config
    wrong = erroneous_contexts(bench.tokenizer, traces, task, kind, 2 * config.n_contexts)
    if len(wrong) < config.min_errors:
        raise BadInput(f"only {len(wrong)} contexts, fewer than {config.min_errors}")
    right = correct_contexts(traces, wrong, 2 * config.n_contexts)
    holds_out = min(len(wrong), len(right)) >= 2 * config.min_errors
    chosen, rest = (slice(0, None, 2), slice(1, None, 2)) if holds_out else (slice(None), slice(0, 0))
    how = RolesConfig(measured=config.measured)
    roles = head_roles(
        bench.model, right.take(chosen), wrong.take(chosen), config=how, tick=tick, max_bytes=config.sweep_bytes
    )
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
