"""The checker `math`: formulas by meaning, in a process that a time limit ends."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from chainwright import checkers
from chainwright.checkers import _process
from chainwright.checkers.mathematics import MathChecker

SECONDS = 0.5
ROWS = [
    (r"So $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}", "+"),
    (r"So $\boxed{\dfrac12}$.", r"\frac{1}{2}", "+"),
    (r"\boxed{0.5}", r"\frac{1}{2}", "+"),
    (r"\boxed{1}, no, \boxed{\frac{1}{\sqrt{2}}}", r"\frac{\sqrt{2}}{2}", "+"),
    (r"\boxed{\frac{\boxed{1}}{2}}", r"\frac12", "+"),
    (r"\boxed{(x+1)^2}", "x^2+2x+1", "+"),
    (r"\boxed{(x+1)^3}", "x^2+2x+1", "-"),
    (r"\boxed{\{2, 1\}}", r"\{1,2\}", "+"),
    (r"\boxed{[2, 5)}", "[2,5)", "+"),
    (r"\boxed{(2, 5)}", "[2,5)", "-"),
    (r"\boxed{(-\infty, 3) \cup (5, \infty)}", r"(-\infty,3)\cup(5,\infty)", "+"),
    (r"\boxed{\left( 3, \frac{\pi}{2} \right)}", r"(3,\pi/2)", "+"),
    (r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}", r"\begin{pmatrix}1\\2\end{pmatrix}", "+"),
    (r"\boxed{x = 5}", "5", "+"),
    (r"\boxed{5}", "x=5", "+"),
    (r"\boxed{50\%}", "50", "+"),
    (r"\boxed{3 \text{ cm}}", "3", "+"),
    (r"\boxed{90^\circ}", "90", "+"),
    (r"\boxed{\$5.50}", "5.50", "+"),
    (r"\boxed{1{,}234}", "1,234", "+"),
    (r"\boxed{\text{Evelyn}}", "Evelyn", "+"),
    (r"\boxed{\text{Briana}}", r"\text{Evelyn}", "-"),
    (r"\boxed{\text{even}}", "even", "+"),
    (r"\boxed{2\sqrt{3}+\sqrt{5}}", r"\sqrt{5}+2\sqrt{3}", "+"),
    ("The answer is $x^2$.", "x^2", "+"),
    (r"The final answer is \( \frac{3}{4} \).", "0.75", "+"),
    ("Answer: 3/4", r"\frac{3}{4}", "+"),
    ("#### 42", "42", "+"),
    ("Thus we have $$y = 2\\pi$$", r"2\pi", "+"),
    ("It is 42.", "42", "+"),
    ("I cannot say.", "42", "?"),
    (r"\boxed{\frac{1}{", "1", "?"),
    (r"\boxed{}", "1", "?"),
    (r"\boxed{5(\sqrt{3}+1)}", "5(\u221a3 + 1)", "+"),
    ("The answer is 7(\u221a3 \u2013 1).", "5(\u221a3 + 1)", "-"),
    (r"\boxed{\frac{1}{3}}", r"0.\overline{3}", "+"),
    (r"\boxed{x^2 +}", "x^2", "?"),
    ("The answer is I and III only.", "III only", "-"),
    ("The final answer is as we have shown above:\n$$y = x^2$$", "x^2", "+"),
    (r"<think>\boxed{1}</think>So $\boxed{2}$", "2", "+"),
]


@pytest.mark.parametrize(("response", "gold", "sign"), ROWS)
def test_the_verdict_is_that_of_a_person(response, gold, sign):
    checker = checkers.load("math")
    assert checker.check_gold(gold) is None
    verdict = checker.judge(response, gold)
    assert {True: "+", False: "-", None: "?"}[verdict.is_right] == sign, verdict


@pytest.fixture
def checker():
    made = MathChecker(seconds=SECONDS)
    yield made
    made.worker.close()


@pytest.mark.slow
def test_a_comparison_that_takes_too_long_is_ended_and_the_next_works(checker):
    assert checker.judge(r"\boxed{x+x}", "2x").is_right
    before = checker.worker._process.pid
    begun = time.monotonic()
    verdict = checker.judge(r"\boxed{9^{9^{9^{9}}} + x}", "x + 1")
    assert time.monotonic() - begun < 20
    assert verdict.is_right is not True
    assert checker.judge(r"\boxed{y+y}", "2y").is_right
    if f"not compared within {SECONDS:g} s" in verdict.rule:
        assert checker.worker._process.pid != before


def test_a_worker_that_hangs_is_killed_and_not_left_behind(checker, monkeypatch, tmp_path):
    script = tmp_path / "_math_worker.py"
    script.write_text("import time\nprint('\"ready\"', flush=True)\ninput()\ntime.sleep(600)\n")
    monkeypatch.setattr(_process, "__file__", str(tmp_path / "_process.py"))
    verdict = checker.judge(r"\boxed{x+1}", "x+2")
    assert verdict.is_right is None and verdict.rule == f"last boxed: not compared within {SECONDS:g} s"
    assert checker.worker._process is None
    assert checker.check_gold("x+2") == f"takes more than {SECONDS:g} s to read"


@pytest.mark.slow
def test_a_hanging_worker_ends_itself_when_its_parent_is_gone():
    code = (
        "import os, signal\n"
        "from chainwright.checkers._process import Worker\n"
        "w = Worker(1.0); w.compare('x', 'x'); print(w._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    worker = int(done.stdout)
    for _ in range(100):
        if (
            not os.path.exists(f"/proc/{worker}")
            or "Z" in open(f"/proc/{worker}/stat").read().rpartition(")")[2].split()[0]
        ):
            return
        time.sleep(0.05)
    raise AssertionError("the worker is still there")


def test_it_works_from_threads_and_sets_no_signal_handler():
    checker = MathChecker(seconds=60)
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    verdicts = []
    threads = [
        threading.Thread(target=lambda i=i: verdicts.append(checker.judge(rf"\boxed{{x+{i}}}", f"{i}+x").is_right))
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    checker.worker.close()
    assert verdicts == [True] * 4
    assert before == {number: signal.getsignal(number) for number in signal.valid_signals()}


def test_plain_numbers_and_equal_texts_need_no_library(monkeypatch):
    monkeypatch.setattr("chainwright.checkers.mathematics.find_spec", lambda name: None)
    checker = MathChecker()
    assert checker.judge("#### 42", "42.0").is_right
    assert checker.judge(r"\boxed{\sqrt{ 2 }}", r"\sqrt{2}").is_right
    assert checker.worker._process is None
    with pytest.raises(Exception, match=r"needs the library math-verify.*chainwright\[math\]"):
        checker.judge(r"\boxed{x}", "y+1")
