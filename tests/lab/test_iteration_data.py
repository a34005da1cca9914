"""The iterative tasks: transitions against plain loops, the layout of sequences, nothing held out is drawn."""

import itertools
import random

import pytest
import torch

from chainwright._errors import BadInput
from chainwright.lab import IterationConfig
from chainwright.lab.iteration_data import (
    IGNORED,
    TASKS,
    held_out,
    is_held_out,
    iteration_problems,
    iteration_tokenizer,
    task_of,
    training_batch,
    vocabulary,
)
from chainwright.lab.polynomials import parse_polynomial, transitions
from chainwright.traces import Trace

PLAIN = {
    "copy": lambda s, x: x,
    "parity": lambda s, x: (s + x) % 2,
    "polynomial": lambda s, x: (s * x + 1) % 11,
}


def plain_states(name: str, inputs: list[int]) -> list[int]:
    states = [inputs[0]]
    for x in inputs[1:]:
        states.append(PLAIN[name](states[-1], x))
    return states


@pytest.mark.parametrize("name", TASKS)
def test_states_are_those_of_a_plain_loop(name: str) -> None:
    task, rng = task_of(IterationConfig(), name), random.Random(0)
    rows = [[rng.randrange(task.alphabet) for _ in range(9)] for _ in range(40)]
    assert task.states(torch.tensor(rows)).tolist() == [plain_states(name, row) for row in rows]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("s*x + 1", lambda s, x: s * x + 1),
        ("2*s**2 - x", lambda s, x: 2 * s**2 - x),
        ("-(s + 3*x)*(s - x) + 7", lambda s, x: -(s + 3 * x) * (s - x) + 7),
        ("(s+x)**3", lambda s, x: (s + x) ** 3),
    ],
)
def test_a_polynomial_is_what_python_makes_of_it(text: str, value: object) -> None:
    table = transitions(parse_polynomial(text), 7, 5)
    assert table == [[value(s, x) % 7 for x in range(5)] for s in range(7)]


@pytest.mark.parametrize(
    "text", ["", "s +", "y + s", "s / x", "s ** x", "f(s)", "s ** 99", "True + s", "1.5 * s", "s; x"]
)
def test_what_is_no_polynomial_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match=r"A polynomial is written with s \(state\), x \(input\)"):
        parse_polynomial(text)


@pytest.mark.parametrize(("text", "modulus"), [("x + 1", 11), ("3", 5), ("s*s - s", 2), ("5*s + x", 5)])
def test_a_polynomial_that_forgets_the_state_is_refused(text: str, modulus: int) -> None:
    with pytest.raises(BadInput, match=f"Modulo {modulus} the polynomial .* has the same value for every state"):
        IterationConfig(polynomial=text, modulus=modulus)


@pytest.mark.parametrize("modulus", [1, 0, -3])
def test_a_modulus_below_two_is_refused(modulus: int) -> None:
    with pytest.raises(BadInput, match=f"The modulus of the polynomial task must be at least 2; got {modulus}"):
        IterationConfig(modulus=modulus, alphabet=3)
    with pytest.raises(BadInput, match="The alphabet of the polynomial task must be at least 2; got 1"):
        IterationConfig(alphabet=1)


def read(words: list[str], row: torch.Tensor) -> list[str]:
    return [words[i] for i in row.tolist()]


@pytest.mark.parametrize("chain_of_thought", [True, False])
def test_a_sequence_is_laid_out_as_the_paper_says(chain_of_thought: bool) -> None:
    config = IterationConfig(chain_of_thought=chain_of_thought)
    drawn = training_batch(config, {"copy": 1, "parity": 2, "polynomial": 1}, (1, 6), 60, "k")
    words, seen = vocabulary(config), set()
    for ids, labels, n, which in zip(*drawn, strict=True):
        n, name, text = int(n), TASKS[int(which)], read(words, ids)
        states = plain_states(name, [int(x) for x in text[1 : n + 1]])
        answer = [str(s) for s in (states if chain_of_thought else states[-1:])]
        filled = [name, *text[1 : n + 1], "=", *answer, "<end>"]
        assert text == filled + ["<pad>"] * (len(text) - len(filled))
        counted = (labels != IGNORED).nonzero()[:, 0].tolist()
        assert counted == list(range(n + 2, len(filled))), "the loss counts what follows the end of the input"
        assert torch.equal(labels[counted], ids[counted])
        seen.add((name, n))
    assert len(seen) > 14


def test_a_batch_is_a_function_of_its_key() -> None:
    config, weights = IterationConfig(), {"polynomial": 1.0}
    first = training_batch(config, weights, (1, 12), 16, "0/3")
    again = training_batch(config, weights, (1, 12), 16, "0/3")
    other = training_batch(config, weights, (1, 12), 16, "0/4")
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.input_ids, other.input_ids)


