import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import trace_tokenizers
from chainwright import tasks
from chainwright._errors import BadInput, BadTrace
from chainwright.tasks import FirstError, Problem
from chainwright.traces import STYLES, SegmentConfig, Span, TokenOffsets, Trace, TraceSlot, read_traces, write_traces
from chainwright.traces._align import Alignment, deviation

ANALYSIS = "<|channel|>analysis<|message|>"
FINAL = "<|end|><|start|>assistant<|channel|>final<|message|>"
TINY = ([3, 1, 4, 1, 5], (0, 2), (2, 4), (4, 5), [(0, 2), (2, 4), (4, 5)])

names = st.sampled_from(sorted(trace_tokenizers.ALL))
pieces = st.sampled_from(
    [
        *("<think>", "</think>", ANALYSIS, FINAL, "<|channel|>", "Answer: 5", "<eos>", "日本語", "🙂"),
        *("\n", "\n\n", " ", ". ", "? ", "12", "3. ", "The coin is tails up now", "ann flips", "é", "."),
    ]
)
any_text = st.one_of(st.lists(pieces, max_size=12).map("".join), st.text(max_size=40))


def check_tiling(trace):
    """Written apart from the package's own checks."""
    n = len(trace)
    in_question = [0] * trace.question.end
    in_thinking = [1] * (trace.thinking.end - trace.thinking.start)
    in_summary = [2] * (trace.summary.end - trace.summary.start)
    segment_of = in_question + in_thinking + in_summary
    assert len(segment_of) == n == trace.n_tokens == trace.input_ids.shape[0] > 0
    assert trace.thinking.start == trace.question.end and trace.summary.start == trace.thinking.end
    assert [i for step in trace.steps for i in range(*step)] == list(range(n))
    assert all(start < end and len(set(segment_of[start:end])) == 1 for start, end in trace.steps)
    assert trace.steps[0] == trace.question


@settings(deadline=None, max_examples=200)
@given(names, any_text, any_text, st.sampled_from(["auto", *STYLES]))
def test_any_text_gives_parts_that_tile_the_tokens(name, question, response, style):
    tokenizer = trace_tokenizers.ALL[name]()
    trace = Trace.from_text(tokenizer, f"ann {question}", response, style=style)
    check_tiling(trace)
    assert trace.response_ids.tolist() == tokenizer(response, add_special_tokens=False)["input_ids"]


@settings(deadline=None, max_examples=200)
@given(names, st.data(), st.sampled_from(["auto", *STYLES]))
def test_any_ids_give_parts_that_tile_them(name, data, style):
    tokenizer = trace_tokenizers.ALL[name]()
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), min_size=1, max_size=40))
    trace = Trace.from_ids(tokenizer, ids, data.draw(st.integers(1, len(ids))), style=style)
    check_tiling(trace)
    assert trace.input_ids.tolist() == ids


def texts_of(tokenizer, trace):
    return [tokenizer.decode(trace.input_ids[slice(*step)], skip_special_tokens=False) for step in trace.steps]


def test_think_markers_by_hand():
    tokenizer = trace_tokenizers.byte_level()
    response = "<think>The coin is heads up. The coin is tails up.</think>\n\nIt is tails.\n\nAnswer: tails"
    trace = Trace.from_text(tokenizer, "The coin", response)
    # 2 prompt tokens and <think>; The| coin| is| he|ad|s| up|.|_ = 9; The| coin| is| tails| up|.|</think> = 7
    assert trace.style == "think"
    assert trace.response_start == 2
    assert (trace.question, trace.thinking) == ((0, 3), (3, 19))
    assert trace.steps[:3] == [(0, 3), (3, 12), (12, 19)]
    assert texts_of(tokenizer, trace) == [
        "The coin<think>",
        "The coin is heads up. ",
        "The coin is tails up.</think>",
        "\n\nIt is tails.\n\n",
        "Answer: tails",
    ]
    assert trace.response_ids.tolist() == trace.input_ids[2:].tolist()


def test_thinking_opened_in_the_prompt():
    tokenizer = trace_tokenizers.byte_level()
    trace = Trace.from_text(tokenizer, "The coin<think>\n", "The coin is tails.</think>tails")
    assert trace.style == "think"
    assert texts_of(tokenizer, trace) == ["The coin<think>\n", "The coin is tails.</think>", "tails"]
    assert trace.question == (0, 4)


