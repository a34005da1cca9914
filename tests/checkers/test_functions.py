"""Checkers by name: registered ones, and functions of the user's, which may fail, hang or return nonsense."""

import threading
import time

import pytest

from chainwright import BadInput, checkers, load_problems
from chainwright.checkers import Checker, Verdict
from chainwright.checkers._function import FunctionChecker
from chainwright.plugins import register
from chainwright.tasks import Problem
from chainwright.traces import Trace, read_traces, write_traces
from trace_tokenizers import byte_level


def ends_like(response, answer):
    return response.endswith(answer)


def second_choice(response, answer, *, choices=(), is_cut=False):
    return Verdict(choices[1] in response, choices[1], f"cut {is_cut}")


def of(function, answer="5", **more):
    return Problem("mine", 0, "Q", "", answer, (), "natural", checker=checkers.name_of(function), **more)


def test_a_function_judges_what_is_not_thinking():
    problem = of(ends_like)
    assert problem.checker == "test_functions:ends_like"
    assert problem.judge("<think>6</think>It is 5") == Verdict(True, None, "function test_functions:ends_like")
    assert problem.check("It is 6") is False
    seen = []
    of(lambda response, answer: seen.append(response)).judge("<think>5</think>So 6")
    assert seen == ["So 6"]


def test_a_function_may_take_options_and_return_a_verdict():
    problem = of(second_choice, "B", choices=("one", "two"))
    assert problem.judge("It is two", is_cut=True) == Verdict(True, "two", "cut True")
    assert of(lambda response, answer, **rest: None).judge("x").is_right is None


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda r, a: 1 / 0,
            r"The checker test_functions:<lambda> failed for the answer '5': ZeroDivisionError: division",
        ),
        (lambda r, a: "yes", r"returned 'yes' for the answer '5'; it must return True, False, None"),
        (lambda r, a: 1, r"returned 1 for the answer"),
    ],
)
def test_a_function_that_fails_is_named_in_one_sentence(function, message):
    with pytest.raises(BadInput, match=message):
        of(function).judge("It is 5")


def test_two_lambdas_keep_their_own_verdicts():
    always, never = of(lambda response, answer: True), of(lambda response, answer: False)
    assert always.check("x") and not never.check("x")


def test_what_is_no_function_of_two_texts_is_refused():
    with pytest.raises(BadInput, match=r"must be a function of \(response, answer\)"):
        checkers.name_of(lambda response: True)
    with pytest.raises(BadInput, match="A checker is a name"):
        checkers.name_of(7)


def test_a_function_that_hangs_is_noticed():
    gate = threading.Event()
    hanging = FunctionChecker("hanging", lambda r, a: gate.wait(20), seconds=0.05)
    begun = time.monotonic()
    with pytest.raises(
        BadInput, match=r"The checker hanging has not returned within 0\.05 s for the answer '5'; it hangs"
    ):
        hanging.judge("It is 5", "5")
    assert time.monotonic() - begun < 10
    gate.set()


def test_a_function_that_needs_the_main_thread_gets_it():
    where = []

    def guarded(response, answer):
        where.append(threading.current_thread())
        if where[-1] is not threading.main_thread():
            raise ValueError("signal only works in main thread of the main interpreter")
        return True

    checker = FunctionChecker("guarded", guarded)
    assert checker.judge("x", "5").is_right and checker.judge("x", "5").is_right
    assert [each is threading.main_thread() for each in where] == [False, True, True]


def test_functions_of_files_and_modules_are_found_by_name(tmp_path, monkeypatch):
    path = tmp_path / "my_judge.py"
    path.write_text("def judge(response, answer):\n    return answer in response\n\nvalue = 3\n")
    monkeypatch.chdir(tmp_path)
    for name in (f"{path}:judge", "my_judge.py:judge", "my_judge:judge"):
        assert checkers.load(name).judge("It is 5", "5").is_right
        assert checkers.load(name) is checkers.load(name)
    (tmp_path / "broken.py").write_text("import nothing_like_this\n")
    for name, message in [
        ("gone.py:judge", r"There is no file gone\.py"),
        ("my_judge.py:other", r"There is no 'other' in my_judge\.py"),
        ("my_judge.py:value", r"is a int; it must be a function or a Checker"),
        ("broken.py:judge", r"broken\.py cannot be imported for its checker: ModuleNotFoundError"),
        ("no_module_here:judge", r"module of the checker 'no_module_here:judge' cannot be imported"),
        (":judge", r"is named 'file\.py:function'"),
        ("nmber", r"Unknown checker 'nmber'; known: .*number.*Did you mean 'number'"),
    ]:
        with pytest.raises(BadInput, match=message):
            checkers.load(name)


def test_a_registered_class_is_a_checker_and_its_complaint_about_the_data_is_passed_on(tmp_path):
    @register("checker", "even")
    class Even(Checker):
        needs = "an even number"

        def judge(self, response_text, answer, *, choices=(), is_cut=False):
            return Verdict(response_text.strip() == answer, response_text.strip(), "whole response")

        def check_gold(self, answer, choices=()):
            return None if int(answer) % 2 == 0 else "is odd"

    assert checkers.load("even").judge(" 4 ", "4").is_right
    path = tmp_path / "set.jsonl"
    path.write_text('{"question": "a", "answer": 4}\n{"question": "b", "answer": 5}\n')
    with pytest.raises(BadInput, match=r"line 2 the answer '5' is odd \(checker even\)"):
        load_problems(path, checker="even")
    assert len(load_problems(path, checker="even", skip_bad=True)) == 1


def test_traces_that_a_function_judged_are_read_where_the_function_is_unknown(tmp_path):
    problem = Problem("mine", 0, "Q", "", "5", (), "natural", checker=checkers.name_of(ends_like))
    trace = Trace.from_text(byte_level(), "Q", "It is 5", problem=problem)
    write_traces(tmp_path / "a.parquet", [trace])
    checkers._loading._loaded.pop("test_functions:ends_like")
    (back,) = read_traces(tmp_path / "a.parquet")
    assert back == trace and back.outcome == "right"
