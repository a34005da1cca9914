"""Answers against a second computation, and the reading of final answers."""

import re

import pytest

from chainwright import tasks
from chainwright._errors import BadInput
from chainwright.tasks import Problem, Slot


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


def test_a_problem_without_slots_is_judged_by_its_answer_alone():
    problem = Problem("mine", 1, "What is 6 x 7?", chain="", answer="42", slots=())
    assert problem.check("It is 42.") and not problem.check("It is 43.")
    assert problem.read("It is 43.") == [] and problem.first_error("It is 43.") is None


def test_a_slot_that_is_not_where_it_says_is_named():
    problem = Problem("mine", 1, "", "3 + 4 = 7", "7", (Slot(0, 1, "local calculation", 0, "7"),))
    with pytest.raises(BadInput, match="holds '7' at characters 0 to 1, but it holds '3' there"):
        problem.first_error("3 + 4 = 7")


@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        ("<think>\nSo the answer is 71. Wait, let me check again, since I may have", False),
        ("So the answer is 71.\n</think>\n\nIt comes to 72.", False),
        ("<think>\nSo the answer is 72.\n</think>\n\nAnswer: 71", True),
        ("<think>a</think>Answer: 5<think>b</think>Answer: 71", True),
        ("<think>a</think>Answer: 71\n<think>\nAnswer: 5", True),
        ("Let me work.\n<think>\nAnswer: 71", False),
        ("<|channel|>analysis<|message|>Answer: 71", False),
        ("<|channel|>analysis<|message|>Answer: 5<|end|><|start|>assistant<|channel|>final<|message|>Answer: 71", True),
        ("<|channel|>analysis<|message|></think>Answer: 71", False),
        ("</think><think>Answer: 71", False),
        ("I add.\n#### 71", True),
        ("I add.\n####71", True),
        ("#### 5", False),
        ("The answer is not 5 but 71.", True),
        ("The answer is not 71 but 5.", False),
        ("The answer is not 71.", False),
        ("The answer isn't 5, it is 71.", True),
        ("Answer: 5. Wait, it is 71.", True),
        ("Answer: 71. Wait, it should be 5.", False),
        ("Answer: 71. Wait, let me check again, since I may have", False),
        ("Answer: 71. Wait, let me check: 70 + 1 = 71. Yes.", True),
        ("Answer: 71. Wait, let me check. Yes, that is right.", True),
        ("Answer: 5. Actually, 71", True),
        ("Answer: 5. No wait.\nAnswer: 71", True),
        ("Answer: 71\nI hope that this answer helps.", True),
        ("Answer: 71. So it is 71 and not 5.", True),
        ("Answer: 5. Hmm, that's wrong. It should be 71.", True),
        ("Answer: 71. That's wrong.", False),
        ("Answer: 71. If you got 72, that's a rounding error.", True),
        ("The answer is 71. However, I made a mistake: it's 5.", False),
        ("The answer is 5. I made a mistake. The answer is 71.", True),
        ("The answer is 5? No. 71.", True),
        ("So the answer is 71? Hmm", False),
        ("Answer: 71. Let me check that again, since", False),
        ("Answer: 71. Let me recheck: 70 + 1 = 71.", True),
        ("Answer: 71. Sorry for the wait!", True),
        ("My answer can't be 71.", False),
        ("The answer cannot be 5; it is 71.", True),
        ("The answer is neither 5 nor 70, but 71.", True),
        ("Answer: ~~5~~ 71", True),
        ("I know the answer isn't 5; it is 71", True),
        (r"\boxed{71}", True),
        (r"So $\boxed{\text{71 points}}$.", True),
        (r"\boxed{5}. Wait, \boxed{71}", True),
        (r"The answer is \boxed{71", False),
        (r"Answer: 71. In a box: \boxed{7", True),
        ("It comes to 71, so the answer is", False),
        ("#### 5\nWait, that is not right.\n#### 71", True),
        ("#### 71\n", True),
        ("Answer: 71.0", True),
        ("Answer: $71.00", True),
        ("Answer: 71.5", False),
        ("Answer: 71/2", False),
        ("Answer: 142/2", True),
        ("Answer: 71 = 70 + 1", True),
        ("Answer: 70 + 1 = 71", True),
        ("Answer: x = 71", True),
        ("<thinking>Answer: 5</thinking>Answer: 71", True),
        ("<thinking>\nAnswer: 71. I should", False),
        ('<think signature="x">\nAnswer: 71', False),
        ("\u25c1think\u25b7Answer: 5\u25c1/think\u25b7Answer: 71", True),
        ("[THINK]Answer: 71", False),
        ("<|begin_of_thought|>Answer: 5<|end_of_thought|>Answer: 71", True),
    ],
)
def test_what_is_judged_is_the_last_word_outside_of_the_thinking(text, is_right):
    scripted = next(p for s in range(99) for p in tasks.sample("moas", 3, 40, seed=s) if p.answer == "71")
    assert scripted.check(text) is is_right
    assert Problem("mine", 1, "", "", "71", ()).check(text) is is_right