def test_unclosed_thinking_has_no_summary():
    tokenizer = trace_tokenizers.byte_level()
    cut = tokenizer("The coin<think>The coin is")["input_ids"]
    trace = Trace.from_ids(tokenizer, cut, 2, stopped=False)
    assert (trace.question, trace.thinking, trace.summary) == ((0, 3), (3, 6), (6, 6))
    assert not trace.stopped


def test_harmony_channels_by_hand():
    tokenizer = trace_tokenizers.byte_level()
    text = f"The<|start|>assistant{ANALYSIS}The coin is tails.{FINAL}tails<|return|>"
    ids = tokenizer(text)["input_ids"]
    start = ids.index(tokenizer.convert_tokens_to_ids("<|channel|>"))
    trace = Trace.from_ids(tokenizer, ids, start)
    assert trace.style == "harmony"
    assert trace.response == f"{ANALYSIS}The coin is tails.{FINAL}tails"
    assert texts_of(tokenizer, trace) == [
        f"The<|start|>assistant{ANALYSIS}",
        f"The coin is tails.{FINAL}",
        "tails<|return|>",
    ]
    assert trace == Trace.from_ids(tokenizer, ids, start, style="harmony")


@pytest.mark.parametrize("name", sorted(trace_tokenizers.ALL))
def test_ids_give_the_trace_that_their_text_gave(name):
    tokenizer = trace_tokenizers.ALL[name]()
    response = "ann flips heads\nbob stays heads\n\nanswer heads"
    if name == "metaspace":
        response = response.replace("stays", "keeps")
    made = Trace.from_text(tokenizer, "bob", response)
    read = Trace.from_ids(tokenizer, made.input_ids, made.response_start)
    assert (read.steps, read.thinking, read.summary) == (made.steps, made.thinking, made.summary)
    assert tokenizer.decode(made.input_ids[made.summary.start :]).strip() == "answer heads"


def test_an_end_token_belongs_to_the_last_step_and_not_to_the_text():
    tokenizer = trace_tokenizers.word_level()
    ids = tokenizer("ann flips\nanswer tails<eos>")["input_ids"]
    trace = Trace.from_ids(tokenizer, ids, 2)
    assert trace.response == "flips\nanswer tails"
    assert trace.steps == [(0, 2), (2, 4), (4, 7)]


def test_one_token_and_no_response():
    tokenizer = trace_tokenizers.word_level()
    trace = Trace.from_ids(tokenizer, [7], 1)
    assert (len(trace), trace.steps, trace.thinking, trace.summary) == (1, [(0, 1)], (1, 1), (1, 1))
    assert trace.response == ""
    assert Trace.from_text(tokenizer, "", "").input_ids.tolist() == [tokenizer.bos_token_id]


@pytest.mark.parametrize(
    ("question", "style", "thinking"), [("ann", "plain", 0), ("ann", "think", 0), ("ann<think>", "think", 1)]
)
def test_a_response_of_nothing_but_an_end_token(question, style, thinking):
    tokenizer = trace_tokenizers.byte_level()
    ids = [*tokenizer(question)["input_ids"], tokenizer.eos_token_id]
    trace = Trace.from_ids(tokenizer, ids, len(ids) - 1, style=style)
    assert trace.thinking.end - trace.thinking.start == thinking
    assert len(trace.steps) == 2


def test_special_tokens_go_before_the_question_only_and_once():
    tokenizer = trace_tokenizers.word_level(eos=True)
    bos, ann = tokenizer.bos_token_id, tokenizer.convert_tokens_to_ids("ann")
    assert tokenizer("ann")["input_ids"] == [bos, ann, tokenizer.eos_token_id]
    assert Trace.from_text(tokenizer, "ann", "ann").input_ids.tolist() == [bos, ann, ann]
    assert Trace.from_text(tokenizer, "<bos> ann", "ann").input_ids.tolist() == [bos, ann, ann]


def test_a_response_that_the_tokens_cannot_spell_is_kept_as_given():
    tokenizer = trace_tokenizers.word_level()
    trace = Trace.from_text(tokenizer, "ann", "zoe   flips\nanswer   tails")
    assert trace.response == "zoe   flips\nanswer   tails"
    assert trace.steps == [(0, 2), (2, 5), (5, 7)]


