"""A diagnosis of a problem set and of trace files: its units, what it refuses, and its report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chainwright._errors import BadInput
from chainwright.diagnose import Curves, StepSaliency
from chainwright.evaluation.accuracy import Accuracy
from chainwright.prompts.asking import Asking
from chainwright.report.gather import gather
from chainwright.report.page import render
from chainwright.studies import Study
from chainwright.studies.config import DecodeSettings
from chainwright.studies.diagnosis import DiagnoseConfig, open_diagnosis, run_diagnosis, run_study
from chainwright.studies.diagnosis.diff import difference
from chainwright.studies.diagnosis.toml import read_study_file, study_file_text
from chainwright.tasks.problem_sets import ProblemSource
from chainwright.traces import TraceSource
from instruct import instruct_model, instruct_tokenizer

RESPONSES = ("The answer is {}.", "I think it is 99.", "I do not know.")


@pytest.fixture
def loaded():
    return instruct_model(), instruct_tokenizer()


def problems(tmp_path: Path, n: int = 3) -> Path:
    path = tmp_path / "pens.jsonl"
    lines = [{"question": f"How many pens are {i} and 1?", "answer": str(i + 1), "level": i % 2} for i in range(n)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def written(tmp_path: Path, n: int = 3, responses: tuple[str, ...] = RESPONSES, **more: object) -> Path:
    path = tmp_path / "written.jsonl"
    lines = [
        {"question": f"How many pens are {i} and 1?", "response": text.format(i + 1), "model": "writer", **more}
        for i in range(n)
        for text in responses
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def of_traces(path: Path, tmp_path: Path, **more: object) -> DiagnoseConfig:
    asked = ProblemSource(source=str(problems(tmp_path)), checker="number")
    source = TraceSource(files=(str(path),))
    return DiagnoseConfig(**{"model": "tiny", "traces": source, "problems": asked, "n_maps": 2, **more})


def test_a_problem_set_is_asked_in_parts_and_reported(loaded, tmp_path: Path) -> None:
    config = DiagnoseConfig(
        model="tiny",
        problems=ProblemSource(source=str(problems(tmp_path, 66)), checker="number"),
        asking=Asking(shots=0, instruction="none"),
        instruments=("accuracy", "curves"),
        max_new_tokens=4,
    )
    found = run_diagnosis(*loaded, config, tmp_path / "study", progress=False)
    units = Study.open(tmp_path / "study").units
    assert units == ["source", "traces/part-000000", "traces/part-000001", "accuracy", "scores/part-000000",
                     "scores/part-000001", "curves"]  # fmt: skip
    assert [trace.info["problem"] for trace in found.traces] == list(range(66))
    assert {trace.problem.task for trace in found.traces} == {"pens"} and found.accuracy.rows[0]["n"] == 66
    assert found.of(Curves)[0].n_problems == 66 and len(found.scores) == 66
    assert "66 problems of pens, greedy, seed 0" in render(gather(found))
    again = run_diagnosis(*loaded, config, tmp_path / "study", progress=False)
    assert again.traces == found.traces


def test_samples_of_a_problem_are_numbered_over_the_whole_set(loaded, tmp_path: Path) -> None:
    config = DiagnoseConfig(
        model="tiny",
        problems=ProblemSource(source=str(problems(tmp_path)), checker="number"),
        decoding=DecodeSettings(n_samples=2),
        temperature=1.0,
        instruments=("accuracy",),
        max_new_tokens=3,
    )
    found = run_diagnosis(*loaded, config, tmp_path / "study", progress=False)
    places = [(trace.info["problem"], trace.info["sample"]) for trace in found.traces]
    assert places == [(q, k) for q in range(3) for k in range(2)]
    assert found.scores is None and not found.of(Curves)


def test_trace_files_are_read_compared_and_reported(loaded, tmp_path: Path) -> None:
    config = of_traces(written(tmp_path), tmp_path)
    assert config.instruments == ("accuracy", "curves", "steps")
    found = run_diagnosis(*loaded, config, tmp_path / "study", progress=False)
    assert [trace.outcome for trace in found.traces] == ["right", "wrong", "unread"] * 3
    counts = found.of(Curves)[0].counts
    assert counts == {"right": 3, "wrong": 3, "unread": 3, "cut": 0, "unjudged": 0}
    assert sorted(one.config["trace"] for one in found.of(StepSaliency)) == [0, 1, 3, 4]
    assert Study.open(tmp_path / "study").units[-1] == "step-groups"
    page = render(gather(found))
    assert "The traces were written by writer. All scores, curves and maps are of tiny" in " ".join(page.split())
    for said in ("Traces as", "matched on length", "wrong answer", "answer not read", "How sure the model was"):
        assert said in page
    assert any(line.startswith("Answers: 3 of 9") for line in found.summary())


def test_curves_without_an_answer_that_could_be_read_are_not_drawn(loaded, tmp_path: Path) -> None:
    config = of_traces(written(tmp_path, responses=("No idea.",)), tmp_path).replace(instruments=("accuracy", "curves"))
    found = run_diagnosis(*loaded, config, tmp_path / "study", progress=False)
    assert found.of(Curves)[0].rows == []
    page = " ".join(render(gather(found)).split())
    assert "No answer could be read, so there is nothing to compare." in page
    assert "0 of 3 answers (0%" in page and "Entropy and log-probability along responses" not in page


def test_two_open_diagnoses_are_compared(loaded, tmp_path: Path) -> None:
    texts = {"a": ("The answer is {}.",), "b": ("I think it is 99.",)}
    for name, responses in texts.items():
        source = TraceSource(files=(str(written(tmp_path, responses=responses)),))
        config = DiagnoseConfig(
            model="tiny",
            traces=source,
            problems=ProblemSource(source=str(problems(tmp_path)), checker="number"),
            instruments=("accuracy",),
        )
        run_study(*loaded, config, tmp_path / name, progress=False)
    found = difference(tmp_path / "a", tmp_path / "b")
    (answers, _) = found.cells
    assert (answers.task, answers.a, answers.b, answers.difference, answers.problems) == ("pens", 1, 0, -1, "3 shared")
    assert not found.errors and any("sha256" in line for line in found.settings)


def test_a_study_file_makes_the_same_diagnosis(tmp_path: Path) -> None:
    config = of_traces(written(tmp_path), tmp_path, sha256={"problems": "1", str(tmp_path / "a b.jsonl"): "2"})
    (tmp_path / "study.toml").write_text(study_file_text(config))
    assert read_study_file(tmp_path / "study.toml") == config
    assert DiagnoseConfig.from_record(json.loads(json.dumps(config.record()))) == config


def test_a_changed_file_is_refused_and_a_missing_one_is_not_missed(loaded, tmp_path: Path) -> None:
    path = written(tmp_path)
    config = of_traces(path, tmp_path, instruments=("accuracy",))
    run_study(*loaded, config, tmp_path / "study", progress=False)
    written(tmp_path, responses=("It is {}.",))
    with pytest.raises(BadInput, match=r"holds a study with other settings: sha256\..*written\.jsonl is"):
        run_study(*loaded, config, tmp_path / "study", progress=False)
    path.unlink()
    assert len(open_diagnosis(tmp_path / "study").traces) == 9
    resumed = Study.open(tmp_path / "study").manifest.config
    with pytest.raises(BadInput, match=r"Cannot read .*written\.jsonl"):
        run_study(*loaded, config, tmp_path / "other", progress=False)
    # a study that was begun with hashes and has read its source needs the files no longer
    run_study(*loaded, DiagnoseConfig.from_record(resumed), tmp_path / "study", progress=False)


def test_a_file_that_changed_before_it_was_read_is_refused(loaded, tmp_path: Path) -> None:
    config = of_traces(written(tmp_path), tmp_path, instruments=("accuracy",), sha256={"problems": "1"})
    with pytest.raises(BadInput, match=r"problems was changed since the study began|written\.jsonl was changed since"):
        run_study(*loaded, config, tmp_path / "study", progress=False)


@pytest.mark.parametrize(("response", "words"), [
    ("The answer is {}.", "All 3 answers that could be read are right; without wrong ones nothing can be compared."),
    ("The answer is 99.", "All 3 answers that could be read are wrong; without right ones nothing can be compared."),
    ("I do not know.", "No answer could be read, so there is nothing to compare."),
])  # fmt: skip
def test_without_right_or_wrong_answers_the_report_says_what_is_missing(loaded, tmp_path, response, words) -> None:
    found = run_diagnosis(*loaded, of_traces(written(tmp_path, responses=(response,)), tmp_path), tmp_path / "study",
                          progress=False)  # fmt: skip
    assert any(words in line for line in found.summary())
    page = render(gather(found))
    assert words in page and ("no wrong trace has a right partner" in page) is ("answers" in words)


def test_traces_that_nothing_judges_are_shown_all_the_same(loaded, tmp_path: Path) -> None:
    source = TraceSource(files=(str(written(tmp_path)),))
    found = run_diagnosis(*loaded, DiagnoseConfig(model="tiny", traces=source), tmp_path / "study", progress=False)
    assert not found.of(Accuracy) and found.of(Curves)[0].counts["unjudged"] == 9
    assert "No response was judged" in render(gather(found))
    assert "no response was judged" in Study.open(tmp_path / "study").results.skipped["accuracy"]


def test_what_is_longer_than_the_model_is_named_before_anything_is_computed(loaded, tmp_path: Path) -> None:
    path = written(tmp_path, responses=("The answer is {}.", "pens " * 1200 + "{}"))
    config = of_traces(path, tmp_path, instruments=("accuracy",))
    with pytest.raises(BadInput, match=r"3 traces are longer than the model's 1,024 positions \(line 2 of written"):
        run_study(*loaded, config, tmp_path / "study", progress=False)
    kept = config.replace(traces=config.traces.replace(skip_bad=True))
    found = run_diagnosis(*loaded, kept, tmp_path / "kept", progress=False)
    assert len(found.traces) == 3 and found.notes["n_bad"] == 3
    assert "3 records longer than the model&#39;s 1,024 positions were left out" in render(gather(found))


def test_a_problem_that_is_too_long_is_named_too(loaded, tmp_path: Path) -> None:
    path = problems(tmp_path)
    path.write_text(path.read_text() + "\n" + json.dumps({"question": "How many? " * 600, "answer": "3"}))
    source = ProblemSource(source=str(path), checker="number")
    config = DiagnoseConfig(model="tiny", problems=source, instruments=("accuracy",), max_new_tokens=2)
    with pytest.raises(BadInput, match=r"1 problem is longer than the model's 1,024 positions \(problem 4\)"):
        run_study(*loaded, config, tmp_path / "study", progress=False)
    kept = config.replace(problems=source.replace(skip_bad=True))
    assert len(run_diagnosis(*loaded, kept, tmp_path / "kept", progress=False).traces) == 3


def test_a_diagnosis_is_of_one_thing(tmp_path: Path) -> None:
    asked, read = ProblemSource(source="a.jsonl"), TraceSource(files=("b.jsonl",))
    with pytest.raises(BadInput, match="a diagnosis is of tasks, of a problem set or of trace files"):
        DiagnoseConfig(model="tiny")
    with pytest.raises(BadInput, match=r"either of tasks \(hops\) or of problems; name one"):
        DiagnoseConfig(model="tiny", hops={"clf": (2,)}, problems=asked)
    with pytest.raises(BadInput, match="A repair answers problems again, and a diagnosis of traces asks none"):
        DiagnoseConfig(model="tiny", traces=read, repair="tcr-reasoner")
