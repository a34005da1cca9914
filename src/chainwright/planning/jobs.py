"""The jobs that are planned, each made of parts: what runs one after the other, and what must fit at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from chainwright.diagnose.pivots.config import PivotConfig
from chainwright.diagnose.pivots.estimate import USUAL
from chainwright.planning.devices import Device
from chainwright.planning.parts import (
    Contexts,
    Part,
    Setting,
    Texts,
    answering,
    bridging,
    continuing,
    knocking,
    locating,
    mapping,
    reading_back,
    scoring,
    teaching,
)
from chainwright.planning.work import Passes
from chainwright.planning.workload import Workload
from chainwright.repair.back_attention.training import AnswerTraining
from chainwright.repair.tcr.config import CandidateConfig
from chainwright.studies.diagnosis.config import DiagnoseConfig

MAP_TOKENS = 16384
_TOKENS_A_STEP = 24
_TYPES_A_TASK = 2  # key error types that heads are located at
_SHARE_OF_POOL, _LEAST_OF_POOL = 0.02, 3  # heads of one type, as `RolesConfig` counts them
_QUESTION, _ANSWER = 24, 3  # tokens of a question that back attention is trained on, and of its answer


class Asked(NamedTuple):
    """What jobs are planned for.

    Attributes:
        work: The problems.
        diagnosis: Sizes of the diagnosis.
        map_tokens: Tokens of a trace with a step map.
        n_pivots: Responses that are searched for pivots.
    """

    work: Workload
    diagnosis: DiagnoseConfig
    map_tokens: int = MAP_TOKENS
    n_pivots: int = 70


Job = Callable[[Passes, Asked, Device, Setting], list[Part]]


def diagnosing(passes: Passes, asked: Asked, on: Device, setting: Setting) -> list[Part]:
    """Return the parts of `chainwright diagnose` of tasks."""
    config, texts = asked.diagnosis, asked.work.texts
    located = [_contexts(asked.work, task, config.n_contexts) for task in asked.work.tasks]
    heads = [locating(passes, each, on, setting) for each in located]
    evidence = [knocking(passes, each._replace(n=2 * each.n), config.n_evidence + 1.5, on) for each in located]
    return [
        answering(passes, texts, on, setting),
        scoring(passes, texts, on),
        _repeated(heads, config.max_types),
        _repeated(evidence, config.max_types),
    ]


def _contexts(work: Workload, task: str, n: int) -> Contexts:
    """Return the right and wrong contexts at one error type of a task: prompts, and answers up to their middle."""
    cells = [cell for cell in work.texts if cell.task == task]
    length = sum(cell.prompt + cell.answer // 2 for cell in cells) // len(cells)
    return Contexts(2 * n, length, min(cell.shared for cell in cells))


def _repeated(parts: list[Part], n: int) -> Part:
    return Part(parts[0].name, n * sum(part.seconds for part in parts), max(part.bytes for part in parts))


def pivots(passes: Passes, asked: Asked, on: Device, setting: Setting) -> list[Part]:
    """Return the parts of a search for pivots in as many responses."""
    config, texts = PivotConfig(), asked.work.texts
    mean = Texts(
        "",
        asked.n_pivots,
        round(sum(cell.prompt for cell in texts) / len(texts)),
        round(sum(cell.answer for cell in texts) / len(texts)),
        round(sum(cell.limit for cell in texts) / len(texts)),
    )
    each = USUAL + config.n_alternatives * config.n_per_alternative
    return [
        answering(passes, [mean], on, setting, n_samples=config.n_samples, name="pass rates"),
        continuing(passes, mean.prompt, mean.answer, asked.n_pivots * each, on, setting),
    ]


def fitting_tcr(passes: Passes, asked: Asked, on: Device, setting: Setting) -> list[Part]:
    """Return the parts of `chainwright fit tcr`; training its small networks is not counted."""
    config, texts, s = CandidateConfig(), asked.work.fitting, passes.shape
    work = Workload(texts, texts)
    heads = [locating(passes, _contexts(work, task, config.n_contexts), on, setting) for task in work.tasks]
    n_each = max(_LEAST_OF_POOL, round(_SHARE_OF_POOL * s.n_layers * s.n_heads))
    pool = min(s.n_layers * s.n_heads, n_each * _TYPES_A_TASK * len(work.tasks))
    n = sum(cell.n for cell in texts)
    counted = [cell._replace(n=max(1, round(cell.n * min(1.0, config.n_lessons / n)))) for cell in texts]
    return [
        answering(passes, texts, on, setting),
        _repeated(heads, _TYPES_A_TASK),
        teaching(passes, counted, pool, on, name="choosing heads"),
        teaching(passes, texts, config.max_heads, on, name="chains without heads"),
    ]


def step_maps(passes: Passes, asked: Asked, on: Device, setting: Setting) -> list[Part]:
    """Return the part of the step maps of a diagnosis, of long traces."""
    n = 2 * asked.diagnosis.n_maps
    return [mapping(passes, n, asked.map_tokens, asked.map_tokens // _TOKENS_A_STEP, on, setting)]


def stepflow(passes: Passes, asked: Asked, on: Device, setting: Setting) -> list[Part]:
    """Return the part of answering the problems with StepFlow."""
    return [bridging(passes, asked.work.texts, on, setting)]


def back_attention(passes: Passes, asked: Asked, on: Device, setting: Setting) -> list[Part]:
    """Return the part of fitting back attention with its usual training."""
    config = AnswerTraining()
    size = setting.batch_size or config.batch_size
    # fewer rows per step need as many more steps to see as many
    n_steps = round(config.n_steps * config.batch_size / size)
    return [
        reading_back(passes, n_steps, _QUESTION + _ANSWER, _ANSWER, 1.0, on, setting._replace(batch_size=size)),
    ]


JOBS: Mapping[str, Job] = {
    "diagnosing": diagnosing,
    "pivots": pivots,
    "fitting TCR": fitting_tcr,
    "step maps": step_maps,
    "StepFlow": stepflow,
    "back attention": back_attention,
}
