"""One investigation as a folder: problems, traces, findings, each written once and found again after a kill.

    <folder>/study.json            config and provenance
    <folder>/traces/<cell>.parquet one file a (task, hops) cell, written when the cell is done
    <folder>/accuracy, errors      findings
    <folder>/roles/<task>-<type>   head roles of each key error type
    <folder>/scores.safetensors    what the model gave each token of each trace
    <folder>/token_strs.json       the text of each token id that stands in a trace

A run that was killed or interrupted goes on where it stopped when it is started again with the same config.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedTokenizerBase

from chainwright import tasks
from chainwright._errors import BadInput, UnsupportedModel, unknown_name
from chainwright._files import atomic_file, read_json, write_json
from chainwright._study_folder import check_version, finish, open_folder, read_state
from chainwright._summary import summary_lines
from chainwright.decode import TokenScores, generate, score_all
from chainwright.diagnose import (
    ErrorTable,
    HeadCheck,
    HeadRoles,
    RoleFinding,
    check_head,
    correct_contexts,
    erroneous_contexts,
    first_errors,
    head_roles,
)
from chainwright.evaluation import Accuracy, evaluate
from chainwright.models import provenance
from chainwright.models.anatomy import anatomy
from chainwright.traces import Trace, read_traces, write_traces

Report = Callable[[str], None]
_TOKEN_STRS = "token_strs.json"


@dataclass(frozen=True)
class DiagnoseConfig:
    """Everything that a diagnosis depends on besides the model's weights.

    Attributes:
        model: Name, folder or Hub id, as it was asked for.
        hops: The hop counts of each task.
        n: Problems a (task, hops) cell.
        rendering: "short" for models trained by Chainwright, "natural" for instruction models.
        n_contexts: Contexts a set when heads are located.
        min_errors: A key error type with fewer known first errors is not searched for heads.
        max_types: Key error types a task that are searched.

    Raises:
        BadInput: No hops, an unknown task, or a number that is too small.
    """

    model: str
    hops: Mapping[str, Sequence[int]]
    n: int = 40
    seed: int = 0
    rendering: tasks.Rendering = "short"
    n_contexts: int = 16
    min_errors: int = 5
    max_types: int = 2
    temperature: float = 0.0
    max_new_tokens: int | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        """Refuse what could not be run, before anything is."""
        if unknown := [task for task in self.hops if task not in tasks.names()]:
            raise unknown_name("task", unknown[0], tasks.names())
        if not self.cells():
            raise BadInput("No hops were asked for; a diagnosis needs at least one hop count of one task.")
        for name, least in (("n", 1), ("n_contexts", 1), ("min_errors", 1), ("max_types", 0)):
            if getattr(self, name) < least:
                raise BadInput(f"{name} must be at least {least}; got {getattr(self, name)}.")

    def record(self) -> dict[str, Any]:
        """Return the config as plain JSON values."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def cells(self) -> list[tuple[str, int]]:
        """Return every (task, hops), tasks in their usual order."""
        return [(task, int(h)) for task in tasks.names() if task in self.hops for h in sorted(set(self.hops[task]))]


@dataclass(frozen=True)
class Diagnosis:
    """What a diagnosis found, in memory.

    Attributes:
        traces: All traces, cell by cell.
        scores: Token scores of each trace, in the same order.
        token_strs: The text of each token of each trace.
        skipped: Key error types that were not searched for heads, and why.
    """

    config: DiagnoseConfig
    provenance: Mapping[str, str]
    traces: list[Trace]
    scores: list[TokenScores]
    token_strs: list[list[str]]
    accuracy: Accuracy
    errors: ErrorTable
    roles: list[RoleFinding]
    skipped: list[str] = field(default_factory=list)

    def summary(self) -> list[str]:
        """Return five lines in words: where it fails, of which kind, how sure it was, which heads, what to try."""
        return summary_lines(self.accuracy, self.errors, self.roles)


