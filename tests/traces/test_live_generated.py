# ruff: noqa: RUF001
"""Generated responses, cut at every token: the live reader says what the finished trace of the cut response says."""

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import trace_tokenizers
from chainwright.traces import LiveSteps, SegmentConfig, Trace

ANALYSIS = "<|channel|>analysis<|message|>"
MARKERS = [
    *("<think>", "</think>", '<think signature="x">', "<thinking>", "</thinking>", "[THINK]", "[/THINK]"),
    *("\u25c1think\u25b7", "\u25c1/think\u25b7", "`</think>`", '"<think>"', "`", "\n```\n", "```", "~~~\n", '"'),
    *(
        f"<|start|>assistant{ANALYSIS}",
        "<|end|>",
        "<|call|>",
        "<|channel|>final<|message|>",
        "<|channel|>",
        "<|start|>assistant",
    ),
    *("<|start|>functions.f to=assistant<|channel|>commentary<|message|>", "analysisWe", "assistantfinal"),
]
SCRIPTS = [
    *("The sum of all is four", "Hm. ", "12", "3.5", "? ", '." ', "?) ", ".** ", "\u2026 ", "a<b ", "Answer: 5"),
    *(
        "我们先把它加起来。",
        "对吗？！",
        "「はい。」",
        "答えは五です。",
        "यह पाँच है। ",
        "هل هذا صحيح؟ ",
        "． ",
        "🙂",
        "é",
    ),
    *(" ", "  ", "\u3000", "\u00a0", "; ", "therefore", "answer"),
]
LINE_ENDS = ["\n", "\n\n", "\r\n", "\r", "\u2028", "\x85", "\n \n"]
responses = st.lists(st.sampled_from([*MARKERS, *SCRIPTS, *SCRIPTS, *LINE_ENDS]), min_size=1, max_size=12).map("".join)
prompts = st.sampled_from(["Q: ", "Q<think>\n", "Q<think>\nOkay, first ", f"Q{ANALYSIS}", "Use <think> tags: "])
CONFIGS = [
    None,
    SegmentConfig(min_chars=1, merge_numbers=False),
    SegmentConfig(delimiter="blank lines", min_chars=4),
    SegmentConfig(delimiter=r";\s*|\u3002", min_chars=2),
    SegmentConfig(markers=("[THINK]", "[/THINK]")),
]


class OneByOne:
    """A tokenizer that has one token for each character."""

    all_special_ids: tuple[int, ...] = ()

    def __call__(self, text, **kwargs):
        return {"input_ids": [ord(c) for c in text]}

    def decode(self, ids, **kwargs):
        return "".join(map(chr, ids))

    def convert_tokens_to_ids(self, token):
        return None

    def convert_ids_to_tokens(self, token_id):
        return chr(token_id)


def check_cut(tokenizer, trace, place, n):
    """Compare the place of token `n - 1` with the finished trace of the first `n` tokens."""
    live = (place.question_end, n if place.thinking_end < 0 else place.thinking_end)
    if trace.style == "plain" and place.thinking_end < 0:
        assert live[0] == trace.question.end  # no line announces an answer
    elif not trace.response:
        assert live[0] == trace.question.end  # tokens without text are no summary yet
    else:
        assert live == (trace.question.end, trace.thinking.end), trace.response


def check_steps(trace, places, styles):
    """Compare the steps of a whole trace with what was announced while it seemed to be thinking.

    A step that begins before the markers of the style have come is not announced: `<|end|>` ends one in Harmony alone.
    """
    every = zip(trace.steps, trace.is_models_step, strict=True)
    inside = [step for step, is_models in every if is_models and step.start < trace.thinking.end]
    for before, step in pairwise(inside):
        seemed = places[step.start]
        if styles[step.start + 1] != trace.style:
            continue
        if seemed.thinking_end < 0 and seemed.question_end == trace.question.end:
            assert seemed.previous is not None, (trace.response, step)
            assert seemed.previous.start == before.start, (trace.response, step)
    for i in trace.tool_steps:
        assert not any(place.previous == trace.steps[i] for place in places)


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
@pytest.mark.parametrize("style", ["auto", "think", "harmony", "plain"])
@given(response=responses, prompt=prompts)
@example(response="<|start|>assistant[THINK]<|channel|>final<|message|>", prompt="Q: ")
@example(response="<|start|>assistant\u25c1think\u25b7<|channel|>final<|message|>", prompt="Q<think>\n")
@example(response="<|end|><think><|channel|>final<|message|>", prompt="Q: ")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_cut_is_read_as_the_finished_trace(config, style, response, prompt):
    tokenizer = OneByOne()
    ids = tokenizer(prompt + response)["input_ids"]
    row = LiveSteps(tokenizer, style, config).row(len(prompt))
    places = row.extend(ids)
    styles = {}
    for n in range(len(prompt) + 1, len(ids) + 1):
        trace = Trace.from_ids(tokenizer, ids[:n], len(prompt), style=style, segment_config=config or SegmentConfig())
        check_cut(tokenizer, trace, places[n - 1], n)
        styles[n] = trace.style
    check_steps(trace, places, styles)
    assert row.copy().places == places


@pytest.mark.parametrize("name", ["byte level", "byte fallback", "metaspace"])
@given(response=responses, prompt=prompts, style=st.sampled_from(["auto", "think", "harmony"]))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_same_with_tokens_of_several_characters_or_less_than_one(name, response, prompt, style):
    tokenizer = trace_tokenizers.ALL[name]()
    ids = tokenizer(prompt + response)["input_ids"]
    n_prompt = min(len(tokenizer(prompt)["input_ids"]), len(ids) - 1) or 1
    row = LiveSteps(tokenizer, style).row(n_prompt)
    places = row.extend(ids)
    for n in range(n_prompt + 1, len(ids) + 1):
        trace = Trace.from_ids(tokenizer, ids[:n], n_prompt, style=style)
        check_cut(tokenizer, trace, places[n - 1], n)


@given(response=responses, more=responses, prompt=prompts, data=st.data())
@settings(max_examples=100, deadline=None)
def test_text_that_is_taken_back_leaves_no_trace(response, more, prompt, data):
    tokenizer = OneByOne()
    ids = tokenizer(prompt + 60 * "We add. " + response)["input_ids"]
    how = LiveSteps(tokenizer)
    places = how.row(len(prompt)).extend(ids)
    row = how.row(len(prompt))
    n = data.draw(st.integers(len(prompt), len(ids)))
    row.extend(ids[:n] + tokenizer(more)["input_ids"])
    row.truncate(n)
    row.extend(ids[n:])
    assert row.places == places