def test_short_lines_are_steps_if_asked_or_if_the_problem_has_them():
    tokenizer = trace_tokenizers.word_level()
    response = "ann flips\nbob flips\nanswer tails"
    assert len(Trace.from_text(tokenizer, "ann", response).steps) == 3
    config = SegmentConfig(min_chars=1)
    assert len(Trace.from_text(tokenizer, "ann", response, segment_config=config).steps) == 4


# ---- with problems


@pytest.fixture(params=tasks.names())
def problem(request):
    return tasks.sample(request.param, 3, 1, seed=5)[0]


def gold_trace(problem, tokenizer=None):
    tokenizer = tokenizer or trace_tokenizers.task_words()
    return Trace.from_text(tokenizer, problem.prompt, problem.chain, problem=problem)


def test_a_gold_chain_is_right_in_every_slot(problem):
    trace = gold_trace(problem)
    check_tiling(trace)
    assert trace.is_correct is True
    assert trace.first_error is None and trace.first_error_position is None
    assert [slot.slot for slot in trace.slots] == list(range(len(problem.slots)))
    assert all(slot.is_right for slot in trace.slots)
    tokenizer = trace_tokenizers.task_words()
    for slot, gold in zip(trace.slots, problem.slots, strict=True):
        assert tokenizer.decode(trace.input_ids[slot.start : slot.end]) == gold.value
        assert (slot.expected, slot.error_type, slot.hop) == (gold.value, gold.error_type, gold.hop)


def test_a_short_chain_has_one_step_a_line(problem):
    trace = gold_trace(problem)
    tokenizer = trace_tokenizers.task_words()
    lines = [tokenizer.decode(trace.input_ids[slice(*step)]).strip() for step in trace.steps[1:]]
    assert lines == problem.chain.split("\n")


@pytest.mark.parametrize("rendering", ["short", "natural"])
@pytest.mark.parametrize("task", tasks.names())
def test_a_gold_chain_is_right_with_byte_level_tokens_too(task, rendering):
    problem = tasks.sample(task, 3, 1, seed=5, rendering=rendering)[0]
    tokenizer = trace_tokenizers.byte_level()
    trace = gold_trace(problem, tokenizer)
    check_tiling(trace)
    assert trace.is_correct and all(slot.is_right for slot in trace.slots)
    assert len(trace.slots) == len(problem.slots)
    for slot in trace.slots:
        assert slot.expected in tokenizer.decode(trace.input_ids[slot.start : slot.end])


def test_every_corrupted_slot_is_found_at_its_token():
    tokenizer = trace_tokenizers.task_words()
    problem = tasks.sample("parity", 4, 1, seed=2)[0]
    gold = gold_trace(problem)
    swap = {"heads": "tails", "tails": "heads", "flips": "stays", "stays": "flips"}
    for i, slot in enumerate(problem.slots):
        if slot.value == "end":
            continue
        wrong = swap.get(slot.value, "zoe" if slot.value != "zoe" else "yara")
        response = problem.chain[: slot.start] + wrong + problem.chain[slot.end :]
        trace = Trace.from_text(tokenizer, problem.prompt, response, problem=problem)
        assert trace.first_error.slot == i
        assert trace.first_error.got == wrong == response[trace.first_error.start : trace.first_error.end]
        assert trace.first_error_position == gold.slots[i].start
        assert tokenizer.decode(trace.input_ids[trace.first_error_position]) == wrong
        assert [read.is_right for read in trace.slots] == [True] * i + [False]
        assert trace.slots[i].error_type == trace.first_error.error_type
        assert (trace.slots[i].expected, trace.slots[i].got) == (slot.value, wrong)


def test_the_position_of_an_error_is_the_first_digit_that_differs():
    tokenizer = trace_tokenizers.task_words()
    problem = tasks.sample("moas", 3, 1, seed=1)[0]
    slot = next(s for s in reversed(problem.slots[:-1]) if len(s.value) == 2 and s.value.isdigit())
    wrong = slot.value[0] + str((int(slot.value[1]) + 1) % 10)
    response = problem.chain[: slot.start] + wrong + problem.chain[slot.end :]
    ids = tokenizer(problem.prompt)["input_ids"] + tokenizer(response, add_special_tokens=False)["input_ids"]
    ids.append(tokenizer.eos_token_id)
    n_question = len(tokenizer(problem.prompt)["input_ids"])
    trace = Trace.from_ids(tokenizer, ids, n_question, problem=problem)
    assert trace.first_error.got == wrong
    assert trace.first_error_position == trace.slots[-1].start + 1
    assert trace.slots[-1].end - trace.slots[-1].start == 2
    assert tokenizer.decode(trace.input_ids[trace.first_error_position]) == wrong[1]