def test_lengths_and_tasks_are_drawn_as_asked() -> None:
    config = IterationConfig()
    drawn = training_batch(config, {"copy": 3.0, "parity": 1.0}, (3, 6), 4000, "k")
    shares = torch.bincount(drawn.tasks, minlength=3) / 4000
    assert abs(float(shares[0]) - 0.75) < 0.03 and float(shares[2]) == 0
    lengths = torch.bincount(drawn.lengths, minlength=8) / 4000
    assert float(lengths[:3].sum() + lengths[7:].sum()) == 0
    assert bool(((lengths[3:7] - 0.25).abs() < 0.03).all())


def test_held_out_sequences_are_never_drawn_for_training() -> None:
    config, kept = IterationConfig(), set()
    for name in ("parity", "polynomial"):
        for n in range(1, 7):
            rows = held_out(config, name, n, 500).input_ids[:, 1 : n + 1].tolist()
            kept |= {(name, tuple(row)) for row in rows}
            assert len({tuple(row) for row in rows}) == len(rows), "all different"
            offset = 3 + len(TASKS)
            assert all(is_held_out(config, name, [i - offset for i in row]) for row in rows)
    n_drawn = set()
    for key in range(40):
        drawn = training_batch(config, {"parity": 1.0, "polynomial": 1.0}, (1, 6), 256, str(key))
        for ids, n, which in zip(drawn.input_ids, drawn.lengths, drawn.tasks, strict=True):
            n_drawn.add((TASKS[int(which)], tuple(ids[1 : int(n) + 1].tolist())))
    assert len(kept) > 600 and not kept & n_drawn
    every = {("parity", tuple(6 + i for i in row)) for n in range(1, 7) for row in itertools.product((0, 1), repeat=n)}
    short = {key for key in every if len(key[1]) < 6}
    assert short <= kept | n_drawn, "what is not held out is drawn"


@pytest.mark.parametrize(
    ("name", "length", "n"), [("copy", 1, 0), ("parity", 2, 1), ("copy", 5, 8), ("polynomial", 1, 2)]
)
def test_short_lengths_hold_out_exactly_a_quarter_rounded_down(name: str, length: int, n: int) -> None:
    assert len(held_out(IterationConfig(), name, length, 10_000).input_ids) == n


def test_long_lengths_hold_out_about_a_quarter() -> None:
    rng, config = random.Random(1), IterationConfig()
    rows = [[rng.randrange(2) for _ in range(20)] for _ in range(2000)]
    share = sum(is_held_out(config, "parity", row) for row in rows) / 2000
    assert abs(share - 0.25) < 0.03
    assert len(held_out(config, "parity", 20, 70).input_ids) == 70
    assert not torch.equal(
        held_out(config, "parity", 20, 9, 0).input_ids, held_out(config, "parity", 20, 9, 1).input_ids
    )


def test_the_words_do_not_depend_on_the_task_that_is_trained() -> None:
    config = IterationConfig(tasks={"copy": 1.0})
    assert vocabulary(config) == vocabulary(IterationConfig(tasks={"parity": 1.0}))
    assert vocabulary(IterationConfig(modulus=3, alphabet=5))[6:] == ["0", "1", "2", "3", "4"]


def test_problems_read_their_own_chains_and_tokenize_as_the_training_does() -> None:
    config = IterationConfig()
    tokenizer = iteration_tokenizer(config, 99)
    for name in TASKS:
        problems = iteration_problems(config, name, 6, 5)
        assert len(problems) == 5
        rows = held_out(config, name, 6, 5).input_ids
        for problem, row in zip(problems, rows, strict=True):
            assert problem.check(problem.chain) and problem.first_error(problem.chain) is None
            ids = tokenizer(f"{problem.prompt} {problem.chain} <end>")["input_ids"]
            assert ids == row.tolist()
            assert tokenizer.decode(ids, skip_special_tokens=True) == f"{problem.prompt} {problem.chain}"
            trace = Trace.from_text(tokenizer, problem.prompt, problem.chain, problem=problem)
            assert [slot.got for slot in trace.slots] == problem.chain.split()
            inputs = [problem.prompt[a:b] for a, b in problem.facts["inputs"]]
            assert inputs == problem.prompt.split()[1:-1]


def test_a_wrong_state_is_the_first_error() -> None:
    (problem,) = iteration_problems(IterationConfig(), "parity", 5, 1)
    states = problem.chain.split()
    states[2] = str(1 - int(states[2]))
    error = problem.first_error(" ".join(states))
    assert error is not None and error.slot == 2 and error.error_type == "state"


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(
        BadInput, match=r"Unknown iteration task 'pairty'; known: copy, parity, polynomial. Did you mean"
    ):
        IterationConfig(tasks={"pairty": 1.0})