@pytest.mark.parametrize(
    ("answer", "text", "is_right"),
    [
        ("3.5", "Answer: 3.5", True),
        ("3.5", "It comes to 3.50.", True),
        ("3.5", "Answer: 35", False),
        ("715", "Answer: 71.5", False),
        ("-0.5", "Answer: \N{MINUS SIGN}1/2", True),
        ("1/2", r"\boxed{\frac{1}{2}}", True),
        ("1/2", "Answer: 0.5", True),
        ("1/2", "Answer: 1/0", False),
        ("1000", "Answer: 1,000.00", True),
        ("12", "Answer: 12%", True),
    ],
)
def test_numbers_are_judged_by_value(answer, text, is_right):
    assert Problem("mine", 1, "", "", answer, ()).check(text) is is_right


def test_a_value_that_the_token_limit_may_have_cut_is_no_answer():
    number, word = Problem("mine", 1, "", "", "71", ()), Problem("mine", 1, "", "", "bado", ())
    for problem, value in ((number, "71"), (word, "bado")):
        for text in (f"Answer: {value}", f"Well, {value}"):
            assert problem.check(text) and not problem.check(text, is_cut=True)
            assert problem.check(f"{text}.", is_cut=True) and problem.check(f"{text}\n", is_cut=True)
        assert problem.check(f"Answer: {value}. It foll", is_cut=True)
    assert not number.check("Answer: 71.2", is_cut=True) and not number.check("Answer: 71,00", is_cut=True)
    short, natural = (tasks.sample("moas", 2, 1, rendering=r)[0] for r in ("short", "natural"))
    assert short.check(f"answer {short.answer}", is_cut=True)
    assert not natural.check(f"Answer: {natural.answer}", is_cut=True)
    coin = Problem("mine", 1, "", "", "heads", ())  # nothing longer begins with it
    assert coin.check("Answer: heads", is_cut=True)
    alone = Problem("two-hop", 2, "dopa mother boss", "tula", "tula", ())
    assert alone.check("tula", is_cut=True) and alone.check("tula vala", is_cut=True)


def test_words_are_taken_back_too():
    problem = Problem("mine", 1, "", "", "bado", ())
    assert problem.check("The answer is not tula but bado.")
    assert problem.check("Answer: tula. Wait, it is bado.")
    assert problem.check("Answer: bado. Wait, let me check. Yes, that is right.")
    assert not problem.check("Answer: bado. Wait, that may be wrong, I should")


def test_a_response_that_is_to_be_the_answer_alone_is_judged_by_its_first_value():
    problem = Problem("two-hop", 2, "dopa mother boss", "tula", "tula", ())
    assert problem.check("tula") and problem.check("tula vala saku")
    assert not problem.check("vala tula") and not problem.check("")
    number = Problem("arithmetic", 1, "3 + 9 =", "12", "12", ())
    assert number.check("12 4") and not number.check("124") and not number.check("- 12")
    assert number.check("I add, so the answer is 12.")