def test_a_chain_that_breaks_off_has_its_error_at_the_end_token():
    tokenizer = trace_tokenizers.task_words()
    problem = tasks.sample("parity", 3, 1)[0]
    cut = problem.chain.rsplit("\n", 2)[0]
    trace = Trace.from_text(tokenizer, problem.prompt, cut, problem=problem)
    assert trace.first_error is not None and trace.first_error_position is None
    assert not trace.is_correct
    ids = [*trace.input_ids.tolist(), tokenizer.eos_token_id]
    ended = Trace.from_ids(tokenizer, ids, trace.response_start, problem=problem)
    assert ended.first_error == trace.first_error
    assert ended.first_error_position == len(ids) - 1


@pytest.mark.parametrize(
    ("expected", "got", "position"),
    [
        ("tails", "heads", 20),
        ("heads", "heals", 23),
        ("Heads", "heals", 23),
        ("124", "12", 22),
        ("12", "124", 22),
        ("ann", "", 20),
    ],
)
def test_where_what_is_said_leaves_what_is_due(expected, got, position):
    error = FirstError("state update", 3, 1, 20, 20 + len(got), expected, got)
    assert deviation(error) == position
    assert deviation(replace(error, error_type="unparsed")) == 20


def test_tokens_of_characters_by_hand():
    offsets = TokenOffsets("ab cé.", [Span(0, 2), Span(2, 4), Span(4, 5), Span(4, 5), Span(5, 6), Span(6, 6)])
    alignment = Alignment.of(offsets)
    assert alignment.anchors() == [0, 3, 4, 4, 5, 6]
    assert alignment.token_span(3, 5) == (1, 4)
    assert alignment.token_span(1, 2) == (0, 1)
    assert alignment.token_span(2, 2) == (1, 1)
    assert alignment.token_span(6, 6) == (6, 6)
    assert [alignment.token_at(i) for i in range(8)] == [0, 0, 1, 1, 2, 4, 5, None]


# ---- what a trace is


def test_a_trace_is_made_from_plain_tuples():
    trace = Trace(*TINY)
    assert trace.input_ids.dtype == torch.int64 and trace.input_ids.tolist() == TINY[0]
    assert trace.steps == [(0, 2), (2, 4), (4, 5)] and trace.steps[1].end == 4
    assert len(trace) == trace.n_tokens == 5
    assert trace.response_ids.tolist() == [4, 1, 5]
    assert (trace.style, trace.stopped, trace.slots, trace.info) == ("plain", True, (), {})


def test_equality_is_by_content():
    same = Trace(torch.tensor(TINY[0], dtype=torch.int32), *TINY[1:])
    assert Trace(*TINY) == same and hash(Trace(*TINY)) == hash(same)
    assert Trace([3, 1, 4, 1, 6], *TINY[1:]) != same
    assert Trace(*TINY, info={"seed": 1}) != same
    assert Trace(*TINY[:4], [(0, 2), (2, 3), (3, 4), (4, 5)]) != same
    assert same != "a trace"


