"""The study of TCR, small: it resumes after a kill, pairs its problems, and its forecast equals its decoding."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest

from chainwright import generate, load_model, tasks
from chainwright._errors import BadInput
from chainwright.evaluation.comparison import Comparison
from chainwright.evaluation.flips import Flips
from chainwright.prompts.asking import Asking
from chainwright.repair import TCR, Repair, StepFlow, bundled_repairs
from chainwright.repair.base import BUNDLED
from chainwright.repair.tcr.config import FitConfig
from chainwright.repair.tcr.lora_selector import ClassifierSelector
from chainwright.report.lines import lines_of
from chainwright.report.study import summary_of, write_study_report, write_tables
from chainwright.reproduce.tcr.config import ReproduceTCRConfig
from chainwright.reproduce.tcr.estimate import estimate
from chainwright.reproduce.tcr.study import ReproduceTCR
from chainwright.reproduce.tcr.tables import counts_of
from chainwright.reproduce.tcr.ways import decoding_with, gold_detector
from chainwright.studies import Job, Study
from chainwright.traces import read_traces
from command_line import call
from study_plans import files

WAYS = ("none", "TCR, gold", "best head, gold", "DoLa")


def config(**changes: object) -> ReproduceTCRConfig:
    given = {
        "model": "reasoner",
        "hops": {"clf": (13,)},
        "n": 3,
        "seeds": (1, 2),
        "ways": WAYS,
        "variants": ("all",),
    }
    return ReproduceTCRConfig(**{**given, "repair": "tcr-reasoner", **changes})


class Stops(ReproduceTCR):
    """Is killed after a few units."""

    left = 4

    def compute(self, job: Job) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        super().compute(job)


def make(kind: type[ReproduceTCR], **changes: object) -> ReproduceTCR:
    return kind(*load_model("reasoner", device="cpu"), config(**changes))


def test_a_killed_study_goes_on_to_the_same_bytes_and_its_tables_are_sound(tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        Study.make(killed, make(Stops)).run()
    code, printed = call("study", "status", killed)
    assert code == 0 and f"Resume it: chainwright study run {killed}" in printed
    code, printed = call("study", "run", killed, "--device", "cpu", "-q")
    assert code == 0 and "### Ablations: parts" in printed and "report.html" in printed
    for written in ("report.html", "tables.md"):
        (killed / written).unlink()
    plan, study = make(ReproduceTCR), Study.open(killed)
    done = study.results
    Study.make(tmp_path / "whole", make(ReproduceTCR)).run()
    assert files(killed) == files(tmp_path / "whole")

    found = Comparison.load(done["comparison"] / "comparison")
    shares = {way: found.overall(way)["exact"] for way in WAYS}
    assert shares["none"] <= shares["TCR, gold"] <= shares["best head, gold"]
    assert found.overall("best head, gold")["n_broken"] == 0, "gold flags never touch a right chain"
    lines = list(lines_of(study.findings()))
    rows = [line for line in lines if line.startswith("| gold | any head, chosen by the answer")]
    assert float(rows[0].split("|")[3]) == pytest.approx(shares["best head, gold"], abs=5e-4)
    alone = next(line for line in lines if line.startswith("| none | model alone"))
    assert float(alone.split("|")[3]) == pytest.approx(shares["none"], abs=5e-4)
    counts = counts_of(plan.asked, done, "TCR, gold")
    assert 0 < counts["n_flagged"] < counts["n_tokens"]
    assert counts_of(plan.asked, done, "none") == {}

    moved = Flips.load(done["comparison"] / "flips")
    row = found.overall("best head, gold")
    assert moved.counts("none", "best head, gold") == (row["n_fixed"], row["n_broken"])
    for answers in moved.answers:
        marks = dict(zip(moved.names, answers, strict=True))
        assert marks["none"]["flagged"] is None and marks["DoLa"]["flagged"] is None
        for way in ("TCR, gold", "best head, gold"):
            tokens, error = marks[way]["flagged"], marks["none"]["error"]
            assert error is None or tokens[0] == error["at"], "gold flags stand where the model alone goes wrong"
            assert all(0 <= at < len(moved.chains[marks[way]["chain"]]) for at in tokens)

    report = write_study_report(killed).read_text(encoding="utf-8")
    assert 'id="comparison"' in report and 'id="flips"' in report and "<caption>tau</caption>" in report
    assert (killed / "report.html").is_file() and "### Ablations: parts" in write_tables(study)
    assert any("DoLa: answers" in line for line in summary_of(study))


def test_the_shipped_repair_fits_the_bundled_reasoner() -> None:
    assert "tcr-reasoner" in bundled_repairs()
    repair = Repair.from_pretrained("tcr-reasoner")
    assert isinstance(repair, TCR) and repair.config.decision == "verify"
    model, tokenizer = load_model("reasoner", device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        repair.check_model(model)
    assert repair.end_ids == (tokenizer.eos_token_id,)


def test_the_shipped_repair_with_the_paper_s_selector_decodes() -> None:
    assert {"tcr-reasoner", "tcr-reasoner-lora"} <= set(bundled_repairs())
    repair, light = (Repair.from_pretrained(f"tcr-reasoner{end}") for end in ("-lora", ""))
    assert isinstance(repair, TCR) and isinstance(light, TCR) and repair.config.decision == "vote"
    assert isinstance(repair.selector, ClassifierSelector) and repair.selector.base == "reasoner"
    assert repair.heads == light.heads, "both were fitted on the same problems"
    names = [name for name in repair.tensors() if name.startswith("selector.")]
    assert names and all("lora" in name or name.startswith("selector.head.") for name in names), "no second base"
    folder = BUNDLED / "tcr-reasoner-lora"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1.5e6
    model, tokenizer = load_model("reasoner", device="cpu")
    problems = tasks.sample("clf", 14, 4, 100)
    alone = generate(model, tokenizer, problems, progress=False)
    traces = generate(model, tokenizer, problems, repair=repair, progress=False)
    assert repair.cost.n_flagged > 0 and traces != alone


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hops": {}}, "at least one hop count of one task"),
        ({"hops": {"sums": (2,)}}, "Unknown task 'sums'"),
        ({"ways": ("none", "magic")}, "Unknown way of decoding 'magic'"),
        ({"variants": ("some",)}, "Unknown variant 'some'"),
        ({"repair": None}, "at least one task with hops is needed"),
        ({"seeds": (1, 100)}, "fit_seed 100 is one of the test seeds"),
        ({"also": ("a/TCR", "TCR")}, "'TCR' names two ways of decoding"),
        ({"also": ("a/b+c", "b + d/c")}, r"'b\+c' names two ways of decoding"),
        ({"decision": "votes"}, "Unknown decision 'votes'.*Did you mean 'vote'"),
        ({"n": 0}, "n must be a whole number from 1; got 0"),
    ],
)
def test_what_cannot_be_run_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        config(**changes)


def test_right_chains_are_known_in_the_short_rendering_alone() -> None:
    _, tokenizer = load_model("reasoner", device="cpu")
    with pytest.raises(BadInput, match="Right chains are known from problems only in the short rendering"):
        gold_detector(tokenizer, tasks.sample("clf", 2, 1, rendering="natural"))


def test_settings_that_came_later_are_in_the_record_only_if_set() -> None:
    later = {"asking", "detector", "positions", "n_contexts", "n_lessons"}
    assert not later & set(config().record())
    changed = config(asking=Asking(shots=0), detector="lens", positions="last", n_contexts=4, n_lessons=9)
    assert later < set(changed.record()) and ReproduceTCRConfig.from_record(changed.record()) == changed
    assert changed.fitting().candidates.min_errors == 4 and config().fitting() == FitConfig()
    assert changed.fitting().candidates.positions == "last" and changed.fitting().detector == "lens"


@pytest.mark.slow
def test_repairs_that_decode_together_are_a_way(tmp_path: Path) -> None:
    loaded = load_model("reasoner", device="cpu")
    also = ("stepflow+tcr-reasoner", "stepflow")
    study = Study.make(
        tmp_path / "study", make(ReproduceTCR, ways=("none", "TCR"), variants=(), also=also, seeds=(1,), n=2)
    )
    study.run()
    problems = tasks.sample("clf", 13, 2, 1)
    for way, repair in (
        ("stepflow-and-tcr-reasoner", [StepFlow(), TCR.from_pretrained("tcr-reasoner")]),
        ("stepflow", StepFlow()),
    ):
        want = generate(*loaded, problems, repair=repair, progress=False)
        got = read_traces(study.results[f"runs/{way}/clf-1"] / "traces.parquet")
        assert [t.response for t in got] == [t.response for t in want]
    counts = counts_of(config(also=also, seeds=(1,)), study.results, "stepflow+tcr-reasoner")
    assert counts["n_sites"] > 0 and counts["n_flagged"] > 0


def test_repairs_that_cannot_decode_together_are_refused() -> None:
    with pytest.raises(BadInput, match="both decide single tokens"):
        decoding_with("tcr-reasoner+tcr-reasoner-lora")
    with pytest.raises(BadInput, match="Two stepflow repairs cannot decode together"):
        decoding_with("stepflow+stepflow")


def test_a_plan_counts_weights_and_answers_without_running() -> None:
    found = estimate(config())
    model, _ = load_model("reasoner", device="cpu")
    assert found.n_parameters == sum(p.numel() for p in model.parameters())
    assert found.n_answers == 3 * 2 * len(WAYS)
    assert found.weight_gb == pytest.approx(4 * found.n_parameters / 1e9)
    assert "Memory about" in found.summary() and found.hours > 0
    with pytest.raises(BadInput, match="cannot be read, so nothing can be planned"):
        estimate(config(model="no/such-model-here"))


def seeds_of(text: str) -> Sequence[int]:
    from chainwright.cli._parse import parse_numbers

    return parse_numbers(text, "--seeds")


def test_seeds_are_different_whole_numbers() -> None:
    assert seeds_of("11, 12") == (11, 12)
    for bad in ("", "1,1", "a", "1.5"):
        with pytest.raises(BadInput, match="--seeds takes different whole numbers"):
            seeds_of(bad)


def test_the_best_single_head_needs_a_fit() -> None:
    with pytest.raises(BadInput, match="'best single head' is chosen by figures that only a fit gives"):
        ReproduceTCRConfig(model="reasoner", hops={"clf": (4,)}, repair="tcr-reasoner")
