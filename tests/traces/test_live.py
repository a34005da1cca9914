"""Reading a response token by token gives what reading the text up to each token gives, and in the end the trace."""

import string
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chainwright import tasks
from chainwright._errors import BadInput
from chainwright.models import load_model
from chainwright.traces import Trace
from chainwright.traces.live import LiveSteps, Place, _Response
from chainwright.traces.offsets import MarkerDecoder
from chainwright.traces.segments import ONE_LINE_ONE_STEP, SegmentConfig
from trace_tokenizers import byte_fallback, byte_level, late_spaces, metaspace


class Characters:
    """A tokenizer with a token for each ASCII character, some pairs, and markers as single tokens besides."""

    def __init__(self) -> None:
        self.tokens = [*string.printable, "<think>", "</think>", ". ", ".\n", " The", "\n\n", "answer"]
        self.all_special_ids: list[int] = []

    def __call__(self, text: str, **kwargs: object) -> dict:
        return {"input_ids": [self.tokens.index(c) for c in text]}

    def decode(self, ids: list[int], **kwargs: object) -> str:
        return "".join(self.tokens[i] for i in ids)

    def convert_tokens_to_ids(self, token: str) -> int | None:
        return self.tokens.index(token) if token in self.tokens else None

    def convert_ids_to_tokens(self, token_id: int) -> str:
        return self.tokens[token_id]


TOKENIZER = Characters()
PIECES = ["<think>", "</think>", "<", "think", ">", ". ", "\n", "\n\n", "The sum of all is four", "answer", "answer 5",
          "ing",
          "Hm. ", "12", "3.5", " ", "  ", "Therefore", "<|channel|>final<|message|>", "<|channel|>analysis<|message|>",
          "? ", "the final answer", "x" * 15]  # fmt: skip
texts = st.lists(st.sampled_from(PIECES), min_size=1, max_size=14).map("".join)


def read(how: LiveSteps, prompt: str, response: str):
    row = how.row()
    row.extend(TOKENIZER(prompt)["input_ids"])
    return row, [row.extend(TOKENIZER(c)["input_ids"])[0] for c in response]


@pytest.mark.parametrize("style", ["think", "harmony", "plain", "auto"])
@pytest.mark.parametrize("prompt", ["Q: 2+2? ", "Q: 2+2? <think>\n"])
@given(response=texts)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_segments_at_the_end_are_those_of_the_trace(style: str, prompt: str, response: str) -> None:
    row, places = read(LiveSteps(TOKENIZER, style), prompt, response)
    trace = Trace.from_ids(TOKENIZER, row.ids, len(prompt), style=style)
    last = places[-1]
    live = (last.question_end, last.thinking_end if last.thinking_end >= 0 else len(trace))
    if trace.style == "plain" and last.thinking_end < 0:
        assert trace.thinking.start == live[0]  # no line announces an answer
        return
    assert live == (trace.question.end, trace.thinking.end)


@pytest.mark.parametrize("config", [None, ONE_LINE_ONE_STEP, SegmentConfig(min_chars=4)])
@given(response=texts)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_step_of_the_trace_is_announced_with_the_step_before_it(config, response: str) -> None:
    how = LiveSteps(TOKENIZER, "think", config)
    row, _ = read(how, "Q<think>", response)
    trace = Trace.from_ids(TOKENIZER, row.ids, 8, style="think", segment_config=config)
    thinking = [step for step in trace.steps[1:] if step.start < trace.thinking.end]
    # what is between two blocks of thinking looks like a summary until the second one opens
    known = {step.start for step in thinking[1:] if row.places[step.start].thinking_end < 0}
    for before, step in pairwise(thinking):
        assert step.start not in known or row.places[step.start].previous == before, (response, step)
    fired = [i for i, place in enumerate(row.places) if place.previous and i < trace.thinking.end]
    assert known <= set(fired)
    if config == ONE_LINE_ONE_STEP and "<" not in response:
        said = [i for i in fired if response[i - 8].strip()]  # a blank at the start of a line may stay alone
        assert {step.start for step in thinking[1:]} >= set(said)
    for i in fired:
        assert row.places[i].previous.end == i


