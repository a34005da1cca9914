"""Which markers of thinking count, and what is summary after them."""

import warnings

import pytest

import trace_tokenizers
from chainwright import tasks
from chainwright._errors import BadInput, UnknownMarkers
from chainwright.markers.borders import prompt_family
from chainwright.markers.known import PAIRS
from chainwright.traces import SegmentConfig, ThinkMarkers, Trace, detect_style, read_traces, segment, write_traces

ANALYSIS = "<|channel|>analysis<|message|>"
FINAL = "<|end|><|start|>assistant<|channel|>final<|message|>"
CALL = "<|start|>assistant<|channel|>commentary to=functions.sum <|constrain|>json<|message|>"
TOOL = "<|start|>functions.sum to=assistant<|channel|>commentary<|message|>"


def summary(response, question="Q", style="auto", markers=None):
    config = SegmentConfig(markers=markers)
    style = detect_style(question, response, config) if style == "auto" else style
    opened = prompt_family(question, style, config.pair()) or False
    parts = segment(response, style, opened=opened, config=config)
    return response[slice(*parts.summary)]


@pytest.mark.parametrize(
    ("response", "rest"),
    [
        # several blocks: what is between them is thinking
        ("<think>I add.</think>So far 5.<think>No, 7.</think>\n\nIt is 7.", "\n\nIt is 7."),
        ("<think>a</think><think>b</think><think>c</think>It is 7.", "It is 7."),
        ("<think>a</think>It is 5.\n<think>wait", ""),
        # nested ones
        ("<think>outer <think>inner</think> outer</think>It is 7.", "It is 7."),
        ("<think>\nouter\n<think>\ninner\n</think>\nouter: it is 5", ""),
        ("<think>\n<think>\nI add.\n</think>\nIt is 7.", "\nIt is 7."),
        # closed twice; a closing marker with nothing after it does not take the answer away
        ("<think>I add.</think>More.</think>It is 7.", "It is 7."),
        ("<think>I add.</think>It is 7.\n</think>", "It is 7.\n</think>"),
        ("I add.</think>It is 7.", "It is 7."),
        # quoted ones
        ("<think>I write `</think>` at the end. So</think>It is 7.", "It is 7."),
        ('<think>I write "</think>" at the end. So', ""),
        ("<think>It ends with \u201c</think>\u201d or (</think>).</think>It is 7.", "It is 7."),
        ("<think>As in ``a `</think>` b`` it", ""),
        ('<think>The tags "<think>...</think>" are', ""),
        ("<think>So:\n```xml\n<think>x</think>\n```\nNow it is 5", ""),
        ("<think>So:\n~~~~\n```\n</think>\n~~~~\nI see.</think>It is 7.", "It is 7."),
        ("<think>The answer is \"5\"</think>It is '7'.", "It is '7'."),
        ("<think>Let x = `a</think>It is 7.\n`b`", "It is 7.\n`b`"),
        ("<think>a</think>Write `<think>` first.", "Write `<think>` first."),
        ("<think>a</think>The <think> tag, then 7.", "The <think> tag, then 7."),
        # attributes, capitals and a preamble
        ('<think signature="x">I add.</think >It is 7.', "It is 7."),
        ('<think signature="x">I add. It is 5', ""),
        ("<THINK>I add.</THINK>It is 7.", "It is 7."),
        ("Let me work.\n<think>\nIt is 5", ""),
        ("Let me work. <think> It is 5", ""),
        ("Sure: <think>It is 5</think>7", "7"),
        # the first pair that occurs is the one that counts
        ("<think>I write <thinking>x</thinking> here.</think>It is 7.", "It is 7."),
        ("<thinking>a</think>b</thinking>It is 7.", "It is 7."),
    ],
)
def test_the_summary_after_think_markers(response, rest):
    assert summary(response) == rest
    assert detect_style("Q", response) == "think"


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.open)
def test_known_pairs(pair):
    assert summary(f"{pair.open}I add.{pair.close}It is 7.") == "It is 7."
    assert summary(f"Well.\n{pair.open}\nI add.\nIt is 5") == ""
    assert summary(f"I add. It is 5.\n{pair.close}\nIt is 7.", f"Q{pair.open}\n") == "\nIt is 7."
    assert summary("I add. It is 5", f"Q{pair.open}\nOkay, first") == ""


@pytest.mark.parametrize("style", ["auto", "think"])
def test_markers_of_the_users_own(style):
    own = ("<<plan>>", "<</plan>>")
    assert summary("<<plan>>I <think>add.<</plan>>It is 7.", style=style, markers=own) == "It is 7."
    assert summary("Fine.\n<<plan>>It is 5", style=style, markers=own) == ""
    assert summary("It is 5", "Q <<plan>>", style=style, markers=own) == ""
    trace = Trace.from_text(trace_tokenizers.byte_level(), "ann", "<<plan>>bob<</plan>>ann", markers=own)
    assert (trace.style, trace.response[-3:]) == ("think", "ann")
    assert trace.summary.start < len(trace) and trace.thinking.start == trace.question.end
    config = SegmentConfig(markers=ThinkMarkers(*own))
    assert trace == Trace.from_ids(
        trace_tokenizers.byte_level(), trace.input_ids, trace.response_start, segment_config=config
    )


@pytest.mark.parametrize("markers", [("", "b"), ("a", "a"), ("a\n", "b"), ("a", 3), "ab", ("a", "b", "c"), ("`a", "b")])
def test_markers_that_are_no_pair_are_refused(markers):
    with pytest.raises(BadInput, match=r"[Mm]arker"):
        SegmentConfig(markers=markers)


