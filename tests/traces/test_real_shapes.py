# ruff: noqa: RUF001
"""Segments of responses as people have them: broken blocks, tools, code, LaTeX, other scripts, very long lines."""

from __future__ import annotations

import pytest

import trace_tokenizers
from chainwright.traces import Trace

CODE = "Let us see:\n```python\nprint('</think>')\n```\nDone with it."
TOOL = '\n<tool_call>\n{"name": "add"}\n</tool_call>\n<tool_response>\n5\n</tool_response>\n'
SHAPES = {
    "several blocks": ("<think>I add five.</think>So 5.<think>I add two.</think>", "It is 7."),
    "no end": ("<think>I add five. Then I", ""),
    "an end repeated": ("<think>I add five.</think></think>", "\n\nIt is 7."),
    "an end repeated later": ("<think>I add.</think>It is 5.</think>", "It is 7."),
    "an end alone": ("I think so.</think>", "It is 7."),
    "tools inside": (f"<think>I call it.</think>{TOOL}<think>So five.</think>", "It is 5."),
    "Windows lines": ("<think>One is one.\r\nTwo and two.\r\n</think>", "\r\nIt is 7.\r\n"),
    "code with a marker": (f"<think>{CODE}</think>", "\nIt is 7."),
    "LaTeX": (r"<think>We have $x = \frac{1}{2}$. So \(a.b\).</think>", r" \boxed{7}"),
    "Chinese": ("<think>我们先把它加起来。对吗？</think>", "答案是七。"),
    "emoji": ("<think>👩‍👩‍👧 one family. 🐈 two.</think>", "7 🐈"),
    "a line of 20,000 characters": (f"<think>{'word ' * 4000}</think>", "It is 7."),
    "20,000 characters without a space": (f"<think>{'x' * 20_000}</think>", "It is 7."),
    "nothing but lines": ("", "\n\n"),
    "HTML": ("", "<div><b>7</b></div><!-- <think> -->"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_thinking_and_summary_are_where_they_should_be(name: str) -> None:
    tokenizer, (thinking, summary) = trace_tokenizers.byte_level(), SHAPES[name]
    trace = Trace.from_text(tokenizer, "How many?", thinking + summary)
    ids = trace.input_ids
    assert tokenizer.decode(ids[trace.response_start : trace.thinking.end]) == thinking
    assert tokenizer.decode(ids[trace.summary.start :]) == summary
    assert sum(step.end - step.start for step in trace.steps) == len(trace) and trace.response == thinking + summary
