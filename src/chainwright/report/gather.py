"""What a report is made from: findings alone, findings with traces, or a diagnosis, which has both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath

from chainwright._errors import BadInput
from chainwright._finding import Finding
from chainwright.figures.words import counted
from chainwright.report.readings import token_texts
from chainwright.report.section import Material, Origin
from chainwright.scoring import TokenScores
from chainwright.studies.diagnosis.plan import KIND, Diagnosis
from chainwright.studies.diagnosis.toml import study_file_text
from chainwright.studies.manifest import Manifest
from chainwright.traces import Trace
from chainwright.traces.offsets import Tokenizer

STUDY_FILE = "study.toml"


def gather(
    findings: Sequence[Finding] | Finding,
    *,
    traces: Sequence[Trace] = (),
    scores: Sequence[TokenScores] | None = None,
    tokenizer: Tokenizer | None = None,
    title: str | None = None,
    origin: Origin | None = None,
) -> Material:
    """Return the material of a report; see `write_report`.

    Raises:
        BadInput: Something else than findings, none of them, or other numbers of scores than of traces.
    """
    if isinstance(findings, Diagnosis) and not traces:
        return _of_diagnosis(findings, title)
    held = [findings] if isinstance(findings, Finding) else list(findings)
    if strangers := sorted({type(item).__name__ for item in held if not isinstance(item, Finding)}):
        raise BadInput(
            f"A report is made from findings; got {', '.join(strangers)}. Pass what an instrument such as `evaluate` "
            "returned, and traces as traces=."
        )
    if not held:
        raise BadInput("A report needs at least one finding; got none.")
    if scores is not None and len(scores) != len(traces):
        raise BadInput(f"A report needs one score per trace; got {len(scores)} scores and {len(traces)} traces.")
    return Material(
        held,
        traces=traces,
        scores=scores,
        token_strs=[token_texts(trace, tokenizer) for trace in traces],
        has_tokens=tokenizer is not None or not traces,
        origin=origin,
        title=title or "",
    )


def _of_diagnosis(diagnosis: Diagnosis, title: str | None) -> Material:
    return Material(
        list(diagnosis),
        traces=diagnosis.traces,
        scores=diagnosis.scores,
        token_strs=diagnosis.token_strs,
        origin=_origin_of_diagnosis(diagnosis),
        title=title or "",
    )


def _origin_of_diagnosis(diagnosis: Diagnosis) -> Origin:
    source, config = diagnosis.provenance, diagnosis.config
    revision = f"revision {source['revision']}" if source.get("revision") else ""
    facts = [
        revision,
        *_model_facts(source),
        *_asked(diagnosis),
        *_versions(source, ("chainwright", "torch", "transformers")),
    ]
    return Origin(
        kind=KIND,
        is_diagnosis=True,
        model=_called(config.model),
        facts=[fact for fact in facts if fact],
        config=config.record(),
        file=study_file_text(config),
        again=f"chainwright study run {STUDY_FILE}",
        skipped=diagnosis.skipped,
        notes=diagnosis.notes.get("notes", []),
        written_by=None if config.traces is None else diagnosis.notes.get("writers", []),
        searched_heads=config.searches_heads,
    )


def _called(model: str) -> str:
    """Return what a model is called: the name of its folder where that was named with its whole path."""
    return PurePath(model).name if model.startswith(("/", ".", "~")) else model


def _asked(diagnosis: Diagnosis) -> list[str]:
    """Return short facts on what was asked and how it was answered."""
    config, notes = diagnosis.config, diagnosis.notes
    if config.traces is not None:
        return [f"{counted(int(notes['n']), 'trace')} of {notes['name']}"]
    drawing = config.drawing
    warm = "the checkpoint's sampling" if drawing.temperature is None else f"temperature {drawing.temperature:g}"
    drawn = "greedy" if drawing.temperature == 0 else warm
    seeds = f"seed{'s' if len(config.seeds) > 1 else ''} {', '.join(map(str, config.seeds))}"
    if config.hops:
        return [f"{counted(config.n, 'problem')} per cell, {config.rendering} rendering, {drawn}, {seeds}"]
    samples = f", {drawing.n_samples} responses each" if drawing.n_samples > 1 else ""
    shots = "" if config.asking is None or not config.asking.n_shots else f", {config.asking.n_shots} demonstrations"
    return [f"{counted(int(notes['n']), 'problem')} of {notes['name']}{samples}{shots}, {drawn}, {seeds}"]


def origin_of_study(manifest: Manifest) -> Origin:
    """Return how a report presents the study that a `study.json` describes."""
    source = manifest.model
    facts = [
        *_model_facts(source),
        *_versions(source, ("torch", "transformers")),
        f"chainwright {manifest.chainwright}",
    ]
    return Origin(
        kind=manifest.kind,
        model=source.get("model", ""),
        facts=[fact for fact in facts if fact],
        config=manifest.config,
        again=manifest.again.replace("{folder}", "FOLDER"),
    )


def _model_facts(source: Mapping[str, str]) -> list[str]:
    return [source.get(key, "") for key in ("model_type", "shape", "dtype")]


def _versions(source: Mapping[str, str], packages: Sequence[str]) -> list[str]:
    return [f"{name} {source[name]}" for name in packages if name in source]
