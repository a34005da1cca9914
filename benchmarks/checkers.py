"""How often a checker's verdict is that of a file whose responses were graded elsewhere.

    python benchmarks/checkers.py FILE.jsonl [CHECKER ...]

The file has one problem per line, with one or several graded responses as tables of `solution` and `is_correct`, as
gsm8k_model_solutions.jsonl has. Every disagreement is printed.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence

from chainwright import Problem, load_problems


def graded(path: str) -> Iterator[tuple[int, str, bool]]:
    """Yield the number of the problem, the response and whether it was graded as right."""
    with open(path, encoding="utf-8") as lines:
        for i, line in enumerate(lines):
            for value in json.loads(line).values():
                if isinstance(value, dict) and "is_correct" in value:
                    yield i, value["solution"], value["is_correct"]


def compared(name: str, problems: Sequence[Problem], path: str) -> None:
    """Print how a checker agrees with the grades."""
    begun, counts, rules = time.perf_counter(), Counter[str](), Counter[str]()
    for i, response, is_correct in graded(path):
        verdict = problems[i].judge(response)
        rules[verdict.rule] += 1
        outcome = "unread" if verdict.is_right is None else "agree" if verdict.is_right is is_correct else "disagree"
        counts[outcome] += 1
        if outcome != "agree":
            print(f"  {outcome}: problem {i}, right answer {problems[i].answer!r}, graded {is_correct}, {verdict}")
    seconds = time.perf_counter() - begun
    shares = ", ".join(f"{counts[key]:,} {key}" for key in ("agree", "disagree", "unread"))
    print(f"{name}: {shares} of {counts.total():,} in {seconds:.1f} s; rules: {dict(rules.most_common())}")


def main(path: str, *names: str) -> None:
    """Compare every named checker with the grades of a file."""
    for name in names or ("number", "math"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            problems = load_problems(path, checker=name)
        compared(name, problems, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