def run_diagnosis(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    config: DiagnoseConfig,
    folder: str | Path,
    *,
    overwrite: bool = False,
    progress: bool = True,
    say: Report = lambda line: None,
) -> Diagnosis:
    """Generate, find the first errors, locate the heads, and write everything to `folder`.

    Args:
        model: A Transformers decoder.
        tokenizer: Its tokenizer.
        config: What to ask.
        folder: Where to write. A folder with an unfinished run of the same config is gone on with.
        overwrite: Replace a finished run, or one of another config.
        progress: Show progress bars.
        say: Called with a line at each stage.

    Raises:
        BadInput: The folder holds something else, the disk is full, or the config asks for what does not
            exist.
    """
    folder = Path(folder)
    problems = {cell: tasks.sample(*cell, config.n, config.seed, rendering=config.rendering) for cell in config.cells()}
    open_folder(folder, config.record(), provenance(anatomy(model).model), overwrite)
    traces = _all_traces(model, tokenizer, config, folder, problems, progress, say)
    say("Scoring every token of every trace")
    scores = score_all(model, traces)
    _save_scores(folder / "scores.safetensors", scores)
    token_strs = _token_strs(tokenizer, traces)
    write_json(folder / _TOKEN_STRS, {str(token): text for token, text in token_strs.items()})
    accuracy, errors = evaluate(traces), first_errors(traces, scores)
    accuracy.save(folder / "accuracy", overwrite=True)
    errors.save(folder / "errors", overwrite=True)
    roles, skipped = _all_roles(model, tokenizer, config, folder, traces, errors, say)
    state = finish(folder, skipped)
    return Diagnosis(
        config,
        state["provenance"],
        traces,
        scores,
        _texts(token_strs, traces),
        accuracy,
        errors,
        roles,
        skipped,
    )


def _all_traces(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    config: DiagnoseConfig,
    folder: Path,
    problems: Mapping[tuple[str, int], list[tasks.Problem]],
    progress: bool,
    say: Report,
) -> list[Trace]:
    traces: list[Trace] = []
    for i, ((task, hops), cell) in enumerate(problems.items()):
        path = folder / "traces" / f"{task}-{hops:03d}.parquet"
        if path.exists():
            found = read_traces(path)
        else:
            say(f"[{i + 1}/{len(problems)}] {tasks.title(task)}, {hops} hops: {len(cell)} problems")
            found = generate(
                model,
                tokenizer,
                cell,
                max_new_tokens=config.max_new_tokens,
                batch_size=config.batch_size,
                temperature=config.temperature,
                seed=config.seed,
                progress=progress,
            )
            path.parent.mkdir(exist_ok=True)
            write_traces(path, found)
        traces.extend(found)
    return traces


def _role_path(folder: Path, task: str, kind: str) -> Path:
    return folder / "roles" / f"{task}-{kind.replace(' ', '-')}"


def _all_roles(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    config: DiagnoseConfig,
    folder: Path,
    traces: list[Trace],
    errors: ErrorTable,
    say: Report,
) -> tuple[list[RoleFinding], list[str]]:
    found: list[RoleFinding] = []
    skipped: list[str] = []
    for task, kinds in errors.key_types.items():
        skipped += [f"{task}, {kind}: more than {config.max_types} key types" for kind in kinds[config.max_types :]]
        for kind in kinds[: config.max_types]:
            path = _role_path(folder, task, kind)
            if path.exists():
                found.append(_load_role(path, task, kind))
                continue
            try:
                found.append(_one_role(model, tokenizer, config, traces, task, kind, say))
            except (BadInput, UnsupportedModel) as error:
                skipped.append(f"{task}, {kind}: {error}")
                continue
            _save_role(path, found[-1])
    return found, skipped


def _one_role(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    config: DiagnoseConfig,
    traces: list[Trace],
    task: str,
    kind: str,
    say: Report,
) -> RoleFinding:
    """Locate heads on every other context and check the best of them on the rest."""
    wrong = erroneous_contexts(tokenizer, traces, task, kind, 2 * config.n_contexts)
    if len(wrong) < config.min_errors:
        raise BadInput(f"only {len(wrong)} contexts, fewer than {config.min_errors}")
    right = correct_contexts(traces, wrong, 2 * config.n_contexts)
    holds_out = min(len(wrong), len(right)) >= 2 * config.min_errors
    chosen, rest = (slice(0, None, 2), slice(1, None, 2)) if holds_out else (slice(None), slice(0, 0))
    seen_right, seen_wrong = right.take(chosen), wrong.take(chosen)
    say(f"Heads at {tasks.title(task)}, {kind}: {len(seen_wrong)} wrong and {len(seen_right)} right contexts")
    roles = head_roles(model, seen_right, seen_wrong)
    check = check_head(model, right.take(rest), wrong.take(rest), roles.best_head) if holds_out else None
    return RoleFinding(task, kind, roles, check)


