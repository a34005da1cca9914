"""Responses as models write them, with the verdict that a person would give: right (+), wrong (-), no answer (?)."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainwright import checkers

NUMBER = [
    # response, right answer, verdict
    ("9 * 2 = 18\n#### 18", "18", "+"),
    ("9 * 2 = 18\n#### 18 ", "18.0", "+"),
    ("#### 1,234", "1234", "+"),
    ("#### $1,234.50", "1234.5", "+"),
    ("####-7", "-7", "+"),
    ("So she has 9 eggs.\nA: 9", "9", "+"),
    ("A: 12 is what we start with.\nShe has 9 left.", "9", "+"),
    ("The answer is 18.", "18", "+"),
    ("The answer is: **18**", "18", "+"),
    ("the final answer is $18 per day, for 9 eggs", "18", "+"),
    ("Final Answer: 18 dollars", "18", "+"),
    ("**Answer:** 18", "18", "+"),
    ("Answer: 9 * 2 = 18", "18", "+"),
    ("Answer: 18 = 9 * 2", "18", "+"),
    (r"So we get \boxed{18}.", "18", "+"),
    (r"\boxed{18} dollars, because 9 eggs = 9 sales", "18", "+"),
    (r"\boxed{x = 18}", "18", "+"),
    (r"\boxed{\$18}", "18", "+"),
    (r"\boxed{12} is a first try, but in the end \boxed{18}", "18", "+"),
    (r"\boxed{18", "18", "?"),
    (r"$\boxed 5$", "5", "+"),
    ("She makes 18 dollars.", "18", "+"),
    ("18", "18", "+"),
    ("First 9, then 18, so 27 in all.", "18", "-"),
    ("I do not know.", "18", "?"),
    ("", "18", "?"),
    ("The answer is", "18", "?"),
    ("3 + 4 = 7. The answer is:", "7", "?"),
    ("<think>It may be 17.</think>The answer is 18.", "18", "+"),
    ("<think>The answer is 18.", "18", "?"),
    ("<think>The answer is 18.</think>I am not sure.", "18", "?"),
    ("The answer is 17. Wait, no, it is 18.", "18", "+"),
    ("The answer is not 17 but 18.", "18", "+"),
    ("The answer is ~~17~~ 18.", "18", "+"),
    ("The answer is \u221218.", "-18", "+"),
    ("The answer is negative 18.", "-18", "+"),
    ("The answer is 18.", "-18", "-"),
    ("The answer is -$5.", "-5", "+"),
    ("The answer is 8 - 5 = 3.", "3", "+"),
    ("The answer is 0.50.", "1/2", "+"),
    ("The answer is 1/2.", "0.5", "+"),
    (r"The answer is $\frac{1}{2}$.", "0.5", "+"),
    (r"The answer is $2\frac{1}{2}$.", "2.5", "+"),
    ("The answer is 2 1/2 hours.", "2.5", "+"),
    ("The answer is 2\u00bd.", "2.5", "+"),
    ("The answer is \u00bd.", "0.5", "+"),
    (r"\boxed{-\frac{3}{4}}", "-0.75", "+"),
    ("The answer is 50%.", "50", "+"),
    ("The answer is 50 percent.", "0.5", "+"),
    (r"The answer is $50\%$.", "50%", "+"),
    ("The answer is 0.5.", "50", "-"),
    ("The answer is 5 million dollars.", "5000000", "+"),
    ("The answer is 5 million dollars.", "5", "+"),
    ("The answer is 5.", "5 million", "-"),
    ("The answer is 5k.", "5000", "+"),
    ("The answer is 2e3.", "2000", "+"),
    (r"The answer is $2 \times 10^{3}$.", "2000", "+"),
    ("The answer is 1.234,5 Euro.", "1234.5", "+"),
    ("The answer is 3,5 km.", "3.5", "+"),
    ("The answer is 1.234.567.", "1234567", "+"),
    ("The answer is 12 500.", "12500", "+"),
    ("The answer is 12\u202f500.", "12500", "+"),
    ("The answer is 1'250.", "1250", "+"),
    ("The answer is 1,00,000 rupees.", "100000", "+"),
    (r"The answer is 1{,}234.", "1234", "+"),
    (r"The answer is $1\,234$.", "1234", "+"),
    ("The answer is 1,234.5 miles.", "1,234.5 miles", "+"),
    ("The answer is 1234.5.", "1,234.5 miles", "+"),
    ("The answer is twelve.", "12", "+"),
    ("The answer is twenty-five apples.", "25", "+"),
    ("The answer is two hundred and five.", "205", "+"),
    ("The answer is 18.", "eighteen", "+"),
    ("The answer is 3 and 5.", "3 and 5", "+"),
    ("The answer is 5 and 3.", "3 and 5", "+"),
    ("The answer is x = 3 and x = 5.", "3, 5", "+"),
    ("The answer is 3.", "3 and 5", "-"),
    ("The answer is 3 and 5.", "3", "-"),
    ("The answer is 3 or 5.", "5", "-"),
    ("The answer is (3, 5).", "(3, 5)", "+"),
    ("The answer is (5, 3).", "(3, 5)", "-"),
    ("3 apples and 5 oranges", "3 and 5", "+"),
    ("The answer is 5:30 PM.", "5:30 PM", "+"),
    ("The answer is 5:30 pm.", "17:30", "+"),
    ("The answer is 5:30.", "5:30 PM", "+"),
    ("The answer is 5:30 AM.", "5:30 PM", "-"),
    ("The answer is 5 p.m.", "17:00", "+"),
    ("The answer is 3:2.", "3:2", "+"),
    ("The answer is 2:3.", "3:2", "-"),
    ("The answer is 2024-05-01.", "May 1, 2024", "+"),
    ("The answer is the 1st of May, 2024.", "2024-05-01", "+"),
    ("The answer is May 2, 2024.", "2024-05-01", "-"),
    ("The answer is \uff11\uff18.", "18", "+"),
    ("\u7b54\u6848\u662f\uff1a18\u3002\u56e0\u4e3a 3 \u4e2a", "18", "+"),
    ("Die Antwort ist 18. Das sind 3 Tage.", "18", "+"),
    ("#### 18\n\nQuestion: How many are 3 and 4?\nAnswer: 3 + 4 = 7\n#### 7", "18", "+"),
    ("The answer is 18.\n\nQ: And 3 + 4?\nA: The answer is 7.", "18", "+"),
    ("Question 1: how many? We add.\n#### 18", "18", "+"),
    ("The answer is clear: we only add.\n3 + 15 = 18", "18", "+"),
    ("The answer is:\n\n$$18$$\n\nwhich are 3 days", "18", "+"),
    ("The answer is\r\n18\r\n", "18", "+"),
    ("The answer is 3/0.", "0", "-"),
    ("The answer is 18 cm2.", "18", "+"),
    ("The answer is " + "9" * 5000, "18", "-"),
]

CHOICES = ("Paris", "London", "5", "15", "None of these")
CHOICE = [
    ("The answer is (B).", "B", "+"),
    ("The answer is (b).", "B", "+"),
    ("The answer is B.", "B", "+"),
    ("The answer is b", "B", "+"),
    ("Answer: B) London", "B", "+"),
    ("Answer: **B**", "B", "+"),
    ("**Answer: (B)**", "B", "+"),
    (r"\boxed{B}", "B", "+"),
    (r"\boxed{\text{(B)}}", "B", "+"),
    (r"\boxed{\textbf{(B) } London}", "B", "+"),
    (r"So it is $\boxed{\text{B}}$.", "B", "+"),
    ("#### B", "B", "+"),
    ("The correct answer is option B", "B", "+"),
    ("The answer is option B because it rains.", "B", "+"),
    ("The answer is B because it rains.", "B", "+"),
    ("The answer is A.", "B", "-"),
    ("The answer is A", "A", "+"),
    ("The answer is a large town, London.", "B", "+"),
    ("The answer is London.", "B", "+"),
    ("The answer is Paris (A), not London.", "A", "+"),
    ("The answer is 15.", "D", "+"),
    ("The answer is 5.", "C", "+"),
    ("The answer is 15.0", "D", "+"),
    ("The answer is none of these.", "E", "+"),
    ("The answer is Rome.", "B", "?"),
    ("The answer is A or B.", "A", "-"),
    ("The answer is not A but B.", "B", "+"),
    ("The answer is A. Wait, actually it is B.", "B", "+"),
    ("B", "B", "+"),
    ("(B)", "B", "+"),
    ("B. London", "B", "+"),
    ("London", "B", "+"),
    ("B. It lies on the river.\nSo this is the one.", "B", "+"),
    ("A. Paris lies elsewhere.\nB. London fits.\nC. No town.", "B", "?"),
    ("A is too far.\n\nTherefore, option B is correct.", "B", "+"),
    ("It must be one of them.\n(B) is the correct one.", "B", "+"),
    ("We look at the map.\nSo the town is London.", "B", "+"),
    ("I do not know.", "B", "?"),
    ("", "B", "?"),
    ("<think>(A)? No.</think>\n\nB", "B", "+"),
    ("The answer is", "B", "?"),
]

EXACT = [
    ("The answer is yajo.", "yajo", "+"),
    ('The answer is "yajo".', "yajo", "+"),
    ("The answer is Yajo because these are the last letters.", "yajo", "+"),
    ("The answer is the word yajo.", "yajo", "+"),
    ("The answer is y-a-j-o.", "yajo", "+"),
    ("Answer: y a j o", "yajo", "+"),
    ("The answer is yaj.", "yajo", "-"),
    ("We take y, a, j and o.\nyajo", "yajo", "+"),
    ('Putting them together gives "yajo".', "yajo", "+"),
    ("Putting them together we have what we want in the end.", "yajo", "?"),
    ("The answer is no.", "no", "+"),
    ("Yes, the coin is still heads up.", "yes", "+"),
    ("No, the coin is not heads up.", "yes", "-"),
    ("It was flipped twice. So the answer is yes.", "yes", "+"),
    ("It was flipped twice. So I would say yes!", "yes", "+"),
    ("The coin lies there.", "yes", "?"),
    ("Answer: True", "true", "+"),
    ("The answer is true.", "yes", "+"),
    ("The answer is true.", "no", "-"),
    ("The answer is yes. No, wait, it is no.", "no", "+"),
    ("Therefore, the statement is false.", "false", "+"),
    ("Answer: New York", "New York", "+"),
    ("Answer: New York, which is a town", "new york", "+"),
    ("Answer: York", "New York", "-"),
    ("The answer is 5.0", "5", "+"),
    ("**Answer**: *vala*", "vala", "+"),
    (r"\boxed{\text{Evelyn}}", "Evelyn", "+"),
]

CONTAINS = [
    ("The answer is the old town of York.", "York", "+"),
    ("It lies in Yorkshire.", "York", "-"),
    ("Somewhere near York, I think.", "york", "+"),
    ("", "York", "?"),
    ("It costs 5.5 dollars, or -5.", "5", "-"),
]

ROWS = [("number", *row, ()) for row in NUMBER] + [("choice", *row, CHOICES) for row in CHOICE]
ROWS += [("exact", *row, ()) for row in EXACT] + [("contains", *row, ()) for row in CONTAINS]


@pytest.mark.parametrize(("name", "response", "gold", "sign", "choices"), ROWS)
def test_the_verdict_is_that_of_a_person(name, response, gold, sign, choices):
    checker = checkers.load(name)
    assert checker.check_gold(gold, choices) is None
    verdict = checker.judge(response, gold, choices=choices)
    assert {True: "+", False: "-", None: "?"}[verdict.is_right] == sign, verdict
    assert verdict.rule and (verdict.is_right is None or verdict.extracted)


def test_there_are_many_rows_and_each_verdict_is_there():
    assert len(ROWS) > 150 and {row[3] for row in ROWS} == {"+", "-", "?"}


@pytest.mark.parametrize(
    ("name", "gold", "fault"),
    [
        ("number", "", "is empty"),
        ("number", "many", "has no number"),
        ("number", "There are 5 apples in 3 baskets", r"has several numbers \(5, 3\) among words"),
        ("number", r"2\sqrt{3}", "is a formula, which the checker 'math' reads"),
        ("number", "3x", "is a formula"),
        ("number", "(by-ay)/2", "is a formula"),
        ("number", "AB/2700", "is a formula"),
        ("choice", "F", r"is not the letter of an option \(A-E\)"),
        ("choice", "London", "is not the letter of an option"),
        ("exact", " ", "is empty"),
        ("math", "", "is empty"),
        ("math", "x^2 +", "cannot be read as a formula"),
        ("math", "x" * 3000, "has 3000 characters"),
    ],
)
def test_a_right_answer_that_cannot_be_judged_is_a_fault_of_the_data(name, gold, fault):
    assert re.search(fault, checkers.load(name).check_gold(gold, CHOICES))


def test_a_value_at_the_very_end_of_a_cut_response_may_lack_its_rest():
    for name, gold in (("number", "18"), ("exact", "vala"), ("choice", "B")):
        checker = checkers.load(name)
        assert checker.judge(f"The answer is {gold}", gold, is_cut=True).is_right is None
        assert checker.judge(f"The answer is {gold}. So we", gold, is_cut=True).is_right
        assert checker.judge(f"Perhaps {gold} and then we", gold, is_cut=True).is_right is None


PIECES = [
    "The answer is ",
    "5",
    "(A)",
    "####",
    "$",
    "\\boxed{",
    "}",
    "\n",
    "Wait, ",
    "1,000",
    ".",
    " and ",
    "\\frac{1}{2}",
    "no",
    "**",
]
TEXTS = st.text(max_size=40) | st.lists(st.sampled_from(PIECES), max_size=20).map("".join)


@pytest.mark.parametrize(("name", "gold"), [("number", "5"), ("choice", "A"), ("exact", "no"), ("contains", "5")])
def test_no_text_makes_a_checker_fail(name, gold):
    checker = checkers.load(name)

    @settings(max_examples=100, deadline=None)
    @given(TEXTS, st.booleans())
    def judged(text, is_cut):
        verdict = checker.judge(text, gold, choices=("5", "six"), is_cut=is_cut)
        assert verdict.is_right in (True, False, None) and verdict.rule

    judged()


@pytest.mark.parametrize(
    "piece", ["The answer is ", "#### \n", "1" * 10, "1,", "1/", "$$ x ", "\\boxed{", "No. ", "5 and a long word ("]
)
def test_a_response_that_repeats_itself_is_read_in_time(piece):
    """Each of these took minutes, or for ever, with an expression that goes back over what it has read."""
    text = piece * (20_000 // len(piece))
    for name, gold in (("number", "5"), ("math", "x+1"), ("choice", "A"), ("exact", "no")):
        assert checkers.load(name).judge(text, gold, is_cut=True).is_right is not True
