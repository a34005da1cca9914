"""Worked problems to put before a question of a task in the natural rendering."""

from __future__ import annotations

import json
from collections.abc import Sequence

from chainwright._errors import BadInput
from chainwright.tasks._catalogue import task_of
from chainwright.tasks._sampling import _problem, example_facts, hops_of_example, natural_prompt
from chainwright.tasks.base import Problem

_MOST_TRIES = 100


def bare(problem: Problem) -> Problem:
    """Return a natural problem of a task without the worked examples in its prompt."""
    return with_examples(problem, ())


def with_examples(problem: Problem, examples: Sequence[Problem]) -> Problem:
    """Return a natural problem of a task with these worked examples in its prompt, in place of its own."""
    spec = task_of(problem.task)
    script = spec.write(problem.facts, "natural")
    prompt = natural_prompt(spec, script, [spec.write(example.facts, "natural") for example in examples])
    return _problem(spec, problem.hops, problem.facts, "natural", script, prompt)


def draw_demonstrations(problem: Problem, n: int, seed: int, hops: Sequence[int] | None = None) -> list[Problem]:
    """Return other problems of the same task, without worked examples, all different from it and from each other.

    They depend on the problem, the seed and their number alone.

    Args:
        problem: A natural problem of a task.
        n: How many.
        seed: Decides them.
        hops: Their hops, in turn; None takes fewer than the problem has, at most 4.

    Raises:
        BadInput: The task has no such hops, or too few different problems of them.
    """
    spec = task_of(problem.task)
    lengths = hops or (hops_of_example(problem.hops),)
    if spec.max_hops is not None and max(lengths) > spec.max_hops:
        raise BadInput(
            f"demo_hops asks for {max(lengths)} hops, but {spec.name} has at most {spec.max_hops}; ask for fewer."
        )
    seen, chosen = [problem.facts], []
    for i in range(n):
        length = lengths[i % len(lengths)]
        key = f"{spec.name}|{json.dumps(problem.facts, sort_keys=True)}|{seed}|demonstration {i}"
        tries = (example_facts(spec, length, f"{key}|{k}") for k in range(_MOST_TRIES))
        facts = next((made for made in tries if made not in seen), None)
        if facts is None:
            raise BadInput(
                f"There are too few different {spec.name} problems of {length} hops for {n} demonstrations; ask for "
                "fewer (--shots) or longer ones (--demo-hops)."
            )
        seen.append(facts)
        script = spec.write(facts, "natural")
        chosen.append(_problem(spec, length, facts, "natural", script, natural_prompt(spec, script, ())))
    return chosen
