"""`generate` and `evaluate` with problem sets, demonstrations, sampling and several samples."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from chainwright import read_traces
from chainwright.cli import _decoding
from chainwright.cli._asking import ASKING, asking_of, parse_chat_kwargs
from chainwright.prompts.asking import Asking
from chainwright.studies import generation
from command_line import call


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "sums.jsonl"
    records = [{"question": f"What is {i} + 1 ?", "answer": f"{i} + 1 = {i + 1}\n#### {i + 1}"} for i in range(6)]
    path.write_text("\n".join(map(json.dumps, records)))
    return path


FEW = ("--max-new-tokens", 4, "-q")


def test_a_problem_set_is_answered_several_times_and_resumed(
    problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "ROWS", 2)
    ask = ("--problems", problems, "--checker", "number", "--shots", 2, "--samples", 3, "--temperature", 1.0)
    whole, parts = tmp_path / "whole.parquet", tmp_path / "parts.parquet"
    code, printed = call("evaluate", *ask, "-n", 5, "-o", whole, *FEW)
    assert code == 0, printed
    assert "Several responses to each problem" in printed and "mean@3" in printed and "pass@2" in printed
    assert "2 demonstrations in one text" in printed and "3 responses to each problem." in printed
    traces = read_traces(whole)
    assert [(t.info["problem"], t.info["sample"]) for t in traces] == [(i, j) for i in range(5) for j in range(3)]
    assert traces[0].problem is not None and traces[0].problem.checker == "number"
    real, seen = generation.generate, []

    def stopping(*args: object, **kwargs: object) -> object:
        if seen:
            raise KeyboardInterrupt
        seen.append(1)
        return real(*args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(generation, "generate", stopping)
        assert call("evaluate", *ask, "-n", 5, "-o", parts, *FEW)[0] == 130
    changed = problems.read_text().replace("What is 0", "Tell 0")
    original = problems.read_text()
    problems.write_text(changed)
    code, printed = call("evaluate", *ask, "-n", 5, "-o", parts, *FEW)
    assert code == 2 and "problems is" in printed, "another file under the same name is not mixed in"
    problems.write_text(original)
    assert call("evaluate", *ask, "-n", 5, "-o", parts, *FEW)[0] == 0
    assert parts.read_bytes() == whole.read_bytes()


def test_a_file_of_demonstrations_that_changed_is_not_mixed_in(problems: Path, tmp_path: Path) -> None:
    first = generation.identity_of_asking(Asking(shots_from=str(problems)))
    problems.write_text(problems.read_text().replace("What", "Which"))
    assert generation.identity_of_asking(Asking(shots_from=str(problems))) != first
    assert generation.identity_of_asking(Asking()) == {}
    assert generation.identity_of_asking(Asking(raw=True)) == {"raw": True}


def test_what_a_problem_set_contradicts(problems: Path) -> None:
    for options, says in (
        (("--problems", problems, "--task", "parity"), "--problems and --task both say what is asked"),
        (("--problems", problems, "--hops", "3"), "--problems and --hops both say what is asked"),
        (("--problems", problems, "--prompt", "x"), "--prompt and --problems both say what is asked"),
        (("--prompt", "x", "--task", "clf"), "--prompt and --task both say what is asked"),
        (("--checker", "number"), "--checker needs a problem set"),
    ):
        if "--prompt" in options:
            code, printed = call("generate", *options, *FEW)
        else:
            code, printed = call("evaluate", *options, *FEW)
        assert code == 2 and says in printed, printed


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--shots", 99), "99 demonstrations were asked for, but the problems that are asked have 5 other questions"),
        (("--raw", "--shots", 2), "--raw) asks with the prompt as it is, so it cannot be combined with shots"),
        (("--raw", "--system", "x"), "cannot be combined with system"),
        (("--raw", "--chat-kwargs", "a=1"), "cannot be combined with chat_kwargs"),
        (("--no-chat-template", "--system", "x"), "system goes into the chat template, which --no-chat-template"),
        (("--system", "x"), "system goes through the chat template, but this tokenizer has no chat template"),
        (("--chat-kwargs", "enable_thinking"), "--chat-kwargs takes NAME=VALUE, such as enable_thinking=false; got"),
        (("--chat-kwargs", "a=1", "--chat-kwargs", "a=2"), "--chat-kwargs sets 'a' twice"),
        (("--stop", ""), "A stop string is a text of at least one character"),
        (("--top-p", 0.9), "top_p limits what is drawn, but temperature 0 (greedy) draws nothing"),
        (("--temperature", 1, "--top-p", 1.5), "top_p must be a number above 0 and to 1, or none; got 1.5"),
        (("--samples", 3), "n_samples is 3, but greedy decoding"),
        (("--samples", 0), "n_samples must be a whole number from 1; got 0"),
        (("--sampling", "model"), "states no sampling"),
        (("--sampling", "server"), "sampling"),
        (("--shots-from", "nothing.jsonl"), "nothing.jsonl"),
        (("--shots", 2, "--shots-as", "none"), "asks for no demonstrations"),
        (("--demo-hops", "2"), "also say how many with shots"),
        (("--demo-hops", "two", "--shots", 1), "Hops must be whole numbers"),
        (("--max-thinking-tokens", 0), "max_thinking_tokens must be a whole number from 1"),
    ],
)
def test_mistakes_end_in_one_sentence(problems: Path, options: tuple[object, ...], says: str) -> None:
    code, printed = call("generate", "--problems", problems, *options, *FEW)
    assert code == 2 and says in printed, printed
    assert "Traceback" not in printed


def test_short_problems_have_no_demonstrations() -> None:
    code, printed = call("generate", "-t", "clf", "--hops", 2, "-n", 1, "--shots", 2, *FEW)
    assert code == 2 and "Problems of the short rendering are asked without demonstrations" in printed


def test_a_prompt_can_be_answered_several_times() -> None:
    code, printed = call("generate", "--prompt", "ann flips", "--samples", 2, "--temperature", 1.0, *FEW)
    assert code == 0 and "2 responses to each problem." in printed


def test_settings_of_the_template_are_read_as_json() -> None:
    got = parse_chat_kwargs(["enable_thinking=false", "effort=high", "n=3", 'tools=[{"name": "x"}]', "flag=True"])
    assert got == {"enable_thinking": False, "effort": "high", "n": 3, "tools": [{"name": "x"}], "flag": True}


def test_options_are_the_fields_of_asking() -> None:
    assert set(ASKING.names) | {"raw"} == set(Asking.model_fields)
    values = {"shots": 2, "demo_hops": "1-3", "chat_kwargs": ["a=1"], "chat_template": True}
    assert asking_of(values) == Asking(shots=2, demo_hops=[1, 2, 3], chat_kwargs={"a": 1})
    assert asking_of({}) == Asking()


def test_help_says_what_the_defaults_are() -> None:
    code, printed = call("generate", "--help")
    words = re.sub(r"[\u2502 ]+", " ", printed)
    assert code == 0 and "--no-chat-template" in words and "--samples" in words


def test_traces_that_are_there_are_asked_nothing_more(problems: Path, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    records = [{"question": f"What is {i} + 1 ?", "response": f"The answer is {i + i % 2}."} for i in range(3)]
    path.write_text("\n".join(map(json.dumps, records)))
    code, printed = call("evaluate", "--traces", path, "--problems", problems, "--checker", "number")
    assert code == 0 and "Read 3 traces." in printed and "0.33" in printed, printed
    for option, value in (("--shots", 2), ("--samples", 2), ("--system", "x"), ("-n", 3), ("--top-p", 0.5)):
        code, printed = call("evaluate", "--traces", path, option, value)
        assert code == 2 and f"{option} says how problems are asked, but --traces are answered already" in printed
    code, printed = call("evaluate", "--traces", path, "--no-chat-template")
    assert code == 2 and "--no-chat-template says how" in printed


def test_line_ends_in_stop_strings_can_be_typed() -> None:
    assert _decoding._unescaped([r"\n\nQ:", r"a\\n", r"\t", "plain"]) == ["\n\nQ:", r"a\n", "\t", "plain"]
