"""The command line: what it prints, its exit codes, and one clear sentence for each mistake."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from chainwright import StepFlow
from command_line import call


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "clf"
    code, printed = call("diagnose", "-t", "clf", "--hops", "8,14", "-n", 12, "-o", folder, "-q")
    assert code == 0, printed
    return folder


def test_help_does_not_wait_for_pytorch() -> None:
    check = "import sys, chainwright.cli; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True).stdout == "False\n"


def test_tasks_lists_all_seven_and_shows_one() -> None:
    code, printed = call("tasks")
    assert code == 0 and all(title in printed for title in ("Parity-NL", "MDM", "LLC", "CLF", "MOAS", "NumS", "ObjC"))
    code, printed = call("tasks", "moas", "--hops", 2)
    assert code == 0 and "operand interpretation" in printed


def test_models_lists_the_bundled_one_and_looks_into_it() -> None:
    assert "reasoner" in call("models")[1]
    code, printed = call("models", "reasoner")
    assert code == 0 and "o_proj" in printed and "Qwen3RMSNorm" in printed


def test_generate_writes_traces_that_evaluate_reads(tmp_path: Path) -> None:
    path = tmp_path / "traces.parquet"
    code, printed = call("generate", "-t", "parity", "--hops", 5, "-n", 4, "-o", path, "-q")
    assert code == 0 and "answer" in printed and str(path) in printed.replace(" ", "") and path.is_file()
    code, printed = call("evaluate", "--traces", path)
    assert code == 0 and "Read 4 traces" in printed and "Parity-NL" in printed
    code, printed = call("generate", "-t", "parity", "--hops", 5, "-n", 4, "-o", path, "-q")
    assert code == 2 and "pass --overwrite" in printed
    code, printed = call("generate", "-t", "parity", "--hops", 5, "-n", 4, "-o", tmp_path / "traces.jsonl", "-q")
    assert code == 2 and "must end with .parquet" in printed and not (tmp_path / "traces.jsonl").exists()


def test_generate_answers_a_prompt() -> None:
    code, printed = call("generate", "--prompt", "parity start heads . ann flips ?\n", "-q")
    assert code == 0 and "answer tails" in printed


def test_generate_asks_with_a_prompt_as_it_is() -> None:
    code, printed = call("generate", "--prompt", "parity start heads . ann flips ?\n", "--raw", "-q")
    assert code == 0 and "answer tails" in printed


def test_diagnose_writes_a_study_and_ends_with_the_report(finished: Path) -> None:
    state = json.loads((finished / "study.json").read_text())
    assert state["is_complete"] and state["config"]["hops"] == {"clf": [8, 14]}
    assert (finished / "report.html").stat().st_size > 10_000
    assert (finished / "accuracy" / "result.json").is_file()


def test_report_is_written_again_with_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    code, printed = call("report", finished, "-o", tmp_path / "again.html")
    assert code == 0 and "Where:" in printed and "Report:" in printed
    assert (tmp_path / "again.html").read_bytes() == (finished / "report.html").read_bytes()


def test_a_finished_study_is_shown_again_and_not_overwritten_unasked(finished: Path) -> None:
    before = (finished / "study.json").read_bytes()
    code, printed = call("diagnose", "-t", "clf", "--hops", "8,14", "-n", 12, "-o", finished, "-q")
    assert code == 0 and "Where:" in printed
    code, printed = call("diagnose", "-t", "clf", "--hops", "8,14", "-n", 13, "-o", finished, "-q")
    assert code == 2 and "n is 12 there, 13 was asked" in printed and "--overwrite" in printed
    assert (finished / "study.json").read_bytes() == before


def test_train_reasoner_is_interrupted_and_resumed(tmp_path: Path) -> None:
    folder = tmp_path / "reasoner"
    small = ("train", "reasoner", "-o", folder, "--set", "n_tokens=2000", "--set", "batch_tokens=250", "-q")
    code, printed = call(*small)
    assert code == 0 and (folder / "model.safetensors").is_file(), printed
    code, printed = call(*small)
    assert code == 2 and "--resume" in printed


MISTAKES = [
    (["tasks", "pariti"], "Unknown task 'pariti'; known: parity, mdm.*Did you mean 'parity'"),
    (["generate", "-t", "sudoku"], "Unknown task 'sudoku'"),
    (["generate", "--hops", "0"], "whole numbers from 1"),
    (["generate", "--hops=-3"], "whole numbers from 1"),
    (["generate", "--hops", "ten"], "whole numbers from 1.*got 'ten'"),
    (["generate", "--hops", "9-4"], "whole numbers from 1"),
    (["generate", "-n", "0"], "at least 1 problem; got 0"),
    (["generate", "--temperature", "-1"], "temperature must be 0"),
    (["generate", "--batch-size", "0"], "batch_size must be a whole number from 1, or none; got 0"),
    (["generate", "--rendering", "long"], "--rendering must be auto, short or natural; got 'long'"),
    (["generate", "-m", "reasonr"], "Unknown model 'reasonr'.*Did you mean 'reasoner'"),
    (["generate", "--hops", "600", "-n", "1"], "positions for 1536"),
    (["generate", "--prompt", " "], "empty"),
    (["diagnose", "-m", "missing/folder/model"], "no folder missing/folder/model"),
    (["evaluate", "--traces", "missing.parquet"], "no file missing.parquet"),
    (["train", "reasoner", "--set", "d_modle=3"], "Unknown setting 'd_modle'.*Did you mean 'd_model'"),
    (["train", "reasoner", "--set", "d_model=wide"], "d_model must be a whole number from 1; got 'wide'"),
    (["train", "reasoner", "--set", "d_model"], "name=value"),
    (["train", "reasoner", "--set", "n_heads=0"], "n_heads must be a whole number from 1; got 0"),
    (["train", "reasoner", "--set", "jump_share=2.0"], "jump_share must be a number from 0 to 1; got 2.0"),
    (["train", "reasoner", "--set", 'weights={"sudoku": 1.0}'], "needs its hops; missing: sudoku"),
    (["train", "reasoner", "--device", "nonsense"], "Unknown device 'nonsense'"),
    (["report", "missing"], "holds no study"),
]


@pytest.mark.parametrize(("args", "says"), MISTAKES, ids=[" ".join(args) for args, _ in MISTAKES])
def test_a_mistake_is_one_sentence_and_exit_code_2(args: list[str], says: str) -> None:
    code, printed = call(*args)
    assert code == 2, printed
    assert re.search(says, printed), printed
    assert "Traceback" not in printed


def test_bad_models_are_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no config.json" in call("generate", "-m", empty)[1]
    (empty / "config.json").write_text('{"model_type": "llama"}')
    (empty / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    code, printed = call("generate", "-m", empty)
    assert code == 2 and "pickle" in printed


def test_a_repair_of_other_weights_is_warned_of_in_one_sentence(tmp_path: Path) -> None:
    from chainwright import load_model

    model, tokenizer = load_model("reasoner", device="cpu")
    model.lm_head.weight.data[0] += 1
    model.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    asked = ("generate", "-t", "clf", "--hops", 2, "-n", 1, "-q", "--repair", "tcr-reasoner")
    code, printed = call(*asked, "-m", tmp_path / "other")
    assert code == 0 and printed.count("warning: This tcr repair was made for other weights than those of") == 1
    assert "UserWarning" not in printed and "OtherWeights" not in printed
    assert "warning" not in call(*asked)[1]


def test_broken_jsonl_lines_are_named_and_skipped_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "made.jsonl"
    good = json.dumps({"question": "parity start heads ?\n", "response": "start heads\nend heads", "is_correct": False})
    path.write_text(f'{good}\n{{"question": 1}}\nno json\n{good}\n')
    code, printed = call("evaluate", "--traces", path)
    assert code == 2 and "2" in printed and "3" in printed and "--skip-bad" in printed
    code, printed = call("evaluate", "--traces", path, "--skip-bad")
    assert code == 0 and "Read 2 traces; skipped 2 broken lines" in printed and "line 2" in printed
    assert "Right: 0 of the 2 traces that are judged" in printed


def test_markers_of_thinking_are_an_option(tmp_path: Path) -> None:
    path = tmp_path / "made.jsonl"
    record = {"question": "parity start heads ?\n", "response": "<plan>start heads</plan>end heads", "correct": True}
    path.write_text(json.dumps(record) + "\n")
    code, printed = call("evaluate", "--traces", path, "--think-markers", "<plan>", "</plan>")
    assert code == 0 and "Read 1 trace" in printed
    code, printed = call("evaluate", "--traces", path, "--think-markers", "<plan>", "<plan>")
    assert code == 2 and "must differ" in printed


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    code, printed = call("diagnose", "-t", "clf", "--hops", 3, "-n", 1, "-o", tmp_path, "--overwrite", "-q")
    assert code == 2 and "choose an empty or new folder" in printed
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_ctrl_c_says_that_the_work_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from chainwright.studies.diagnosis import decoding

    real, seen = decoding.generate, []

    def interrupted(*args: object, **kwargs: object) -> object:
        if seen:
            raise KeyboardInterrupt
        seen.append(1)
        return real(*args, **kwargs)

    ask = ("diagnose", "-t", "clf", "--hops", "3,4", "-n", 2, "-o", tmp_path / "s", "-q")
    monkeypatch.setattr(decoding, "generate", interrupted)
    code, printed = call(*ask)
    assert code == 130 and "run the same command again to resume (train: add --resume)" in printed
    assert [p.name for p in (tmp_path / "s" / "traces").iterdir()] == ["clf-003-0"]
    monkeypatch.setattr(decoding, "generate", real)
    assert call(*ask)[0] == 0


def test_several_repairs_decode_together_and_two_that_cannot_are_refused(tmp_path: Path) -> None:
    StepFlow((0,), (), 0.3).save_pretrained(tmp_path / "flow")
    both = ("--repair", tmp_path / "flow", "--repair", "tcr-reasoner")
    code, printed = call("generate", "-t", "clf", "--hops", 4, "-n", 2, *both, "-o", tmp_path / "t.parquet", "-q")
    assert code == 0 and "stepflow: " in printed and "tcr: " in printed
    code, printed = call("generate", "-t", "clf", "--hops", 4, "-n", 2, "--repair", "tcr-reasoner", *both, "-q")
    assert code == 2 and "decode together" in printed
