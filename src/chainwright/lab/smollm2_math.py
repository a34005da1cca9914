"""The recipe of `smollm2-math`: LoRA on SmolLM2-135M-Instruct that learns worked solutions of word problems.

1. Problems come from files of the reader's own; none comes with the package. A file that has no split of its own is
   split by its questions: one whose SHA-256 falls into the last share is a test problem. Questions that occur twice, or
   differ in case and spaces alone, fall on the same side.
   The training writes the test problems to `held_out.jsonl`.
2. A worked solution is learned as the file has it (GSM8K). Where there is an equation alone (MultiArith, SVAMP), the
   solution has a line per operation, innermost first, and ends as GSM8K's do: `#### 39`.
3. A question that is also in a file of test problems (`test_data`) is never trained on.
4. Batches hold solutions of similar length; each problem comes up once before any comes up again.
"""

from __future__ import annotations

import ast
import hashlib
import json
import operator
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, Unpack

from pydantic import Field
from transformers import PreTrainedTokenizerBase

from chainwright._errors import BadInput
from chainwright._files import atomic_file
from chainwright.lab.adapters import AdapterRecipe, Step, TrainOptions, train_adapter
from chainwright.lab.recipe import Count, Share
from chainwright.lab.smollm2 import chat_row
from chainwright.tasks import Problem
from chainwright.tasks.problem_sets.source import load_problems

_SIGNS: Mapping[type[ast.operator], tuple[str, Callable[[Fraction, Fraction], Fraction]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv),
}
_EQUATIONS = ("equation", "lequations")
HELD_OUT = "held_out.jsonl"
_GROUP = 16  # batches whose rows are sorted by length together


class MathConfig(AdapterRecipe):
    """Everything that the recipe of `smollm2-math` depends on, but for the problems in the files."""

    data: tuple[str, ...] = Field(default=(), description="Files of problems with solutions or equations.")
    split_data: tuple[str, ...] = Field(
        default=(), description="Such files that hold test problems as well; only their training share is learned."
    )
    test_data: tuple[str, ...] = Field(default=(), description="Files of test problems; none of them is learned.")
    test_share: Share = Field(default=0.2, description="Share of the questions of split_data that are test problems.")
    n_rows: Count = Field(default=8, description="Problems per step.")
    most_tokens: Count = Field(default=320, description="Longest question with its solution; longer ones are not used.")

    def settings(self) -> dict[str, Any]:
        """Return what an adapter's recipe says of a training: the files by their names alone."""
        files = ("data", "split_data", "test_data")
        return super().settings() | {name: [Path(file).name for file in getattr(self, name)] for name in files}