def test_a_trace_does_not_follow_the_tensor_it_was_made_from():
    ids = torch.tensor(TINY[0])
    trace = Trace(ids, *TINY[1:])
    ids[0] = 9
    assert trace.input_ids[0] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"input_ids": []},
            "input_ids must be one row of at least one token, [T], got shape [0]; take one row",
        ),
        ({"input_ids": [[1, 2]]}, "got shape [1, 2]"),
        ({"input_ids": [1.5, 2.0]}, "input_ids must be whole numbers, got torch.float32."),
        ({"input_ids": ["a"]}, "input_ids must be token ids in one row, got list:"),
        ({"input_ids": [3, 1, 4, 1, -5]}, "input_ids must not be negative, got -5 at position 4."),
        ({"question": (1, 2)}, "question must begin at token 0, where the part before it ends, got 1."),
        ({"question": (0, 0)}, "thinking must begin at token 0, where the part before it ends, got 2."),
        ({"question": (0, 0), "thinking": (0, 4)}, "question must hold at least one token, got (0, 0)."),
        ({"question": 3}, "question must be a pair of token positions (start, end), got 3."),
        ({"thinking": (2, 1)}, "thinking must not end before it begins, got (2, 1)."),
        ({"thinking": (3, 4)}, "thinking must begin at token 2, where the part before it ends, got 3."),
        ({"summary": (4, 6)}, "summary must end at T = 5, the number of input_ids, got 6."),
        ({"steps": []}, "step 0 must be the question (0, 2), got no steps."),
        ({"steps": [(0, 3), (3, 5)]}, "step 0 must be the question (0, 2), got (0, 3)."),
        ({"steps": [(0, 2), (2, 5)]}, "step 1 (2, 5) crosses the border of the summary at 4."),
        (
            {"steps": [(0, 2), (3, 5)]},
            "step 1 must begin at token 2 and hold at least one token, got (3, 5).",
        ),
        (
            {"steps": [(0, 2), (2, 2)]},
            "step 1 must begin at token 2 and hold at least one token, got (2, 2).",
        ),
        ({"steps": [(0, 2), (2, 4)]}, "the last step must end at T = 5, the number of input_ids, got 4."),
        (
            {"steps": [(0, 2), (2, 4.5)]},
            "step 1 must be a pair of token positions (start, end), got (2, 4.5).",
        ),
        ({"style": "thoughts"}, "Unknown trace style 'thoughts'; known: auto, think, harmony, plain."),
        ({"info": {"a": [1]}}, "info takes texts, numbers and booleans by name, got 'a': list."),
        ({"response_start": 6}, "response_start must lie in 0..5, got 6."),
        ({"first_error_position": 5}, "first_error_position must be a token of 0..4, got 5."),
        ({"slots": [TraceSlot(4, 6, 0, "e", 0, "a", "b", False)]}, "slot 0 must lie in [0, 5), got (4, 6)."),
    ],
)
def test_what_contradicts_itself_is_refused_with_the_numbers(change, message):
    fields = dict(zip(["input_ids", "question", "thinking", "summary", "steps"], TINY, strict=True)) | change
    with pytest.raises(BadInput, match=re.escape(message)):
        Trace(**fields)


def test_a_question_needs_a_token():
    tokenizer = trace_tokenizers.byte_level()
    with pytest.raises(BadTrace, match="The question has no tokens"):
        Trace.from_text(tokenizer, "", "tails")
    with pytest.raises(BadTrace, match="n_question is 3, but a question takes 1 to all 2 of the input_ids"):
        Trace.from_ids(tokenizer, [40, 41], 3)
    with pytest.raises(BadTrace, match="n_question is 0"):
        Trace.from_ids(tokenizer, [40, 41], 0)


def test_errors_of_a_response_keep_their_place_in_the_text():
    problem = tasks.sample("parity", 2, 1)[0]
    response = "<think>Let me see.</think>" + chain_with(problem, 1, "nobody")
    trace = Trace.from_text(trace_tokenizers.byte_level(), problem.prompt, response, problem=problem)
    assert trace.first_error == problem.first_error(response)
    assert isinstance(trace.first_error, FirstError)
    assert trace.first_error_position is not None


# ---- thinking and summary


def think(thought, said, problem, style="think"):
    open_, close = {"think": ("<think>\n", "\n</think>\n\n"), "harmony": (ANALYSIS, FINAL)}[style]
    response = open_ + thought + (close + said if said is not None else "")
    return Trace.from_text(trace_tokenizers.byte_level(), problem.prompt, response, problem=problem)


@pytest.fixture(params=["think", "harmony"])
def marked(request):
    return request.param


def chain_with(problem, n, value):
    slot = problem.slots[n]
    return problem.chain[: slot.start] + value + problem.chain[slot.end :]


def test_a_wrong_summary_is_wrong_whatever_was_thought(marked):
    (problem,) = tasks.sample("moas", 3, 1, rendering="natural")
    wrong = chain_with(problem, -1, "999")
    trace = think(problem.chain, wrong, problem, marked)
    assert trace.is_correct is False and trace.is_exact is False
    assert trace.first_error is not None and trace.first_error.got == "999"
    assert trace.response[trace.first_error.start : trace.first_error.end] == "999"
    assert trace.first_error_position is not None and trace.first_error_position >= trace.summary.start
    assert all(slot.start >= trace.summary.start for slot in trace.slots)


