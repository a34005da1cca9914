"""Back attention beside a pretrained model: what is held out, how answers are read, the controls, and the study."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from chainwright import BadInput, Repair, edit, load_model
from chainwright._files import read_json
from chainwright.edits import AttendBack
from chainwright.reproduce.back_real import problems as room
from chainwright.reproduce.back_real import study as studying
from chainwright.reproduce.back_real.config import ReproduceBackRealConfig
from chainwright.reproduce.back_real.problems import for_training, outcome, parts_of
from chainwright.reproduce.back_real.study import ReproduceBackReal, run_back_real, ship
from chainwright.reproduce.back_real.ways import (
    ALONE,
    CONTROL,
    FIRST_HOP,
    MAIN,
    OWN,
    TWICE,
    Again,
    Way,
    answering,
    ways,
)
from chainwright.reproduce.findings import read_results
from chainwright.studies import Study
from chainwright.tasks import facts
from command_line import call
from families import random_ids, tiny
from gguf_files import write_gguf
from reference import assert_close

pytest.importorskip("gguf")


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the file of a model whose tokens are bytes; it is asked five tokens of one one-hop fact."""
    monkeypatch.setenv("CHAINWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(studying, "_N_TOKENS", 2)
    monkeypatch.setattr(studying, "_N_ONE_HOP", 1)
    return str(write_gguf(tmp_path / "small.gguf"))


def test_facts_are_held_out_by_landmark_and_by_composition():
    parts = parts_of(ReproduceBackRealConfig(), 0)
    train, compositions, new = parts.train, *parts.held_out.values()
    assert list(parts.held_out) == ["new compositions", "new facts"]
    asked = [p.prompt for some in (train, compositions, new) for p in some]
    assert len(set(asked)) == len(asked) == sum(len(facts.two_hop(r)) for r in facts.second_relations())
    seen = {p.facts["e1"] for p in train}
    assert {p.facts["e1"] for p in compositions} <= seen and not {p.facts["e1"] for p in new} & seen
    assert len(compositions) >= 10 and len(new) >= 30
    other = parts_of(ReproduceBackRealConfig(), 1)
    assert {p.prompt for p in other.train} != {p.prompt for p in train}
    assert parts_of(ReproduceBackRealConfig(), 0) == parts


def test_arithmetic_is_right_and_held_out_by_expression():
    parts = parts_of(ReproduceBackRealConfig(kind="arithmetic", n=50), 0)
    (held_out,) = parts.held_out.values()
    assert len(held_out) == 50 and not {p.prompt for p in held_out} & {p.prompt for p in parts.train}
    for problem in [*held_out, *parts.train[:200]]:
        asked = problem.prompt.removesuffix(" =")
        assert eval(asked[1 : asked.index(")")]) >= 0 and eval(asked) == int(problem.answer) >= 0


def word_file(folder: Path) -> Path:
    records = [
        {"sQuestion": f"Ann has {k} nuts and eats 2. How many are left?", "lSolutions": [k - 2.0]} for k in range(3, 15)
    ]
    records += [{"sQuestion": "Half of 5?", "lSolutions": [2.5]}, records[0]]
    path = folder / "nuts.json"
    path.write_text(json.dumps([{**r, "iIndex": i} for i, r in enumerate(records)]))
    return path


@pytest.mark.filterwarnings("ignore")
def test_word_problems_are_not_repeated_between_the_parts(tmp_path):
    config = ReproduceBackRealConfig(kind="word-problems", files=(str(word_file(tmp_path)),))
    parts = parts_of(config, 0)
    assert (len(parts.train), {name: len(p) for name, p in parts.held_out.items()}) == (8, {"nuts": 4})
    every = [*parts.train, *parts.held_out["nuts"]]
    assert len({p.prompt for p in every}) == 12
    assert all(p.prompt.endswith("left?\nAnswer:") and p.answer.isdigit() for p in every)


@pytest.mark.parametrize(
    "said, named",
    [(" 12\n", "right"), ("12 nuts", "right"), ("$12.00", "right"), ("12.5", "wrong"), ("120", "wrong"),
     ("-12", "wrong"), ("about 12", "wrong"), ("", "wrong")],
)  # fmt: skip
def test_numbers_are_read_whole(said, named):
    problem = parts_of(ReproduceBackRealConfig(kind="arithmetic"), 0).train[0]
    assert outcome(replace(problem, answer="12"), said) == named


def test_facts_are_judged_as_chainwright_facts_judges():
    problem = next(p for p in facts.two_hop("capital") if p.facts["e1"] == "the Colosseum")
    assert [outcome(problem, said) for said in (" Rome, of", " Italy", " the Colosseum", " a city")] == [
        "right", "e2", "e1", "other",
    ]  # fmt: skip
    assert for_training([problem]) == [problem]
    number = parts_of(ReproduceBackRealConfig(kind="arithmetic"), 0).train[0]
    assert for_training([number])[0].answer == f"{number.answer}\n"


@torch.no_grad()
def test_running_again_is_the_layers_on_their_own_output():
    model, ids = tiny("llama"), random_ids(1, 7)
    ends: list[torch.Tensor] = []
    hook = model.model.layers[-1].register_forward_hook(
        lambda m, a, o: ends.append((o[0] if isinstance(o, tuple) else o).clone())
    )
    model(ids, use_cache=False)
    hook.remove()

    def put(module, args, kwargs):
        return (ends[0].view_as(args[0]), *args[1:]), kwargs

    hook = model.model.layers[1].register_forward_pre_hook(put, with_kwargs=True)
    want = model(ids, use_cache=False).logits
    hook.remove()
    again = Again(model.config.hidden_size, 1, len(model.model.layers))
    assert all(not weight.requires_grad for weight in again.parameters())
    with edit(model, AttendBack([again], positions="own")):
        assert_close(model(ids, use_cache=False).logits, want)


def test_ways_and_their_sizes(small):
    model, tokenizer = load_model(small)
    config = ReproduceBackRealConfig(source=1, n_steps=1, batch_size=2, d_back=8, every=1, sweep=(0,))
    assert list(ways(config)) == [ALONE, MAIN, CONTROL, TWICE, FIRST_HOP, OWN, "source 0"]
    problems = parts_of(config, 0).train[:4]
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    alone, main, control, first = (
        answering(model, tokenizer, ways(config)[name], problems, config, 0)
        for name in (ALONE, MAIN, CONTROL, FIRST_HOP)
    )
    assert alone.n_parameters == 0 and main.n_parameters == 4 * model.config.hidden_size * 8
    assert 0 < control.n_parameters and control.model is not model
    assert main.repair.heads[0].targets[-1] == model.config.num_hidden_layers and min(main.repair.heads[0].targets) > 1
    written = {tokenizer.decode([token]) for token in first.repair.tokens}
    assert written <= set(" located") and written
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert answering(model, tokenizer, Way(1, is_twice=True), problems, config, 0).head is not None


def test_the_study_measures_goes_on_and_records(small, tmp_path):
    asked = (
        "reproduce",
        "back-attention-real",
        "--model",
        small,
        "--source",
        "1",
        "-n",
        "1",
        "-o",
        str(tmp_path / "s"),
    )
    sets = [part for s in ("n_steps=1", "batch_size=2", "d_back=8", "every=1", "sweep=[0]") for part in ("--set", s)]
    code, output = call(*asked, *sets, "--cost-repeats", "1", "--results", str(tmp_path / "results"))
    assert code == 0, output
    records = {record.finding: record for record in read_results(tmp_path / "results")}
    assert records.keys() == {"flow-back-two-hop", "flow-back-control", "flow-back-source", "flow-back-cost"}
    assert records["flow-back-cost"].value > 0 and read_json(tmp_path / "s" / "cost.json")["n"] == 1
    assert records["flow-back-two-hop"].n == 2 and records["flow-back-two-hop"].command.endswith(
        "--set 'sweep=[0]' --cost-repeats 1"
    )
    tables = read_json(tmp_path / "s" / "table" / "table.json")
    assert [row["way"] for row in tables["ways"]] == [ALONE, MAIN, CONTROL, TWICE, FIRST_HOP, OWN, "source 0"]
    figures = read_json(tmp_path / "s" / "way" / "model-alone" / "seed-0" / "figures.json")
    assert {name: len(part["said"]) for name, part in figures["parts"].items()} == {
        "new compositions": 1, "new facts": 1, "one hop": 1,
    }  # fmt: skip
    assert (tmp_path / "s" / "way" / "back-attention" / "seed-0" / "repair").is_dir()
    shipped = Repair.from_pretrained(
        ship(tmp_path / "s", ReproduceBackRealConfig(), tmp_path / "ship", overwrite=False)
    )
    kept = Repair.from_pretrained(tmp_path / "s" / "way" / "back-attention" / "seed-0" / "repair")
    assert shipped.settings() == kept.settings() and [row["questions"] for row in shipped.origin.figures] == [
        "new compositions (1)", "new facts (1)", "one hop (1)",
    ]  # fmt: skip
    code, output = call(*asked, *sets, "--finished", "--results", str(tmp_path / "again"))
    again = {record.finding: record for record in read_results(tmp_path / "again")}
    assert code == 0 and again.keys() == records.keys() - {"flow-back-cost"}
    assert all(
        again[name].value == records[name].value and again[name].command.endswith("--finished") for name in again
    )
    plan = ReproduceBackReal(*load_model(small), ReproduceBackRealConfig(**Study.open(tmp_path / "s").manifest.config))
    done = Study.open(tmp_path / "s").results
    partly = plan.tables({unit: done[unit] for unit in done if "source-0" not in unit and "model-alone" not in unit})
    assert [row["way"] for row in partly["ways"]] == [MAIN, CONTROL, TWICE, FIRST_HOP, OWN]
    assert [(claim["finding"], claim["seeds"]) for claim in partly["claims"]] == [("flow-back-control", [0])]
    known = Study.open(tmp_path / "s").manifest
    assert ReproduceBackReal.resumed(known).config == known.config


def test_what_does_not_fit_is_refused(small, tmp_path):
    with pytest.raises(BadInput, match="pass --file"):
        ReproduceBackRealConfig(kind="word-problems")
    with pytest.raises(BadInput, match="pass --file"):
        ReproduceBackRealConfig(kind="facts", files=("a.json",))
    with pytest.raises(BadInput, match="6 is in both"):
        ReproduceBackRealConfig(sweep=(6,))
    with pytest.raises(BadInput, match="does not exist: the model has"):
        run_back_real(ReproduceBackRealConfig(model=small, source=99), tmp_path / "s")
    (tmp_path / "two.json").write_text(json.dumps([{"sQuestion": "1 + 1?", "lSolutions": [2.0], "iIndex": 0}]))
    with pytest.raises(BadInput, match="1 problems with a whole number"):
        parts_of(ReproduceBackRealConfig(kind="word-problems", files=(str(tmp_path / "two.json"),)), 0)


def test_differences_are_paired():
    record = studying._difference("flow-back-two-hop", np.array([1.0, 1.0, 0.0]), np.array([0.0, 1.0, 0.0]))
    assert record["value"] == pytest.approx(1 / 3) and record["shown"] == "+33.3 points, 33.3% to 66.7%"
    assert room._whole("1,200 nuts") == 1200
