import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainwright._errors import BadInput
from chainwright.traces import ONE_LINE_ONE_STEP, STYLES, SegmentConfig, detect_style, segment

ANALYSIS = "<|channel|>analysis<|message|>"
FINAL = "<|end|><|start|>assistant<|channel|>final<|message|>"

pieces = st.sampled_from(
    [
        *("<think>", "</think>", ANALYSIS, FINAL, "<|channel|>final<|message|>", "<|channel|>", "Answer: 5"),
        *(
            "\n",
            "\n\n",
            " ",
            ". ",
            "? ",
            "! ",
            "12",
            "3. ",
            "The coin is tails up now",
            "short",
            "é",
            "🙂",
            ".",
        ),
    ]
)
any_text = st.one_of(st.lists(pieces, max_size=20).map("".join), st.text(max_size=60))


def parts(text, style, **options):
    """The texts of the opening, of the thinking's steps and of the summary's steps."""
    found = segment(text, style, **options)
    thinking = [text[a:b] for a, b in found.steps if a < found.thinking.end]
    summary = [text[a:b] for a, b in found.steps if a >= found.summary.start]
    return text[: found.opening.end], thinking, summary


@given(any_text, st.sampled_from(STYLES), st.booleans(), st.sampled_from([1, 15, 40]))
def test_parts_and_steps_tile_any_text(text, style, opened, min_chars):
    found = segment(text, style, opened=opened, config=SegmentConfig(min_chars=min_chars))
    borders = [found.opening, found.thinking, found.summary]
    assert borders[0].start == 0 and borders[-1].end == len(text)
    assert [a.end for a in borders[:-1]] == [b.start for b in borders[1:]]
    position = found.opening.end
    for start, end in found.steps:
        assert start == position < end
        assert not start < found.summary.start < end
        position = end
    assert position == len(text)


@given(any_text, st.booleans(), st.text(st.characters(exclude_characters="<`~[\u25c1"), max_size=40))
def test_text_without_markers_after_the_thinking_leaves_it_as_it_is(text, opened, more):
    thinking = segment(text, "think", opened=opened).thinking
    # a second closing marker counts once text follows it
    if "</think>" not in text[thinking.end :] and (thinking.end < len(text) or text.endswith("</think>")):
        assert segment(text + more, "think", opened=opened).thinking == thinking


def test_think_markers_close_the_segment_before_them():
    text = "<think>\nThe coin is heads up. Now it is tails up.\n</think>\n\nIt flipped once.\n\nAnswer: tails"
    assert parts(text, "think") == (
        "<think>",
        ["\nThe coin is heads up. ", "Now it is tails up.\n</think>"],
        ["\n\nIt flipped once.\n\n", "Answer: tails"],
    )


def test_thinking_opened_in_the_prompt_and_never_closed_is_all_thinking():
    text = "The coin is heads up now. Then it is"
    assert parts(text, "think", opened=True) == ("", ["The coin is heads up now. Then it is"], [])
    assert parts(text, "think") == ("", [], [text])
    assert parts("<think>" + text, "think") == ("<think>", [text], [])


def test_a_closing_marker_alone_ends_the_thinking():
    assert parts("Some thoughts of mine.</think>Tails.", "think") == (
        "",
        ["Some thoughts of mine.</think>"],
        ["Tails."],
    )
    assert parts("</think>Tails.", "think", opened=True) == ("", ["</think>"], ["Tails."])


def test_an_opening_marker_that_is_a_word_does_not_count_and_the_last_closing_one_does():
    assert parts("<think>I could write <think> again.</think>Done twice.", "think") == (
        "<think>",
        ["I could write <think> again.</think>"],
        ["Done twice."],
    )
    late = "Well then. <think>hm</think>yes"
    assert parts(late, "think") == ("", ["Well then. <think>hm</think>"], ["yes"])


def test_harmony_channels():
    text = f"{ANALYSIS}We flip the coin once. So it is tails.{FINAL}Tails.\n\nBecause of ann."
    assert parts(text, "harmony") == (
        ANALYSIS,
        ["We flip the coin once. ", f"So it is tails.{FINAL}"],
        ["Tails.\n\n", "Because of ann."],
    )