def is_test(problem: Problem, share: float) -> bool:
    """Return whether a problem of a file without a split of its own is a test problem: by its question alone.

    Args:
        problem: The problem.
        share: Share of all questions that are test problems.
    """
    digest = hashlib.sha256(_key(problem).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 >= 1 - share


def _key(problem: Problem) -> str:
    return re.sub(r"\W+", " ", problem.prompt.lower()).strip()


def held_out(files: Sequence[str], share: float) -> list[Problem]:
    """Return the test problems of files without a split of their own."""
    return [problem for file in files for problem in load_problems(file) if is_test(problem, share)]


def training_problems(config: MathConfig) -> list[Problem]:
    """Return the problems that are learned, each question once, with its solution as the chain.

    Raises:
        BadInput: There is no file, or no problem with a solution or an equation is left in them.
    """
    if not config.data and not config.split_data:
        raise BadInput("smollm2-math needs problems; name files with --set 'data=[\"train.jsonl\"]' or split_data.")
    tested = {_key(problem) for file in config.test_data for problem in load_problems(file)}
    whole = [problem for file in config.data for problem in load_problems(file)]
    split = [p for file in config.split_data for p in load_problems(file) if not is_test(p, config.test_share)]
    tested |= {_key(problem) for problem in held_out(config.split_data, config.test_share)}
    solved = {_key(problem): problem for problem in map(with_solution, [*whole, *split]) if problem is not None}
    left = [problem for key, problem in solved.items() if key not in tested]
    if not left:
        raise BadInput("No problem with a solution or an equation is left to train on; check data and test_data.")
    return left


def with_solution(problem: Problem) -> Problem | None:
    """Return a problem with a worked solution as its chain: its own, or one made of its equation; None without both."""
    if problem.chain:
        return problem
    text = next((str(problem.labels[name]) for name in _EQUATIONS if name in problem.labels), None)
    lines = None if text is None else solution_of(text)
    if lines is None or not problem.check(lines):
        return None
    return replace(problem, chain=lines)


def solution_of(equation: str) -> str | None:
    """Return an equation such as "X=((29.0+16.0)-38.0)" worked out, a line per operation; None if it cannot be read.

    Its lines are "29 + 16 = 45", "45 - 38 = 7" and "#### 7".
    """
    try:
        tree = ast.parse(equation.strip().removeprefix("X=").strip(), mode="eval").body
        lines: list[str] = []
        value = _work_out(tree, lines)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None
    return "\n".join([*lines, f"#### {_written(value)}"])


def _work_out(node: ast.expr, lines: list[str]) -> Fraction:
    """Return the value of an expression, and add a line per operation."""
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return Fraction(str(node.value))
    if not isinstance(node, ast.BinOp) or type(node.op) not in _SIGNS:
        raise ValueError(f"{ast.dump(node)} is no operation of arithmetic")
    sign, compute = _SIGNS[type(node.op)]
    left, right = _work_out(node.left, lines), _work_out(node.right, lines)
    value = compute(left, right)
    lines.append(f"{_written(left)} {sign} {_written(right)} = {_written(value)}")
    return value


def _written(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    text = f"{float(value):.4f}".rstrip("0")
    if Fraction(text) != value:
        raise ValueError(f"{value} has no short decimal form")
    return text


class MathData:
    """The batches of the steps, each a pure function of (seed, step).

    Args:
        config: The recipe.
        problems: What is learned.
    """

    def __init__(self, config: MathConfig, problems: Sequence[Problem]):
        self.config, self.problems = config, problems
        self._order = cache(self._epoch)
        self._rows: list[tuple[int, int]] = []

    def __call__(self, tokenizer: PreTrainedTokenizerBase, step: int) -> Step:
        """Return the batch of a step.

        Raises:
            BadInput: Every problem is too long.
        """
        self._rows = self._rows or list(self._usable(tokenizer))
        if not self._rows:
            raise BadInput(f"Every problem has more than {self.config.most_tokens} tokens; raise most_tokens.")
        n_batches = -(-len(self._rows) // self.config.n_rows)
        epoch, i = divmod(step, n_batches)
        batch = [self.problems[k] for k in self._order(epoch)[i]]
        kinds = "+".join(sorted({problem.task for problem in batch}))
        return Step(kinds, [chat_row(tokenizer, problem) for problem in batch])

    def _usable(self, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[int, int]]:
        """Yield (tokens, index) of each problem that is short enough."""
        for i, problem in enumerate(self.problems):
            row = chat_row(tokenizer, problem)
            if (n_tokens := len(row.prompt) + len(row.chain)) <= self.config.most_tokens:
                yield n_tokens, i

    def _epoch(self, epoch: int) -> list[list[int]]:
        """Return the problems of each batch of an epoch, with those of similar length together."""
        rng = random.Random(f"{self.config.seed}/{epoch}")
        order = rng.sample(self._rows, len(self._rows))
        size = self.config.n_rows
        batches: list[list[int]] = []
        for start in range(0, len(order), size * _GROUP):
            group = sorted(order[start : start + size * _GROUP])
            batches.extend([i for _, i in group[k : k + size]] for k in range(0, len(group), size))
        rng.shuffle(batches)
        return batches


def train_math(config: MathConfig, folder: Path, **options: Unpack[TrainOptions]) -> Path:
    """Train the adapter of word problems, and write it to `folder/adapter` and the held-out ones to `folder`.

    Args:
        config: The recipe.
        folder: Where to write, as for `train_hops`.
        **options: As in `train_adapter`.

    Returns:
        The folder of the adapter.

    Raises:
        BadInput: As `training_problems`, `load_problems` and `train_adapter`.
    """
    data = MathData(config, training_problems(config))
    adapter = train_adapter(config, folder, data, **options)
    _write_held_out(folder / HELD_OUT, held_out(config.split_data, config.test_share))
    return adapter


def _write_held_out(path: Path, problems: Sequence[Problem]) -> None:
    """Write the test problems of files without a split of their own, for `evaluate --problems`."""
    records = [{"question": problem.prompt, "answer": problem.answer, "set": problem.task} for problem in problems]
    with atomic_file(path) as draft:
        draft.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
