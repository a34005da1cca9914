"""Decoding problems for `generate` and `evaluate`: from options to traces, in memory or into a file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from chainwright._errors import BadInput
from chainwright.cli import _parse
from chainwright.cli._asking import asking_of
from chainwright.cli._command import ConfigOptions, Values
from chainwright.cli._problems import problem_source
from chainwright.cli._shared import load_repairs, print_cost, say
from chainwright.cli._source import load

if TYPE_CHECKING:
    from chainwright.studies.config import DecodeSettings
    from chainwright.tasks import Problem
    from chainwright.traces import Trace

DECODING = ConfigOptions(
    "chainwright.studies.config:DecodeSettings",
    "seed",
    "n_samples",
    "sampling",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "stop",
    "max_new_tokens",
    "max_thinking_tokens",
    "batch_size",
    flags={"n_samples": "--samples", "temperature": "--temperature"},
)


@dataclass(frozen=True)
class Asked:
    """What is decoded: problems of tasks or of a set, or one prompt.

    Attributes:
        task: Tasks, None for the command's own default.
        usual: That default.
        hops: Hop counts.
        n: Problems per task and hop count, or of the set; None takes `usual_n` of tasks and all of a set.
        usual_n: Problems of tasks by default.
        rendering: Wording of the tasks' problems.
        problems: Options of a problem set.
        asking: Options on how problems are asked.
        prompt: A prompt instead of problems.
        raw: Ask with the prompt as it is.
        markers: The pair of markers around the thinking.
    """

    task: str | None
    usual: str
    hops: str | None
    n: int | None
    usual_n: int
    rendering: str
    problems: Values
    asking: Values
    prompt: str | None = None
    raw: bool = False
    markers: tuple[str, str] | None = None


class Chosen(NamedTuple):
    """The problems or prompts to decode, what demonstrations are chosen from, and what identifies them."""

    asked: Sequence[Problem | str]
    pool: Sequence[Problem]
    identity: dict[str, Any]


def choose(asked: Asked, model: str, seed: int) -> Chosen:
    """Return what is decoded.

    Raises:
        BadInput: Two kinds of problems at once, or problems that are not to be had.
    """
    from chainwright.prompts.rendering import rendering_for
    from chainwright.tasks.cells import choose_cells, sample_cells

    source = problem_source(asked.problems, n=asked.n)
    if asked.prompt is not None:
        _check_single(asked, "--prompt", is_set=source is not None)
        return Chosen([asked.prompt], (), {"asked": asked.prompt, "n": asked.n or asked.usual_n, "rendering": "auto"})
    if source is not None:
        _check_single(asked, "--problems", is_set=False)
        return _of_set(source)
    rendering = rendering_for(asked.rendering, model)
    cells = choose_cells(asked.task or asked.usual, asked.hops, rendering)
    n = asked.usual_n if asked.n is None else asked.n
    problems = sample_cells(cells, n, seed, rendering)
    return Chosen(problems, (), {"asked": cells, "n": n, "rendering": rendering})


def _check_single(asked: Asked, flag: str, *, is_set: bool) -> None:
    others = {"--problems": is_set, "--task": asked.task is not None, "--hops": asked.hops is not None}
    if used := [name for name, is_used in others.items() if is_used]:
        raise BadInput(f"{flag} and {used[0]} both say what is asked; pass only one of them.")


def _of_set(source: Any) -> Chosen:
    from chainwright.studies.asked import identity_of_set

    found = source.load()
    for bad in found.bad_records:
        say(f"Skipped {bad.place}: {bad.reason}")
    if not found.problems:
        raise BadInput(f"There are no problems in {source.source}; name a file or split that has some.")
    whole = source.replace(n=None, seed=None).load() if source.n is not None else found
    identity = {"asked": source.source, "n": len(found.problems), "rendering": "natural", "problems": found.sha256}
    identity |= identity_of_set(source)
    return Chosen(found.problems, whole.problems, identity)


def decode(
    model: str,
    source: Values,
    asked: Asked,
    decoding: Values,
    repair: Sequence[str],
    out_file: Path | None,
    *,
    overwrite: bool,
    quiet: bool,
) -> list[Trace]:
    """Return the traces that the options ask for; say how they were asked, what a repair cost, and what was written."""
    from chainwright.prompts.describe import describe
    from chainwright.studies import generation

    settings = settings_of(decoding)
    asking = asking_of(asked.asking, raw=asked.raw)
    _parse.check_trace_file(out_file, overwrite)
    chosen = choose(asked, model, settings.seed)
    fixed = load_repairs(repair)
    loaded = load(model, source)
    chosen_by = {"model": model, **chosen.identity, "repair": _identity(repair)}
    plan = generation.TracesPlan(
        loaded.model,
        loaded.tokenizer,
        chosen.asked,
        settings,
        fixed,
        chosen_by,
        asking=asking,
        pool=chosen.pool or None,
        markers=asked.markers,
    )
    if out_file is None:
        traces = generation.decode_in_memory(plan, progress=not quiet)
    else:
        traces = generation.generate_to(out_file, plan, overwrite=overwrite, progress=not quiet)
        say(f"Wrote {len(traces)} traces to {out_file}")
    say(describe(traces))
    print_cost(plan.cost)
    return traces


def settings_of(decoding: Values) -> DecodeSettings:
    """Return how traces are decoded, as the options of `DECODING` say."""
    from chainwright.studies.config import DecodeSettings

    return DecodeSettings(**{**decoding, "stop": _unescaped(decoding["stop"] or ()) or None})


def _unescaped(texts: Sequence[str]) -> list[str]:
    r"""Return texts in which \n is a line end and \t a tab, since a shell passes them as two characters each."""
    marks = {"n": "\n", "t": "\t", "\\": "\\"}
    return [re.sub(r"\\([nt\\])", lambda match: marks[match[1]], text) for text in texts]


def _identity(repairs: Sequence[str]) -> str | list[str | None] | None:
    """Return what identifies the repairs of a trace file, that of a single one as it always was."""
    from chainwright.studies.generation import identity_of

    return [identity_of(name) for name in repairs] if len(repairs) > 1 else identity_of(next(iter(repairs), None))