def test_harmony_without_analysis_has_no_thinking():
    text = "<|channel|>final<|message|>Tails."
    assert parts(text, "harmony") == ("<|channel|>final<|message|>", [], ["Tails."])
    assert parts("Tails.", "harmony") == ("", [], ["Tails."])


def test_harmony_cut_before_its_final_channel_is_all_thinking():
    assert parts(f"{ANALYSIS}We flip the coin once.", "harmony") == (ANALYSIS, ["We flip the coin once."], [])


@pytest.mark.parametrize(
    "line",
    [
        "Answer: 5",
        "**Final answer:** 5",
        "The answer is 5.",
        "the final answer is 5",
        "Therefore, 5.",
        "#### 5",
        "\\boxed{5}",
        "$\\boxed{5}$",
        "## Answer",
        "- answer 5",
    ],
)
def test_plain_summary_begins_at_the_last_answer_line(line):
    thinking = "Answer what? We add two and three.\n"
    assert parts(f"{thinking}{line}\nI hope it helps.", "plain") == (
        "",
        [thinking],
        [f"{line}\nI hope it helps."],
    )


def test_plain_summary_is_else_the_last_line_that_is_not_blank():
    assert parts("We add two and three.\nanswers vary\n \n", "plain") == (
        "",
        ["We add two and three.\n"],
        ["answers vary\n \n"],
    )


def test_sentences_end_at_stops_and_newlines_and_small_ones_join_the_step_before():
    text = "Hm. The coin starts heads up! Does ann flip it? She does so.\n\n1. \n42\nIt is tails up now.</think>"
    assert parts(text, "think")[1] == [
        "Hm. The coin starts heads up! ",
        "Does ann flip it? She does so.\n\n1. \n42\n",
        "It is tails up now.</think>",
    ]


def test_a_small_first_fragment_grows_until_it_is_a_step():
    assert parts("A. B. C. This is long enough. Yes it is so now.</think>", "think")[1] == [
        "A. B. C. This is long enough. ",
        "Yes it is so now.</think>",
    ]


def test_a_bare_number_is_no_step_at_any_length_but_an_equation_is():
    text = "This is the first sentence.\n12345678901234567890\n12 + 345 + 6789 = 7146\n</think>"
    assert parts(text, "think")[1] == [
        "This is the first sentence.\n12345678901234567890\n",
        "12 + 345 + 6789 = 7146\n</think>",
    ]


def test_one_line_is_one_step_where_that_is_asked():
    text = "start heads\n7\nann flips tails\nanswer tails"
    assert parts(text, "plain", config=ONE_LINE_ONE_STEP) == (
        "",
        ["start heads\n", "7\n", "ann flips tails\n"],
        ["answer tails"],
    )
    assert parts(text, "plain")[1] == ["start heads\n7\nann flips tails\n"]


@pytest.mark.parametrize("noise", ["*", " ", ".", "1", "1.", "\n", "<", "<|channel|>", "#", "a. "])
@pytest.mark.parametrize("style", STYLES)
def test_degenerate_text_takes_no_quadratic_time(style, noise):
    text = noise * 60_000 + "x"
    assert segment(text, style).summary.end == len(text)


@pytest.mark.parametrize("style", STYLES)
def test_an_empty_response_has_no_steps(style):
    found = segment("", style)
    assert found.steps == ()
    assert found.opening == found.thinking == found.summary == (0, 0)


@pytest.mark.parametrize(
    ("question", "response", "style"),
    [
        ("q", "just text", "plain"),
        ("q", "<think>a", "think"),
        ("q<think>\n", "a", "think"),
        ("q", "a</think>b", "think"),
        ("q<think>\n\n</think>\n\n", "a", "plain"),
        ("q", f"{ANALYSIS}a", "harmony"),
        (f"q{ANALYSIS}", "a", "harmony"),
        ("q", "<|channel|>final<|message|>a", "harmony"),
        ("q", "I say <think> and <|channel|>", "plain"),
    ],
)
def test_the_style_is_told_by_the_markers(question, response, style):
    assert detect_style(question, response) == style


def test_an_unknown_style_is_named_with_the_known_ones():
    with pytest.raises(BadInput, match=r"Unknown trace style 'thinks'; known: auto, think, harmony, plain\. Did"):
        segment("a", "thinks")