@pytest.mark.parametrize(
    ("question", "is_open"),
    [
        ("Q<think>\n", True),
        ("Q<think>\nOkay, first", True),
        ("<|im_start|>assistant\n<think>\n", True),
        ("<think>a</think>b. Now <think>\nso", True),
        ("Q<think>\n\n</think>\n\n", False),
        ("Put your reasoning between <think> and </think>.", False),
        ("Use <think> tags for it. What is 2+2?", False),
        ("Use `<think>` first. What is 2+2?", False),
        ("A: <think>I add\n<|im_end|>\n<|im_start|>assistant\n", False),
        (f"Q<|start|>assistant{ANALYSIS}I add", True),
        (f"Q<|start|>assistant{ANALYSIS}I add<|call|>{TOOL}5<|end|><|start|>assistant", False),
    ],
)
def test_a_prompt_that_ends_inside_thinking(question, is_open):
    assert (prompt_family(question, "auto") is not None) is is_open
    style = detect_style(question, "It is 5")
    assert (style != "plain") is is_open
    assert summary("It is 5", question) == ("" if is_open else "It is 5")


def test_harmony_whose_special_tokens_were_stripped():
    text = "analysisWe add 2 and 3. So 5.assistantcommentary to=functions.sum json{}assistantfinalIt is 7."
    assert detect_style("Q", text) == "harmony" and summary(text) == "It is 7."
    assert summary("analysisWe add 2 and 3. It is 5") == ""
    assert summary("We add. It is 5.assistantfinalIt is 7.") == "It is 7."
    for plain in ("analysis shows that it is 7.", "analysis: it is 7.", "The assistant final."):
        assert detect_style("Q", plain) == "plain"


def test_harmony_with_a_quoted_header_and_with_a_second_analysis():
    assert summary(f"{ANALYSIS}It ends with `<|channel|>final<|message|>` and is 5") == ""
    assert summary(f"{ANALYSIS}a{FINAL}It is 5.<|end|><|start|>assistant{ANALYSIS}No, 7.{FINAL}It is 7.") == "It is 7."
    assert summary(f"{ANALYSIS}so:\n```py\nx = 1{FINAL}```py\nx = 7\n```\n") == "```py\nx = 7\n```\n"


def test_messages_and_tools_of_harmony_are_steps():
    text = (
        f"{ANALYSIS}We need a sum. OK.<|end|>{CALL}"
        '{"terms": [2, 3]}<|call|>'
        f"{TOOL}The sum is five. It was easy.\nYes.<|end|>"
        f"<|start|>assistant{ANALYSIS}So it is five. I am done with it now.{FINAL}It is 5."
    )
    parts = segment(text, "harmony")
    steps = [text[slice(*step)] for step in parts.steps]
    assert steps == [
        "We need a sum. OK.<|end|>",
        CALL + '{"terms": [2, 3]}<|call|>',
        TOOL + "The sum is five. It was easy.\nYes.<|end|>",
        f"<|start|>assistant{ANALYSIS}So it is five. ",
        f"I am done with it now.{FINAL}",
        "It is 5.",
    ]
    assert [text[slice(*step)] for step in parts.tools] == steps[2:3]


def test_the_header_after_a_tool_is_the_models(tmp_path):
    text = f"{ANALYSIS}We need a sum of them.<|end|>{CALL}[2, 3]<|call|>{TOOL}five<|end|>{FINAL[7:]}It is 5."
    parts = segment(text, "harmony")
    assert [text[slice(*step)] for step in parts.steps][2:] == [f"{TOOL}five<|end|>", FINAL[7:], "It is 5."]
    tokenizer = trace_tokenizers.byte_level()
    trace = Trace.from_text(tokenizer, "ann", text)
    assert trace.tool_steps == (3,) and trace.is_models_step == (False, True, True, False, True, True)
    assert "five" in tokenizer.decode(trace.input_ids[slice(*trace.steps[3])])
    write_traces(tmp_path / "a.parquet", [trace])
    assert read_traces(tmp_path / "a.parquet") == [trace]


@pytest.mark.parametrize(
    ("response", "tag"),
    [
        ("<scratchpad>I add.</scratchpad>It is 7.", "<scratchpad>"),
        ("<|thinking|>I add.<|/thinking|>It is 7.", "<|thinking|>"),
        ("[REASON]I add.[/REASON]It is 7.", "[REASON]"),
        ('<my_thoughts id="1">I add.</my_thoughts>It is 7.', '<my_thoughts id="1">'),
    ],
)
def test_a_tag_that_looks_like_a_marker_is_warned_about(response, tag):
    tokenizer = trace_tokenizers.byte_level()
    with pytest.warns(UnknownMarkers, match="looks like a marker of thinking") as record:
        trace = Trace.from_text(tokenizer, "ann", response)
    assert repr(tag) in str(record[0].message) and trace.style == "plain"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Trace.from_text(tokenizer, "ann", response, style="plain")
        Trace.from_text(tokenizer, "ann", "I say <think> and <b>bold</b> [1] and <|x|>.\nIt is 7.")


def test_a_cut_answer_is_no_answer_and_the_last_block_is_not_judged():
    problem = tasks.sample("parity", 4, 1, seed=3)[0]
    tokenizer = trace_tokenizers.byte_level()

    def judged(response, question=problem.prompt, **kwargs):
        return Trace.from_text(tokenizer, question, response, problem=problem, **kwargs).is_correct

    for opening in (
        '<think signature="x">',
        "Let me work.\n<think>",
        "\u25c1think\u25b7",
        "[THINK]",
        "analysisWe do. ",
    ):
        assert judged(opening + problem.chain) is False, opening
    assert judged(problem.chain, problem.prompt + "<think>\nOkay, first") is False
    assert judged(f"<plan>{problem.chain}", markers=("<plan>", "</plan>")) is False
    assert judged(f"<think>a</think>b<think>c</think>\n{problem.chain}") is True
