"""Answers against a second computation, and the reading of final answers."""

import re

import pytest

from chainwright import tasks
from chainwright._errors import BadInput
from chainwright.tasks import Problem


def solve_short(prompt):
    """Work the answer out from the text of a short prompt alone."""
    task, text = prompt.strip().rstrip("?").split(maxsplit=1)
    pieces = [piece.split() for piece in text.split(" . ")]
    if task == "parity":
        n_flips = sum(piece[1] == "flips" for piece in pieces[1:])
        return ["heads", "tails"][(n_flips + (pieces[0][1] == "tails")) % 2]
    if task == "mdm":
        return str(eval(text))
    if task == "llc":
        return " ".join(word[-1] for word in text.split())
    if task == "clf":
        path = []
        for operation in text.split():
            if operation == "../":
                path = path[:-1]
            elif operation != "./":
                path.append(operation)
        return str(len(path))
    if task == "nums":
        time, count = int(pieces[0][1]), int(pieces[1][1])
        return str(count + sum(int(first) <= time <= int(last) for first, _, last in pieces[2:]))
    signs = {"add": 1, "subtract": -1}
    if task == "moas":
        return str(int(pieces[0][1]) + sum(signs[word] * int(k) for word, k in pieces[1:]))
    return str(int(pieces[0][1]) + sum(int(k) for _, _, k, _ in pieces[1:]))


def solve_natural(problem):
    """Work the answer out from the question of a natural prompt."""
    question = problem.prompt.split("Problem:\n")[1].split("\n\nSolution:")[0]
    if problem.task in ("mdm", "moas"):
        return str(eval(question.removeprefix("What is ").rstrip("?")))
    if problem.task in ("clf", "nums"):
        code, call = question.split("\n\nWhat does ")
        scope = {}
        exec(code, scope)
        return str(eval(call.removesuffix(" return?"), scope))
    if problem.task == "llc":
        words = question.split(": ")[1].split(".")[0].split(", ")
        return "".join(word[-1] for word in words)
    if problem.task == "objc":
        return str(sum(int(k) for k in re.findall(r"[0-9]+", question)))
    is_tails = ("lies tails" in question) ^ (question.count(" flips the coin") % 2 == 1)
    return "tails" if is_tails else "heads"


@pytest.mark.parametrize("name", tasks.names())
@pytest.mark.parametrize("hops", [1, 2, 6, 12])
def test_answers_equal_a_second_computation(name, hops):
    for problem in tasks.sample(name, hops, 20, seed=5):
        assert problem.answer == solve_short(problem.prompt)
    for problem in tasks.sample(name, hops, 10, seed=5, rendering="natural"):
        assert problem.answer == solve_natural(problem)


@pytest.mark.parametrize("rendering", ["short", "natural"])
@pytest.mark.parametrize("name", tasks.names())
def test_gold_chain_is_right_and_a_wrong_answer_is_not(name, rendering):
    problem = tasks.sample(name, 4, 1, rendering=rendering)[0]
    wrong = {"heads": "tails", "tails": "heads"}.get(problem.answer)
    wrong = wrong or (str(int(problem.answer) + 1) if problem.answer[-1].isdigit() else problem.answer + "q")
    start = problem.slots[-1].start
    assert problem.check(problem.chain)
    assert problem.check(problem.chain + "\nI hope that this answer helps.")
    assert not problem.check(problem.chain[:start] + wrong)
    assert not problem.check(problem.chain[: problem.chain.rindex("\n")])
    assert not problem.check("")


def natural(name, wanted):
    """Return a natural problem whose answer satisfies a condition."""
    return next(p for p in tasks.sample(name, 6, 50, rendering="natural") if wanted(p.answer))


@pytest.mark.parametrize(
    "form",
    [
        "Answer: {}",
        "**Answer:** {}",
        "The final answer is **{}**.",
        "so the answer is\n{}",
        "ANSWER = {}",
        "answer {} (I checked it twice)",
        r"The answer: \boxed{{{}}}",
        r"Thus \boxed{{{}}}.",
        "The answer is 3. No, wait.\nAnswer: {}",
    ],
)
def test_forms_of_an_answer_line(form):
    for problem in (natural("mdm", str.isdigit), natural("parity", bool), natural("llc", bool)):
        assert problem.check(form.format(problem.answer))
        assert problem.check(form.format(problem.answer.title()))


def test_numbers_in_other_spellings():
    problem = natural("mdm", lambda answer: len(answer) > 6)
    number = int(problem.answer)
    assert problem.check(f"Answer: {number:,}")
    assert problem.check(f"Answer: 2 * 3 = {number}")
    assert problem.check(f"Answer: ${number}$")
    assert not problem.check(f"Answer: -{number}")
    negative = natural("moas", lambda answer: answer.startswith("-"))
    assert negative.check(f"Answer: \N{MINUS SIGN}{negative.answer[1:]}")
    assert not negative.check(f"Answer: {negative.answer[1:]}")


@pytest.mark.parametrize("answer", ["a", "it", "is", "ere"])
def test_letters_that_are_also_small_words(answer):
    problem = Problem("llc", 1, "", "", answer, ())
    assert problem.check(f"Answer: {answer}")
    assert problem.check(f"The answer is {' '.join(answer)}.")
    assert not problem.check("Answer: qq")


def test_problem_made_by_hand_takes_the_last_value():
    problem = Problem("moas", 2, "What is 3 + 4?", "3 + 4 = 7\nAnswer: 7", "7", ())
    assert problem.check("Answer: 7")
    assert problem.check("3 + 4 = 7")
    assert not problem.check("3 + 4 = 8")
    assert not problem.check("no number at all")
    assert Problem("parity", 1, "", "", "tails", ()).check("it was heads, then it is tails up")


def test_problem_without_slots_cannot_be_read():
    problem = Problem("moas", 2, "What is 3 + 4?", "3 + 4 = 7\nAnswer: 7", "7", ())
    with pytest.raises(BadInput, match="this one has 0 slots"):
        problem.first_error("Answer: 7")
