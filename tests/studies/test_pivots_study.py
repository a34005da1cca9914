"""The search as a study and on the command line: interrupted and resumed, planned, refused, and shown in its report."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from chainwright import tasks
from chainwright._errors import BadInput
from chainwright.decode.run import generate
from chainwright.decode.sampling import Sampling
from chainwright.diagnose import PivotConfig, Pivots, find_pivots
from chainwright.diagnose.pivots.completers import Asked, Ending, GoldChain
from chainwright.diagnose.pivots.estimate import plan_pivots
from chainwright.models.load import LoadedModel, load_model
from chainwright.report.gather import gather
from chainwright.report.page import render
from chainwright.report.study import write_study_report
from chainwright.studies import Study, pivots
from chainwright.studies.pivots import PivotsPlan, traces_of
from chainwright.tasks import Problem
from chainwright.traces import Trace, read_traces, write_traces
from command_line import call

CONFIG = PivotConfig(temperature=2.5, n_samples=3, band=(0.1, 0.9), n_alternatives=1)


@cache
def reasoner() -> LoadedModel:
    return load_model("reasoner", device="cpu")


@cache
def problems() -> list[Problem]:
    return tasks.sample("llc", 2, 10, rendering="short")


@cache
def drawn() -> list[Trace]:
    return generate(*reasoner(), problems(), sampling=Sampling(temperature=2.5), n_samples=2, seed=1, progress=False)


class Interrupted(GoldChain):
    """Stops the run at its second response that is completed, once."""

    def __init__(self, after: int) -> None:
        super().__init__(reasoner().tokenizer)
        self.left = after

    def complete(self, asked: Sequence[Asked], seed: int) -> list[list[Ending]]:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return super().complete(asked, seed)


def plan(after: int = -1, asked: Sequence[Problem] | Sequence[Trace] | None = None) -> PivotsPlan:
    return PivotsPlan(
        *reasoner(), problems() if asked is None else asked, CONFIG, {"asked": "llc"}, completer=Interrupted(after)
    )


def files(folder: Path) -> dict[str, bytes]:
    """Return the files of a study but those that say when it ran."""
    when = ("study.json", "study.log", "unit.json")
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {n: path.read_bytes() for n, path in found.items() if path.name not in when and ".lock" not in path.name}


@pytest.mark.parametrize("after", [1, 5])
def test_an_interrupted_search_resumes_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    monkeypatch.setattr(pivots, "RESPONSES", 2)
    Study.make(tmp_path / "whole", plan()).run()
    with pytest.raises(KeyboardInterrupt):
        Study.make(tmp_path / "parts", plan(after)).run()
    assert not Study.open(tmp_path / "parts").is_complete
    Study.make(tmp_path / "parts", plan()).run()
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    assert "found/traces.parquet" in files(tmp_path / "whole")


def test_a_study_of_traces_finds_what_find_pivots_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pivots, "RESPONSES", 3)
    study = Study.make(tmp_path / "study", plan(asked=drawn()))
    study.run()
    (found,) = PivotsPlan.findings(study)
    assert isinstance(found, Pivots)
    alone = find_pivots(*reasoner(), drawn(), config=CONFIG, completer=GoldChain(reasoner().tokenizer), progress=False)
    assert found.rows == alone.rows and found.pivots == alone.pivots
    located = traces_of(tmp_path / "study")
    by_token = {p["trace"]: p["position"] for p in found.pivots if p["end"] - p["position"] == 1}
    assert {i: t.first_error_position for i, t in enumerate(located) if t.first_error is not None} == by_token
    assert by_token


def test_a_study_of_problems_brings_right_responses_to_compare_with(tmp_path: Path) -> None:
    Study.make(tmp_path / "study", plan()).run()
    traces = traces_of(tmp_path / "study")
    assert {t.outcome for t in traces if t.first_error is None} == {"right"}
    assert any(t.first_error is not None for t in traces)
    page = write_study_report(tmp_path / "study").read_text()
    assert "What became of the responses" in page and "gold chain" in page


def test_nothing_in_the_band_is_said(tmp_path: Path) -> None:
    config = CONFIG.replace(temperature=0.01, n_samples=2)
    asked = tasks.sample("llc", 1, 2, rendering="short")
    study = Study.make(tmp_path / "study", PivotsPlan(*reasoner(), asked, config, {}, completer=Interrupted(-1)))
    study.run()
    with pytest.raises(BadInput, match=r"No problem was left to search for pivots \(2 solved in more than 90%"):
        PivotsPlan.findings(study)


def test_a_folder_without_a_finished_search_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        traces_of(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        Study.make(tmp_path / "study", plan(1)).run()
    with pytest.raises(BadInput, match="is not finished"):
        traces_of(tmp_path / "study")


def test_a_plan_counts_tokens_and_measures_the_speed() -> None:
    estimate = plan_pivots(*reasoner(), problems(), config=CONFIG)
    lengths = [len(reasoner().tokenizer(p.chain, add_special_tokens=False)["input_ids"]) for p in problems()]
    assert estimate.n_searched == 10 and estimate.n_sampled_tokens == 3 * sum(lengths)
    assert estimate.n_most == 10 * (CONFIG.budget + CONFIG.n_alternatives * CONFIG.n_per_alternative)
    assert estimate.n_most_tokens == round(estimate.n_most * sum(lengths) / 10 / 2)
    assert 0 < estimate.n_usual < estimate.n_most and estimate.seconds_per_token > 0
    assert "at most 10 responses to search" in str(estimate)
    fixed = plan_pivots(*reasoner(), drawn(), config=CONFIG.replace(per_boundary=5))
    assert fixed.n_searched == sum(t.outcome == "wrong" for t in drawn()) and fixed.n_sampled_tokens == 0


def test_the_section_escapes_what_comes_from_elsewhere() -> None:
    found = find_pivots(
        *reasoner(), drawn()[:6], config=CONFIG, completer=GoldChain(reasoner().tokenizer), progress=False
    )
    evil = "</script><script>window.evil = 1</script>"
    pivot = {**found.pivots[0], "token": evil}
    page = render(gather([replace(found, pivots=[pivot], selection={evil: 2})]))
    assert evil not in page and "&lt;/script&gt;" in page
    assert f"{len(found.rows)} responses" in page


GOLD = ("--task", "llc", "--hops", "2", "--completer", "gold", "--temperature", "2.5", "--samples", "3", "-q")


def test_the_command_searches_prints_and_writes_a_report(tmp_path: Path) -> None:
    code, text = call("pivots", *GOLD, "-n", "6", "--band", "0.1-0.9", "--out", tmp_path / "out")
    assert code == 0, text
    assert "with a first error" in text and "by gold chain" in text and "Report:" in text
    assert (tmp_path / "out" / "report.html").is_file()
    again = call("pivots", *GOLD, "-n", "6", "--band", "0.1-0.9", "--out", tmp_path / "out")
    assert again[0] == 0 and "with a first error" in again[1]
    code, text = call("fit", "tcr", "--pivots", tmp_path / "out", "--out", tmp_path / "tcr", "-q")
    # these were drawn at a high temperature: greedily, the model makes none of the errors
    assert code == 2 and "nothing to repair" in text


def test_the_command_searches_files_of_traces_and_plans(tmp_path: Path) -> None:
    write_traces(tmp_path / "traces.parquet", drawn())
    asked = ("pivots", "--traces", tmp_path / "traces.parquet", "--completer", "gold", "--temperature", "1.0", "-q")
    code, text = call(*asked, "--plan")
    assert code == 0 and "responses to search" in text and "ms per token" in text
    code, text = call(*asked, "--out", tmp_path / "out", "--to", "step")
    assert code == 0 and "20 responses:" in text
    assert len(read_traces(tmp_path / "out" / "found" / "traces.parquet")) == 20


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--band", "0.9"], "A band must be two rising shares between 0 and 1, such as 0.2-0.9"),
        (["--temperature", "0"], "At temperature 0 every continuation of a prefix is the same"),
        (["--completer", "http://localhost:1/v1"], "needs --completer-model"),
        (["--completer-model", "big"], "pass the server's address as --completer"),
        (["--completer-api", "grpc"], "way of asking a server"),
        (["--traces", "nowhere.jsonl"], "There is no file nowhere.jsonl"),
        (["--traces", "x.jsonl", "--task", "clf"], "both say what is searched"),
        (["--drop", "2"], "drop must be a number"),
        (["--to", "word"], "Unknown to 'word'"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(tmp_path: Path, options: list[str], words: str) -> None:
    code, text = call("pivots", *options, "--out", tmp_path / "out")
    assert code == 2 and words in text, text
    assert not (tmp_path / "out").exists()


def test_traces_that_are_all_right_have_no_first_error_to_look_for(tmp_path: Path) -> None:
    right = [trace for trace in drawn() if trace.outcome == "right"]
    write_traces(tmp_path / "right.parquet", right)
    code, text = call("pivots", "--traces", tmp_path / "right.parquet", "--out", tmp_path / "out")
    assert code == 2 and f"None of the {len(right)} traces is wrong" in text