def test_a_slip_that_is_corrected_while_thinking_is_no_error(marked):
    (problem,) = tasks.sample("moas", 3, 1, rendering="natural")
    slip = chain_with(problem, 0, "999") + "\nWait, that is wrong.\n" + problem.chain
    trace = think(slip, problem.chain, problem, marked)
    assert (trace.is_correct, trace.is_exact, trace.first_error) == (True, True, None)
    assert len(trace.slots) == len(problem.slots)


def test_a_right_answer_without_its_chain_has_no_error_and_no_known_chain(marked):
    (problem,) = tasks.sample("moas", 3, 1, rendering="natural")
    trace = think(chain_with(problem, 0, "999"), f"Answer: {problem.answer}", problem, marked)
    assert (trace.is_correct, trace.is_exact, trace.first_error) == (True, None, None)
    wrong = think(problem.chain, "Answer: 999", problem, marked)
    assert (wrong.is_correct, wrong.is_exact) == (False, False)
    assert wrong.first_error is not None and wrong.first_error.error_type == "unparsed"


def test_thinking_that_is_cut_answers_nothing(marked):
    (problem,) = tasks.sample("moas", 3, 1, rendering="natural")
    trace = think(problem.chain + "\nWait, let me check again, since I may have", None, problem, marked)
    assert trace.is_correct is False and trace.slots == ()
    opened = Trace.from_text(trace_tokenizers.byte_level(), "ann<think>\n", problem.chain, problem=problem)
    assert opened.style == "think" and opened.is_correct is False


def test_a_problem_without_slots_becomes_a_trace(tmp_path):
    problem = Problem("mine", 1, "What is 6 x 7?", chain="", answer="42", slots=())
    right, wrong = (
        Trace.from_text(trace_tokenizers.byte_level(), problem.prompt, text, problem=problem)
        for text in ("It is 42.", "It is 43.")
    )
    assert (right.is_correct, right.is_exact, right.is_unlocated) == (True, None, False)
    assert (wrong.is_correct, wrong.is_exact, wrong.is_unlocated) == (False, None, True)
    assert right.first_error is None and wrong.first_error is None and wrong.slots == ()
    write_traces(tmp_path / "a.parquet", [right, wrong])
    assert read_traces(tmp_path / "a.parquet") == [right, wrong]


judged_pieces = st.sampled_from(
    [
        *("<think>", "\n<think>\n", "</think>", ANALYSIS, FINAL, "<|end|>", "Answer: 71", "Answer: 5", "#### 71"),
        *("Wait, ", "it is 71", "not 5 but ", "71", "5", "\n", "\n\n", " ", ". ", "So ", "日本語"),
    ]
)


@settings(deadline=None, max_examples=200)
@given(st.lists(judged_pieces, max_size=9).map("".join))
def test_a_trace_is_judged_as_its_text_is(text):
    problem = Problem("mine", 1, "What is 70 + 1?", chain="", answer="71", slots=())
    tokenizer = trace_tokenizers.byte_level()
    trace = Trace.from_text(tokenizer, problem.prompt, text, problem=problem)
    assert trace.is_correct == problem.check(trace.response)


def test_an_answer_that_the_token_limit_cut_is_not_judged_right():
    tokenizer = trace_tokenizers.byte_level()
    problem = Problem("mine", 1, "What is 70 + 1?", chain="", answer="71", slots=())
    for text, stopped, is_correct in (
        ("Answer: 71", True, True), ("Answer: 71", False, False), ("Answer: 71. It", False, True),
        ("<think>70 + 1</think>Answer: 71", False, False), ("<think>So the answer is 71", False, False),
    ):  # fmt: skip
        question = tokenizer(problem.prompt)["input_ids"]
        ids = [*question, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        trace = Trace.from_ids(tokenizer, ids, len(question), problem=problem, stopped=stopped)
        assert trace.is_correct is is_correct, text


@settings(deadline=None, max_examples=100)
@given(st.lists(judged_pieces.filter(lambda p: "think" not in p and "|" not in p), max_size=9).map("".join))
def test_nothing_that_is_thought_is_an_answer(text):
    problem = Problem("mine", 1, "What is 70 + 1?", chain="", answer="71", slots=())
    tokenizer = trace_tokenizers.byte_level()
    for question, response in (("What?<think>\n", text), ("What?", "<think>" + text), ("What?", ANALYSIS + text)):
        assert Trace.from_text(tokenizer, question, response, problem=problem).is_correct is False
    closed = Trace.from_text(tokenizer, "What?", f"<think>{text}</think>Answer: 71", problem=problem)
    assert closed.is_correct is True
