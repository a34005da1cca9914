# ruff: noqa: RUF001
"""Where steps begin: sentences of every script, and delimiters of the user's."""

import pytest

from chainwright._errors import BadInput
from chainwright.traces import SegmentConfig, segment


def steps(text, **settings):
    parts = segment(text + "</think>", "think", config=SegmentConfig(**settings))
    return [text[slice(*step)] for step in parts.steps]


@pytest.mark.parametrize(
    "sentences",
    [
        ["我们先把二和三加起来。", "结果是五，再乘以二。", "这样对吗？！", "他说：“对的。”", "所以答案是十！"],
        ["まず二と三を足します。", "「五になる。」", "次に二を掛けます｡", "答えは十です。"],
        ["पहले हम दो और तीन जोड़ते हैं। ", "फिर हम दो से गुणा करते हैं। ", "उत्तर दस ही होगा॥"],
        ["نجمع اثنين وثلاثة. ", "هل هذا صحيح فعلا؟ ", "النتيجة هي خمسة."],
        ["پہلے ہم دو جمع کرتے ہیں۔ ", "پھر جواب پانچ ہوگا۔"],
        ["መጀመሪያ ሁለትን እንደምራለን። ", "ከዚያ መልሱ አምስት ነው።"],
        [
            'He said "add them all." ',
            "Is it so (as she says?) ",
            "**It is five now.** ",
            "Then we go on… ",
            "“It is so today.” ",
            "*Really, is it?!* ",
            "Yes, it is five.",
        ],
        ["« Nous ajoutons deux. » ", "„Es ist ja so.“ ", "Es ist dann wohl so."],
        ["你说得对吗?", "我再算一遍吧。", "It is five． ", "共３．５个苹果。"],
    ],
    ids=["Chinese", "Japanese", "Hindi", "Arabic", "Urdu", "Amharic", "closing marks", "other quotes", "mixed"],
)
def test_sentences_of_every_script(sentences):
    assert steps("".join(sentences), min_chars=8) == sentences


def test_sentences_of_the_default_length():
    chinese = ["我们先把二和三加起来。", "结果是五，再乘以二。", "所以答案是十。", "再检查一遍。", "没有错。好。"]
    assert steps("".join(chinese)) == [*chinese[:3], "再检查一遍。没有错。好。"]


def test_what_is_no_end_of_a_sentence():
    for text in (
        "It is 3.14 or v1.2.3 here",
        "See f(x).y or a.b() now",
        "Call `obj.` to do so",
        "3,5 and e.g.this one",
    ):
        assert steps(f"{text} and more of it") == [f"{text} and more of it"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\u2028", "\u2029", "\x85", "\n\n", "\r\n\r\n"])
def test_lines_end_in_every_way(end):
    lines = [f"We add two and three{end}", f"We then have five of them{end}", "That is the answer"]
    assert steps("".join(lines)) == lines
    assert steps("".join(lines), delimiter="lines") == lines
    blocks = steps("".join(lines), delimiter="blank lines")
    assert blocks == (lines if end in ("\n\n", "\r\n\r\n") else ["".join(lines)])


def test_delimiters():
    text = "We add two. We have five.\nNow go on; it is ten; we stop.\n \n\nThat is the whole answer."
    assert steps(text, delimiter="lines") == [
        "We add two. We have five.\n",
        "Now go on; it is ten; we stop.\n \n\n",
        "That is the whole answer.",
    ]
    assert steps(text, delimiter="blank lines") == [text[:-25], "That is the whole answer."]
    assert steps(text, delimiter=r";\s*", min_chars=1) == [
        "We add two. We have five.\nNow go on; ",
        "it is ten; ",
        "we stop.\n \n\nThat is the whole answer.",
    ]
    assert steps("first.second.third", delimiter=r"(?<=\.)", min_chars=1) == ["first.", "second.", "third"]


@pytest.mark.parametrize("delimiter", ["(", "", "*a", None])
def test_a_delimiter_that_is_no_expression_is_refused(delimiter):
    with pytest.raises(BadInput, match="A delimiter of steps is"):
        SegmentConfig(delimiter=delimiter)
