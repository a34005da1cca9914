"""The recipe of word problems: solutions of equations, which problems are learned, batches, and a small training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from chainwright._errors import BadInput
from chainwright._files import read_json
from chainwright.lab import MathConfig, train_math
from chainwright.lab.smollm2_math import MathData, held_out, is_test, solution_of, training_problems, with_solution
from chainwright.tasks.problem_sets.source import load_problems
from instruct import instruct_model, instruct_tokenizer


@pytest.mark.parametrize(
    ("equation", "want"),
    [
        ("X=((29.0+16.0)-38.0)", "29 + 16 = 45\n45 - 38 = 7\n#### 7"),
        ("X=(4.0*(9.0-3.0))", "9 - 3 = 6\n4 * 6 = 24\n#### 24"),
        ("( 7.0 / 2.0 )", "7 / 2 = 3.5\n#### 3.5"),
        ("( 8.0 + 1.25 )", "8 + 1.25 = 9.25\n#### 9.25"),
        ("12.0", "#### 12"),
        ("( 1.0 / 3.0 )", None),
        ("( 1.0 / ( 2.0 - 2.0 ) )", None),
        ("( 2.0 ** 3.0 )", None),
        ("open('x')", None),
        ("X = y", None),
    ],
)
def test_an_equation_is_worked_out_a_line_per_operation(equation: str, want: str | None) -> None:
    assert solution_of(equation) == want


def numbers(n: int, *, first: int = 0) -> list[dict[str, Any]]:
    """Small problems with an equation."""
    return [
        {"sQuestion": f"Ann has {i} nuts and finds {i + 2}. How many now?", "lEquations": [f"X=({i}.0+{i + 2}.0)"],
         "lSolutions": [float(2 * i + 2)]}
        for i in range(first, first + n)
    ]  # fmt: skip


def written(path: Path, records: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def test_solutions_are_the_files_own_or_made_of_equations(tmp_path: Path) -> None:
    (problem,) = load_problems(written(tmp_path / "a.jsonl", numbers(1, first=5)))
    solved = with_solution(problem)
    assert solved is not None and solved.chain == "5 + 7 = 12\n#### 12"
    own = {"question": "How many legs have two cats?", "answer": "Two cats have 2*4 = <<2*4=8>>8 legs.\n#### 8"}
    (problem,) = load_problems(written(tmp_path / "b.jsonl", [own]))
    assert with_solution(problem) == problem and problem.chain == "Two cats have 2*4 = 8 legs.\n#### 8"
    (problem,) = load_problems(written(tmp_path / "c.jsonl", [{"question": "How many?", "answer": 8}]))
    assert with_solution(problem) is None
    wrong = numbers(1)[0] | {"lSolutions": [99.0]}
    (problem,) = load_problems(written(tmp_path / "d.jsonl", [wrong]))
    assert with_solution(problem) is None, "an equation that does not give the answer is no solution"


def test_no_test_problem_is_learned(tmp_path: Path) -> None:
    split = written(tmp_path / "split.jsonl", numbers(60))
    whole = written(tmp_path / "whole.jsonl", numbers(10, first=100))
    # the same question in other words of case and spaces, in a file that is learned whole
    again = [record | {"sQuestion": record["sQuestion"].upper().replace(" ", "  ")} for record in numbers(60)]
    twice = written(tmp_path / "twice.jsonl", again)
    tested = written(tmp_path / "tested.jsonl", numbers(4, first=103))
    config = MathConfig(data=(whole, twice), split_data=(split,), test_data=(tested,), test_share=0.25)
    kept_out = {problem.prompt.lower() for problem in [*held_out((split,), 0.25), *load_problems(tested)]}
    learned = {" ".join(problem.prompt.lower().split()) for problem in training_problems(config)}
    assert 5 <= len(held_out((split,), 0.25)) <= 25
    assert not learned & kept_out
    everything = {record["sQuestion"].lower() for record in [*numbers(60), *numbers(10, first=100)]}
    assert learned == everything - kept_out


def test_the_split_goes_by_the_question_alone(tmp_path: Path) -> None:
    problems = load_problems(written(tmp_path / "a.jsonl", numbers(200)))
    reordered = load_problems(written(tmp_path / "b.jsonl", numbers(200)[::-1]))
    test = {problem.prompt for problem in problems if is_test(problem, 0.2)}
    assert test == {problem.prompt for problem in reordered if is_test(problem, 0.2)}
    assert test <= {problem.prompt for problem in problems if is_test(problem, 0.4)}
    assert 20 <= len(test) <= 60
    assert not any(is_test(problem, 0.0) for problem in problems)
    assert all(is_test(problem, 1.0) for problem in problems)


def test_each_problem_comes_up_once_per_epoch(tmp_path: Path) -> None:
    config = MathConfig(data=(written(tmp_path / "a.jsonl", numbers(43)),), n_rows=4)
    problems = training_problems(config)
    data, tokenizer = MathData(config, problems), instruct_tokenizer()
    epochs = [[data(tokenizer, step) for step in range(11 * e, 11 * e + 11)] for e in (0, 1)]
    for steps in epochs:
        seen = [tuple(row.prompt) for step in steps for row in step.rows]
        assert len(seen) == len(set(seen)) == 43
    assert epochs[0] != epochs[1]
    assert MathData(config, problems)(tokenizer, 15) == epochs[1][4], "a batch is a function of seed and step"
    lengths = sorted(len(row.prompt) + len(row.chain) for step in epochs[0] for row in step.rows)
    assert lengths[0] < lengths[20]
    few = MathData(config.replace(most_tokens=lengths[20] - 1, n_rows=1), problems)
    rows = [few(tokenizer, step).rows[0] for step in range(sum(n < lengths[20] for n in lengths))]
    assert sorted(len(row.prompt) + len(row.chain) for row in rows) == [n for n in lengths if n < lengths[20]]
    with pytest.raises(BadInput, match="Every problem has more than 9 tokens"):
        MathData(config.replace(most_tokens=9), problems)(tokenizer, 0)


def test_a_small_training_writes_the_adapter_and_its_test_problems(tmp_path: Path) -> None:
    instruct_model().save_pretrained(tmp_path / "base")
    instruct_tokenizer().save_pretrained(tmp_path / "base")
    split = written(tmp_path / "split.jsonl", numbers(20))
    config = MathConfig(base=str(tmp_path / "base"), split_data=(split,), rank=2, n_steps=2, n_rows=3)
    adapter = train_math(config, tmp_path / "run", progress=False)
    (training,) = read_json(adapter / "recipe.json")["trainings"]
    assert training["problems"] == 6 and training["settings"]["split_data"] == ["split.jsonl"]
    again = load_problems(tmp_path / "run/held_out.jsonl")
    assert [(p.prompt, p.answer) for p in again] == [(p.prompt, p.answer) for p in held_out((split,), 0.2)]


def test_a_recipe_without_problems_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="smollm2-math needs problems"):
        training_problems(MathConfig())
    empty = written(tmp_path / "a.jsonl", [{"question": "How many?", "answer": 8}])
    with pytest.raises(BadInput, match="No problem with a solution or an equation is left"):
        training_problems(MathConfig(data=(empty,)))
