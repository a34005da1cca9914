"""Endless repetition is found where it is, and nothing else is taken for it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trace_tokenizers
from chainwright.traces import Trace
from chainwright.traces.loops import MIN_CHARACTERS, MIN_REPEATS, find_loop


def slowly(text):
    """Return start and period of the longest periodic end, tried one by one."""
    text = text.rstrip()
    for start in range(len(text) - MIN_CHARACTERS + 1):
        end = text[start:]
        for period in range(1, len(end) // MIN_REPEATS + 1):
            if end[period:] == end[:-period]:
                return (start, period) if any(c.isalpha() for c in end[:period]) else None
    return None


@settings(deadline=None, max_examples=60)
@given(st.text("ab 1", max_size=12), st.text("ab 1.", min_size=1, max_size=20), st.integers(0, 40), st.integers(0, 5))
def test_the_loop_is_the_longest_periodic_end(before, unit, n, more):
    text = before + unit * n + unit[:more]
    found = find_loop(text)
    assert (None if found is None else (found.start, found.period)) == slowly(text)


def test_a_loop_that_a_limit_cut_is_found_where_it_begins():
    start = "We add 5 and 7, which is 12:\n"
    found = find_loop(start + "So the answer is the same. " * 20 + "So the ans")
    assert (found.start, found.period) == (len(start), len("So the answer is the same. "))
    assert found.n_repeats == pytest.approx(20 + 10 / 27)
    assert find_loop("我们再算一遍。" * 30 + "我们").period == 7


@pytest.mark.parametrize(
    "text",
    [
        "", "a", "The answer is 12. " * 3, "no " * 20, "1" * 400, "1/3 = 0." + "3" * 400, "-" * 300, "| --- " * 80,
        "".join(f"Step {i}: add {i}. " for i in range(60)),
        "The same line. " * 40 + "But then it went on to say that the answer is 12, and that was that.",
    ],
)  # fmt: skip
def test_what_is_no_endless_repetition(text):
    assert find_loop(text) is None


def test_a_trace_says_that_it_loops():
    tokenizer = trace_tokenizers.byte_level()
    looping = Trace.from_text(tokenizer, "How many?", "heads or tails? " * 30, stopped=False)
    assert looping.is_looping and looping.loop.start == 0
    assert not Trace.from_text(tokenizer, "How many?", "12").is_looping


def test_a_long_response_takes_little_time():
    assert find_loop("".join(str(i) for i in range(40_000))) is None
    assert find_loop("x" + "ab" * 50_000).start == 1
