"""The StepFlow study, small: it finishes, its tables add up, and self-consistency takes the answer of most."""

from pathlib import Path

import pytest

from chainwright import tasks
from chainwright._errors import BadInput
from chainwright.decode.run import generate
from chainwright.diagnose.steps.comparison import StepGroups
from chainwright.evaluation.comparison import Comparison
from chainwright.models import load_model
from chainwright.repair import StepFlow
from chainwright.report.study import write_study_report, write_tables
from chainwright.reproduce.findings import Result
from chainwright.reproduce.stepflow import measures
from chainwright.reproduce.stepflow.config import ReproduceStepFlowConfig
from chainwright.reproduce.stepflow.records import records_of
from chainwright.reproduce.stepflow.study import (
    ReproduceStepFlow,
    _majority,
    fixed_errors,
    n_decodings,
    traces_of,
)
from chainwright.studies import Job, Study
from chainwright.traces import Trace

SMALL = ReproduceStepFlowConfig(
    model="reasoner",
    hops={"clf": (12,)},
    n=2,
    seeds=(11,),
    tune_n=2,
    taus=(0.3,),
    measured_n=4,
    n_caused=2,
    n_pairs=6,
    samples=(2,),
    control_hops=3,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    model, tokenizer = load_model("reasoner")
    plan = ReproduceStepFlow(model, tokenizer, SMALL)
    study = Study.make(tmp_path_factory.mktemp("study") / "it", plan)
    return plan, study.run(), study


def test_it_goes_on_from_its_folder_alone(finished) -> None:
    plan, _, study = finished
    again = ReproduceStepFlow.resumed(study.manifest, device="cpu")
    assert again.config == plan.config and again.source == plan.source
    assert study.manifest.again == "chainwright study run {folder}"


def test_every_table_is_there_and_in_the_report(finished) -> None:
    plan, _, study = finished
    text = "\n".join(write_tables(study))
    for way in plan.ways:
        assert f"| {way} |" in text
    assert "### All 2 problems, beside 'none'" in text and "### First errors: tuned" in text
    assert "## Positive control: lock-in planted in layer 2, CLF with 3 hops" in text
    assert "| planted, auto layers |" in text and "Layers by one diagnosis pass: " in text
    assert "### Rank correlation of saliency" in text and "| CLF | 0 | " in text
    page = write_study_report(study.folder).read_text(encoding="utf-8")
    assert "self-consistency 2" in page and "Positive control" in page and 'data-figure="ways-1"' in page


def test_records_are_of_the_comparison_and_of_the_matched_pairs(finished) -> None:
    _, done, study = finished
    records = {record["finding"]: record for record in records_of(study, "chainwright reproduce stepflow")}
    compared = Comparison.load(done["comparison"] / "comparison")
    for way, finding in (("both", "steps-gain"), ("auto heads", "steps-heads"), ("tuned", "steps-tuned")):
        assert records[finding]["value"] == compared.overall(way)["exact_gain"]
    assert "seed 100" in records["steps-tuned"]["chosen_on"].lower()
    assert records["steps-cost"]["value"] > 0 and "steps-voting" not in records  # only two samples were drawn
    if measures.STEPS in done:
        groups = StepGroups.load(done[measures.STEPS] / "groups")
        assert records["steps-lock-in"]["value"] == pytest.approx(groups.rows[0]["effect"])  # layer 0 of four
    for record in records.values():
        Result(**record)


def test_a_repair_that_acts_nowhere_is_not_decoded_again(finished) -> None:
    plan, done, _ = finished
    assert plan._same_without(Job("runs/tuned/clf-11", Path(), done, lambda *_: None), StepFlow((), ())) is not None
    assert plan._same_without(Job("runs/both/clf-11", Path(), done, lambda *_: None), StepFlow()) is None
    assert plan._same_without(Job("runs/none/clf-11", Path(), done, lambda *_: None), None) is None
    same = plan._same_without(Job("tuned-samples/clf-11/1", Path(), done, lambda *_: None), StepFlow((), ()))
    assert same == done["samples/clf-11/1"]


def test_a_deep_model_is_tuned_on_quarters_and_on_the_layers_that_lack_most(finished, monkeypatch) -> None:
    plan, done, _ = finished
    tried: dict[str, object] = {}
    monkeypatch.setattr(StepFlow, "tune", classmethod(lambda cls, *_, **options: tried.update(options) or cls((), ())))
    plan._tune(done)
    assert tried["layer_sets"] is None  # four layers are all tried
    monkeypatch.setattr(plan, "asked", SMALL.replace(tune_layers=1))
    plan._tune(done)
    assert tried["layer_sets"] == [(0,), (3,), *((layer,) for layer in measures.lacking_layers(done, 1))]


def test_ways_of_decoding_are_what_they_say(finished) -> None:
    plan, done, _ = finished
    problems = tasks.sample("clf", 12, 2, 11, rendering="short")
    want = generate(plan.model, plan.tokenizer, problems, progress=False)
    assert [t.response for t in traces_of(plan.asked, done, "none")] == [t.response for t in want]
    assert plan._repair("momentum", done).layers(4) == ((), (3,))
    assert plan._repair("bridge", done).layers(4) == ((0,), ())
    assert plan._repair("both", done).layers(4) == ((0,), (3,))
    assert n_decodings("self-consistency 2") == 2 and n_decodings("both") == 1


def test_the_majority_takes_the_first_of_the_answer_that_most_give() -> None:
    _, tokenizer = load_model("reasoner")
    problem = tasks.sample("clf", 2, 1, rendering="short")[0]
    texts = ["./ 0 = 0\nanswer 1", "./ 0 = 0\nanswer 2", "../ 0 = 0\nanswer 2", "answer 3"]
    traces = [Trace.from_text(tokenizer, problem.prompt, text) for text in texts]
    assert _majority(traces) is traces[1] and _majority(traces[:2]) is traces[0] and _majority(traces[3:]) is traces[3]


def test_fixed_errors_count_both_ways() -> None:
    _, tokenizer = load_model("reasoner")
    problem = tasks.sample("clf", 3, 1, seed=2, rendering="short")[0]
    right = Trace.from_text(tokenizer, problem.prompt, problem.chain, problem=problem)
    wrong = Trace.from_text(tokenizer, problem.prompt, "answer 9", problem=problem)
    kind = wrong.first_error.error_type
    rows = fixed_errors([right, wrong, wrong], [wrong, right, wrong])
    assert rows == [{"first error": kind, "without": 2, "fixed": 1, "new": 1}]


def test_configs_that_cannot_be_run_are_refused() -> None:
    with pytest.raises(BadInput, match="Unknown task 'chess'"):
        SMALL.replace(hops={"chess": (3,)})
    with pytest.raises(BadInput, match="tune_seed 11 is one of the test seeds"):
        SMALL.replace(tune_seed=11)
    with pytest.raises(BadInput, match="n must be a whole number from 1; got 0"):
        SMALL.replace(n=0)