@given(response=texts, kept=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_tokens_that_are_taken_back_leave_no_trace(response: str, kept: int) -> None:
    how = LiveSteps(TOKENIZER)
    want, places = read(how, "Q: ", response)
    kept = min(kept, len(response))
    got, _ = read(how, "Q: ", response[:kept] + "</think>\nanswer. ")
    copied = got.copy()
    got.truncate(3 + kept)
    rest = TOKENIZER(response[kept:])["input_ids"]
    assert got.extend(rest) == places[kept:] and got.places == want.places
    assert len(copied.ids) == 3 + kept + len("</think>\nanswer. ")


@pytest.mark.parametrize("task", tasks.names())
def test_chains_of_the_bundled_tasks(task: str) -> None:
    _, tokenizer = load_model("reasoner")
    for problem in tasks.sample(task, 4, 3, seed=5, rendering="short"):
        trace = Trace.from_text(tokenizer, problem.prompt, problem.chain, problem=problem)
        row = LiveSteps(tokenizer, "auto", ONE_LINE_ONE_STEP).row(trace.response_start)
        places = row.extend(trace.input_ids.tolist())
        assert (places[-1].question_end, places[-1].thinking_end) == (trace.question.end, trace.thinking.end)
        inside = [s for s in trace.steps[1:] if s.start < trace.thinking.end]
        assert [places[s.start].previous for s in inside[1:]] == inside[:-1]
        assert places[trace.thinking.end].previous == inside[-1]
        assert sum(p.previous is not None for p in places) == len(inside)


def test_a_marker_split_over_tokens_counts_when_it_is_complete() -> None:
    row, places = read(LiveSteps(TOKENIZER, "think"), "Q", "<think>It is so.</think>Yes")
    ends = [(p.question_end, p.thinking_end) for p in places]
    assert ends[5] == (1, 1) and ends[6] == (8, -1)  # before `<think>` is complete all is summary
    assert ends[6 + len("It is so.</think>")] == (8, -1)
    assert ends[-3:] == 3 * [(8, 25)]
    assert [i for i, p in enumerate(row.places) if p.previous] == [25] and row.places[25].previous == (8, 25)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(BadInput, match="Unknown trace style 'thinking'"):
        LiveSteps(TOKENIZER, "thinking")
    with pytest.raises(BadInput, match="A question has at least one token; got 0"):
        LiveSteps(TOKENIZER).row(0)


class _ReadAgain(_Response):
    """Decodes and cuts all tokens again at each one, as one would without regard to time."""

    def append(self, token_id: int) -> Place:
        self.written.ids.append(token_id)
        self.written.reread()
        self._reader.restart()
        self.place = self._look()
        return self.place


LONG_PIECES = [*PIECES, "日本語", "🙂 ", "naïve café.", "a < b", "x<|y", "\nAnd then it goes on.\n", "- ", "+5",
               "Therefore it is.\n", "<|end|>\n<|start|>assistant"]  # fmt: skip
long_texts = st.lists(st.sampled_from(LONG_PIECES), min_size=12, max_size=30).map("".join)


@pytest.mark.parametrize(
    "tokenizer", [byte_level, metaspace, byte_fallback, late_spaces], ids=lambda make: make.__name__
)
@pytest.mark.parametrize("style", ["think", "harmony", "plain", "auto"])
@given(response=long_texts, prompt=st.sampled_from(["Q: ", "Q<think>\n"]), kept=st.integers(1, 200))
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_long_responses_are_read_as_if_anew_at_each_token(tokenizer, style, response, prompt, kept) -> None:
    how = LiveSteps(tokenizer(), style)
    ids = tokenizer()(response, add_special_tokens=False)["input_ids"]
    quick, again = (kind(how, MarkerDecoder(tokenizer()), prompt) for kind in (_Response, _ReadAgain))
    want, is_whole = [], []
    for token_id in ids:
        want.append(again.append(token_id))
        is_whole.append(not again.written.text.endswith("\ufffd"))
    got = [quick.append(token_id) for token_id in ids]
    assert [place[:2] for place in got] == [place[:2] for place in want]
    # a blank and half a character in one token: read by itself it begins a step, with the next token it does not
    assert [p for p, whole in zip(got, is_whole, strict=True) if whole] == [
        p for p, whole in zip(want, is_whole, strict=True) if whole
    ]
    kept = min(kept, len(ids))
    quick.truncate(kept, got[kept - 1])
    assert [quick.append(token_id) for token_id in ids[kept:]] == got[kept:]


def test_a_step_begins_at_the_first_token_of_a_character_that_takes_several() -> None:
    how = LiveSteps(byte_level(), "think", ONE_LINE_ONE_STEP)
    ids = byte_level()("<think>It is so.\n🙂 it is.\n", add_special_tokens=False)["input_ids"]
    row = how.row(1)
    places = row.extend([ids[0], *ids])
    first = next(i for i in range(1, len(ids)) if byte_level().decode(ids[:i]).endswith("\ufffd"))
    assert [i for i, place in enumerate(places) if place.previous] == [first]
