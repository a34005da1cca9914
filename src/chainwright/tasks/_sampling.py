"""Drawing problems from tasks, and writing them again from a record.

1. A problem's key is its task, hop number, seed and index; the key seeds a generator of its own.
2. The task draws facts from it and writes them as question, gold lines and answer.
3. A natural prompt puts worked examples, drawn from keys derived from the problem's, before the question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from random import Random
from typing import Any, get_args

from chainwright._errors import BadInput, unknown_name
from chainwright.checkers.patterns import STEP
from chainwright.tasks._catalogue import check_rendering, task_of
from chainwright.tasks._script import Facts, Line, Rendering, Script, Slot, Task
from chainwright.tasks.base import SCHEMA_VERSION, SET_SCHEMA_VERSION, Draw, Problem, write_chain

_MOST_HOPS_OF_EXAMPLES, _N_CANDIDATES = 4, 8


def sample(
    task: str, hops: int, n: int, seed: int = 0, *, rendering: Rendering | None = None, n_demonstrations: int = 1
) -> list[Problem]:
    """Return `n` problems of a task; the same arguments give the same problems, byte for byte.

    A problem depends on its index, not on `n`: the first five of ten are the five of five.

    Args:
        task: Name or title of the task, in any case.
        hops: Number of hops, from 1; mdm takes at most 12 (digits of the multiplier).
        n: Number of problems.
        seed: Any integer.
        rendering: "short" or "natural". None leaves it open: the problems are written in the task's first one,
            and `generate` asks them in the rendering that its model reads.
        n_demonstrations: Worked examples in front of a natural question, of at most 4 hops each; the short
            rendering has none.

    Raises:
        BadInput: If a name is unknown or a number is out of its range.
    """
    spec = task_of(task)
    if rendering is not None:
        _check_rendering(spec, rendering)
    _check_int("hops", hops, 1, spec.max_hops, f"in {spec.name} a hop is one {spec.unit}")
    _check_int("n", n, 0, None, "it is the number of problems")
    _check_int("seed", seed, None, None, "the same seed gives the same problems")
    _check_int("n_demonstrations", n_demonstrations, 0, None, "it is the number of worked examples")
    draws = [Draw(f"{spec.name}|{hops}|{seed}|{i}", n_demonstrations) for i in range(n)]
    if rendering is None:
        return [replace(_draw_problem(spec, hops, draw, spec.renderings[0]), draw=draw) for draw in draws]
    return [_draw_problem(spec, hops, draw, rendering) for draw in draws]


def fix_rendering(problem: Problem, rendering: Rendering) -> Problem:
    """Return a problem in one rendering, byte for byte as `sample` with that rendering would have written it.

    Raises:
        BadInput: The rendering is unknown, the task has no such rendering, or the problem was written in the other one
            for good.
    """
    if rendering not in get_args(Rendering):
        raise unknown_name("rendering", str(rendering), get_args(Rendering))
    if problem.draw is not None:
        spec = task_of(problem.task)
        check_rendering(spec, rendering)
        return _draw_problem(spec, problem.hops, problem.draw, rendering)
    if problem.rendering != rendering:
        raise BadInput(
            f"This {problem.task} problem is written in the {problem.rendering} rendering, and cannot become "
            f"{rendering}; sample it with rendering={rendering!r}, or without a rendering to leave it open."
        )
    return problem


def from_record(record: Mapping[str, Any]) -> Problem:
    """Return the problem that `Problem.to_record` wrote.

    Raises:
        BadInput: If the record is of a newer schema, has an unknown task and no slots, lacks a field, or holds a chain
            that its facts do not lead to.
    """
    version = record.get("schema_version")
    if version not in (SCHEMA_VERSION, SET_SCHEMA_VERSION):
        raise BadInput(
            f"This problem record has schema version {version!r}, and this Chainwright reads up to {SET_SCHEMA_VERSION}"
            "; sample the problem again or install the version that wrote it."
        )
    missing = [key for key in ("task", "hops", "rendering", "prompt", "chain", "answer", "facts") if key not in record]
    if missing:
        raise BadInput(f"This problem record lacks {', '.join(missing)}; write it with Problem.to_record().")
    if "slots" in record:
        return _without_script(record)
    spec = task_of(record["task"])
    _check_rendering(spec, record["rendering"])
    _check_int("hops", record["hops"], 1, spec.max_hops, f"in {spec.name} a hop is one {spec.unit}")
    try:
        script = spec.write(record["facts"], record["rendering"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise BadInput(f"The facts of this {spec.name} record cannot be written down ({error!r}).") from error
    problem = _problem(spec, record["hops"], record["facts"], record["rendering"], script, record["prompt"])
    if (problem.chain, problem.answer) != (record["chain"], record["answer"]):
        raise BadInput(
            f"The chain of this {spec.name} record is not the one that its facts lead to; sample the problem again."
        )
    return problem


def _without_script(record: Mapping[str, Any]) -> Problem:
    """Return a problem of a set or one made by hand, whose record holds all that there is."""
    values = {key: value for key, value in record.items() if key not in ("schema_version", "slots", "choices")}
    try:
        slots = tuple(Slot(**slot) for slot in record["slots"])
        return Problem(**values, slots=slots, choices=tuple(record.get("choices", ())))
    except TypeError as error:
        raise BadInput(f"This problem record does not fit ({error}); write it with Problem.to_record().") from error


def _check_rendering(spec: Task, rendering: str) -> None:
    if rendering not in get_args(Rendering):
        raise unknown_name("rendering", str(rendering), get_args(Rendering))
    check_rendering(spec, rendering)  # type: ignore[arg-type]


def _check_int(name: str, value: int, least: int | None, most: int | None, meaning: str) -> None:
    """Raise BadInput unless the value is an integer in its range."""
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if is_int and (least is None or value >= least) and (most is None or value <= most):
        return
    allowed = "an integer"
    if least is not None:
        allowed += f" of {least} or more" if most is None else f" from {least} to {most}"
    raise BadInput(f"{name} must be {allowed}, got {value!r}: {meaning}.")


@cache
def _shapes(spec: Task, rendering: Rendering) -> tuple[Line, ...]:
    """Return one line of every shape that a task knows, closing lines first."""
    lines = list(spec.more_shapes(rendering))
    for facts in spec.exemplars:
        lines.extend(spec.write(facts, rendering).lines)
    by_shape = {_shape_key(line): line for line in lines}
    return tuple(sorted(by_shape.values(), key=lambda line: -line.kind.rank))


def _shape_key(line: Line) -> tuple[object, ...]:
    """Return what lines of one shape share: all but their values and their own number."""
    parts = (part.lstrip("0123456789") if isinstance(part, str) else part.pattern for part in line.parts)
    return line.kind, tuple(parts)


def _problem(spec: Task, hops: int, facts: Facts, rendering: Rendering, script: Script, prompt: str) -> Problem:
    chain, slots = write_chain(script.lines)
    return Problem(
        spec.name,
        hops,
        prompt,
        chain,
        script.answer,
        slots,
        rendering=rendering,
        facts=facts,
        lines=script.lines,
        shapes=_shapes(spec, rendering),
    )


def _draw_problem(spec: Task, hops: int, draw: Draw, rendering: Rendering) -> Problem:
    key, n_examples = draw
    facts = spec.draw(Random(key), hops, rendering)
    script = spec.write(facts, rendering)
    if rendering == "short":
        return _problem(spec, hops, facts, rendering, script, script.question + "\n")
    examples = [
        spec.write(example_facts(spec, hops_of_example(hops), f"{key}|example {i}"), "natural")
        for i in range(n_examples)
    ]
    return _problem(spec, hops, facts, rendering, script, natural_prompt(spec, script, examples))


def natural_prompt(spec: Task, script: Script, examples: Sequence[Script]) -> str:
    """Return the prompt of the natural rendering: what is asked for, worked examples, and the question."""
    written = [
        f"Worked example:\n{example.question}\n\nSolution:\n{write_chain(example.lines)[0]}" for example in examples
    ]
    question = f"Problem:\n{script.question}\n\nSolution:\n"
    return "\n\n".join([_instruction(spec, len(examples)), *written, question])


def _instruction(spec: Task, n_examples: int) -> str:
    """Return the opening of a natural prompt, which says how the solution is to be written."""
    if n_examples == 0:
        return f"{spec.goal} Write one line for each {spec.unit}, and a last line that begins with 'Answer:'."
    return (
        f"{spec.goal} Write one line for each {spec.unit}, in exactly the layout and wording of the worked "
        "example, and close as the example does."
    )


def hops_of_example(hops: int) -> int:
    """Return the hops of a worked example: fewer than the problem has, where that is possible."""
    return max(1, min(hops - 1, _MOST_HOPS_OF_EXAMPLES))


def example_facts(spec: Task, hops: int, key: str) -> Facts:
    """Return the facts of a worked example: of some candidates, the one that shows most forms of a line."""
    candidates = [spec.draw(Random(f"{key}|{i}"), hops, "natural") for i in range(_N_CANDIDATES)]
    return max(candidates, key=lambda facts: _n_forms(spec.write(facts, "natural")))


def _n_forms(script: Script) -> int:
    """Return how many shapes of lines, and values of slots with few values, a script shows."""
    parts = [part for line in script.lines for part in line.slots]
    closed = {part.value for part in parts if part.pattern.synonyms or part.pattern == STEP}
    return len(closed) + len({_shape_key(line) for line in script.lines})