def _save_role(path: Path, found: RoleFinding) -> None:
    check = None if found.check is None else asdict(found.check)
    write_json(path.with_name(path.name + ".check.json"), check)
    found.roles.save(path)


def _load_role(path: Path, task: str, kind: str) -> RoleFinding:
    check = read_json(path.with_name(path.name + ".check.json"))
    return RoleFinding(task, kind, HeadRoles.load(path), None if check is None else HeadCheck(**check))


def _save_scores(path: Path, scores: list[TokenScores]) -> None:
    with atomic_file(path) as draft:
        save_file(
            {
                "logprob": torch.cat([s.logprob for s in scores]),
                "entropy": torch.cat([s.entropy for s in scores]),
                "argmax": torch.cat([s.argmax for s in scores]),
                "n_tokens": torch.tensor([len(s.logprob) for s in scores]),
            },
            draft,
        )


def _load_scores(path: Path) -> list[TokenScores]:
    try:
        read = load_file(path)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{path} is missing or damaged: {error}") from error
    if {"logprob", "entropy", "argmax", "n_tokens"} - read.keys():
        raise BadInput(f"{path} holds no token scores.")
    lengths = read["n_tokens"].tolist()
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    cuts = [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    return [TokenScores(read["logprob"][cut], read["entropy"][cut], read["argmax"][cut]) for cut in cuts]


def _token_strs(tokenizer: PreTrainedTokenizerBase, traces: list[Trace]) -> dict[int, str]:
    """Return the text of each token id of the traces."""
    known = sorted({int(i) for trace in traces for i in trace.input_ids})
    return {i: tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in known}


def _texts(token_strs: Mapping[int, str], traces: list[Trace]) -> list[list[str]]:
    return [[token_strs.get(int(i), "") for i in trace.input_ids] for trace in traces]


def open_diagnosis(folder: str | Path) -> Diagnosis:
    """Return a finished diagnosis from its folder; neither model nor tokenizer is needed.

    Raises:
        BadInput: No study there, an unfinished one, a newer schema, or damaged files.
    """
    folder = Path(folder)
    state = _finished(folder)
    config = study_config(folder)
    paths = [folder / "traces" / f"{task}-{hops:03d}.parquet" for task, hops in config.cells()]
    traces = [trace for path in paths for trace in read_traces(path)]
    roles = [
        _load_role(path, task, kind)
        for task, kinds in ErrorTable.load(folder / "errors").key_types.items()
        for kind in kinds
        if (path := _role_path(folder, task, kind)).exists()
    ]
    return Diagnosis(
        config,
        state["provenance"],
        traces,
        _load_scores(folder / "scores.safetensors"),
        _texts({int(i): text for i, text in read_json(folder / _TOKEN_STRS).items()}, traces),
        Accuracy.load(folder / "accuracy"),
        ErrorTable.load(folder / "errors"),
        roles,
        state.get("skipped", []),
    )


def study_config(folder: str | Path) -> DiagnoseConfig:
    """Return the config of the study in a folder.

    Raises:
        BadInput: No study there, or of a newer schema.
    """
    folder = Path(folder)
    state = read_state(folder)
    check_version(folder, state)
    try:
        return DiagnoseConfig(**state["config"])
    except (TypeError, AttributeError) as error:
        raise BadInput(f"The config of the study in {folder} is damaged: {error}.") from error


def _finished(folder: Path) -> dict[str, Any]:
    state = read_state(folder)
    check_version(folder, state)
    if not state.get("is_complete"):
        raise BadInput(
            f"The study in {folder} is not finished; run the same `chainwright diagnose` again to go on with it."
        )
    return state
