"""The study of logit flow: what is followed, what is read off it, and what it says of the published findings."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from chainwright import BadInput, load_model
from chainwright._files import read_json
from chainwright.diagnose.flow.stages import MarkedQuery, flow_stages
from chainwright.lab.knowledge import KnowledgeConfig, train_knowledge
from chainwright.reproduce.findings import read_results
from chainwright.reproduce.logit_flow import asking, claims, measures
from chainwright.reproduce.logit_flow.asking import KNOWN, MISSED, RIGHT, SAID, Questions
from chainwright.reproduce.logit_flow.config import ReproduceLogitFlowConfig
from chainwright.reproduce.logit_flow.study import ReproduceLogitFlow, run_logit_flow
from chainwright.studies import Study
from chainwright.tasks import facts
from command_line import call

_TINY = KnowledgeConfig(
    n_entities=6, n_relations=3, d_model=32, n_layers=2, n_heads=2, d_head=16, d_mlp=64, n_steps=1, batch_size=8
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return train_knowledge(_TINY, tmp_path_factory.mktemp("models") / "tiny", progress=False)


@pytest.fixture(autouse=True)
def answering(monkeypatch):
    """Let the tiny model know every fact, and combine those that begin with its first three entities."""

    def said(model, tokenizer, problems):
        first = _TINY.world.entities[:3]
        return [p.answer if p.hops == 1 or p.facts["e1"] in first else p.facts["e2"] for p in problems]

    monkeypatch.setattr(asking, "answers", said)
    monkeypatch.setattr(claims, "_FEWEST", 2)


def test_the_study_follows_what_is_known_and_goes_on(folder, tmp_path):
    config = ReproduceLogitFlowConfig(model=str(folder), n=2)
    tables = run_logit_flow(config, tmp_path / "study")
    rows = read_json(tmp_path / "study" / "follow/000" / "rows.json")
    groups = [row["group"] for row in rows]
    assert {group: groups.count(group) for group in groups} == {KNOWN: 2, RIGHT: 2, SAID: 2, MISSED: 2}
    split = tables["two hops"][1]
    assert (split["two-hop questions"], split["n"], split["e3"][:4], split["e2"][:4]) == (
        "both facts known", 36, "0.50", "0.50",
    )  # fmt: skip
    named = {claim["finding"]: claim for claim in tables["claims"]}
    assert named["flow-two-hop-right"]["shown"] == "18 of 36 (50%)"
    assert named["flow-two-hop-wrong"]["shown"] == "18 of 18 (100%)"
    assert {"flow-order", "flow-depth", "flow-value-deep", "flow-conflict"} <= named.keys()
    wrong, right = (np.mean([_first_relation_above(r) for r in rows if r["group"] == g]) for g in (SAID, RIGHT))
    assert named["flow-conflict"]["value"] == pytest.approx(wrong - right, abs=1e-6)
    assert [type(found).__name__ for found in ReproduceLogitFlow.findings(Study.open(tmp_path / "study"))] == [
        "FlowStages", "FlowContrast",
    ]  # fmt: skip
    assert run_logit_flow(config, tmp_path / "study") == tables
    assert run_logit_flow(config, tmp_path / "study", only_finished=True) == tables
    with pytest.raises(BadInput, match="Nothing is finished"):
        run_logit_flow(config, tmp_path / "empty", only_finished=True)
    with pytest.raises(BadInput):
        run_logit_flow(config.replace(n=1), tmp_path / "study")


def _first_relation_above(row):
    """Return the share of credit of the first relation in the second of two layers."""
    every = sum(np.sum(c) for c in row["credit"].values()) + np.sum(row["value"])
    return sum(kind[1] for kind in row["credit"]["first relation"]) / every


def test_stages_are_those_of_flow_stages(folder):
    model, tokenizer = load_model(str(folder))
    problems = Questions.made_up(_TINY, 0).problems[:3]
    queries = [asking.query(model, tokenizer, KNOWN, problem, problem.answer) for problem in problems]
    marked = [
        MarkedQuery(q.input_ids, q.token_id, q.roles["entity"], q.roles["relation"] + q.roles["end"]) for q in queries
    ]
    want = flow_stages(model, marked, n_neurons=100)
    rows = [measures.follow(model, query) for query in queries]
    got = measures.stages_of(rows, "", {})
    assert (got.each - want.each).abs().max() < 1e-4
    assert got.sizes.tolist() == want.sizes.tolist()
    credit = want.each[:, 2:4].sum(1)
    by_hand = [sum(layer * float(c) for layer, c in enumerate(row)) / float(row.sum()) / 2 for row in credit]
    assert measures.depths(rows)["C and D"] == pytest.approx(by_hand, abs=1e-3)


def test_the_command_records_what_it_measured(folder, tmp_path):
    asked = ("reproduce", "logit-flow", "--model", str(folder), "-n", "1", "-o", str(tmp_path / "s"))
    code, output = call(*asked, "--results", str(tmp_path / "results"))
    assert code == 0, output
    records = {record.finding: record for record in read_results(tmp_path / "results")}
    assert records["flow-two-hop-wrong"].value == 1 and records["flow-two-hop-wrong"].model == "tiny"
    assert records["flow-order"].command == f"chainwright reproduce logit-flow --model {folder.name} -n 1"
    assert "Published findings" in output and (tmp_path / "s" / "report.html").is_file()


def test_a_model_of_another_recipe_is_refused(tmp_path):
    with pytest.raises(BadInput, match="not one of a made-up world"):
        run_logit_flow(ReproduceLogitFlowConfig(model="reasoner"), tmp_path / "study")


def test_roles_have_every_position_once():
    roles = asking._roles(7, 2, [(4, 5), (3,), (1, 3)])
    assert roles == {
        "entity": (4, 5), "first relation": (3,), "second relation": (1,), "end": (6,), "elsewhere": (0, 2),
    }  # fmt: skip
    assert asking._roles(3, 1, [(1,), (2,)])["end"] == ()  # a question that ends with its relation


def test_what_is_known_is_chosen_by_relation_and_wrong_answers_twice():
    rows = [
        {"hops": 1, "relation": "capital", "outcome": "e2", "are_known": True},
        {"hops": 1, "relation": "capital", "outcome": "other", "are_known": True},
        {"hops": 1, "relation": "language", "outcome": "e2", "are_known": True},
        {"hops": 2, "relation": "capital", "outcome": "e3", "are_known": True},
        {"hops": 2, "relation": "capital", "outcome": "other", "are_known": True},
        {"hops": 2, "relation": "capital", "outcome": "e3", "are_known": False},
    ]
    assert asking.chosen(rows, 10, 0) == [
        (f"{KNOWN}, capital", 0), (f"{KNOWN}, language", 2), (RIGHT, 3), (SAID, 4), (MISSED, 4),
    ]  # fmt: skip
    assert len(asking.chosen([rows[0]] * 5, 2, 0)) == 2


def test_articles_are_not_followed(folder):
    model, tokenizer = load_model(str(folder))
    problem = facts.two_hop("capital")[0]
    assert asking.query(model, tokenizer, SAID, problem, "the city of Pisa") is None
    assert asking.query(model, tokenizer, SAID, problem, "") is None


def test_facts_of_both_hops_are_looked_up():
    given = Questions.real()
    said = [p.answer if p.hops == 1 and p.facts["e1"] != "Italy" else "?" for p in given.problems]
    rows = asking.asked(None, None, Questions(given.problems, lambda *_: said, given.outcome))
    unknown = {
        p.facts["e2"] for p, row in zip(given.problems, rows, strict=True) if p.hops == 2 and not row["are_known"]
    }
    assert unknown == {"Italy"}


def row_of(credit, value=0.0):
    """Return a row of two layers: `credit` by role as (attention, FFN) lists, and a value neuron in the last layer."""
    none = [[0.0, 0.0], [0.0, 0.0]]
    roles = ("entity", "first relation", "second relation", "end", "elsewhere")
    return {
        "credit": {role: credit.get(role, none) for role in roles},
        "value": [[0.0, 0.0], [0.0, value]],
        "sizes": dict.fromkeys(roles, 2) | {"entity": 1},
    }


def test_shares_and_densities_by_hand():
    credit = {"first relation": [[1.0, 2.0], [0.0, 1.0]], "entity": [[3.0, 0.0], [0.0, 0.0]]}
    row = row_of(credit | {"elsewhere": [[1.0, 0.0], [0.0, 1.0]]}, 1.0)
    low, high = measures.role_shares([row], "first relation")
    assert (float(low[0]), float(high[0])) == pytest.approx((0.1, 0.3))
    assert measures.densities([row]).tolist() == [3.0]  # 3 for one token, 2 for two
    assert measures.densities([row_of({})]).tolist() == []


def test_centres_without_credit_are_not_numbers():
    got = measures.centres(torch.tensor([[0.0, 0.0], [1.0, 3.0]]))
    assert math.isnan(got[0]) and got[1] == pytest.approx(0.375)
    assert measures.mean_interval(got)[0] == pytest.approx(0.375)


def test_few_answers_have_no_difference(monkeypatch):
    monkeypatch.undo()
    rows = [{**row_of({}, 1.0), "group": group} for group in (SAID, RIGHT) for _ in range(5)]
    assert claims._conflict(rows) is None  # five of each
    more = [{**row_of({"first relation": [[0.0, 1.0], [0.0, 0.0]]}, 1.0), "group": SAID}] * 6
    record = claims._conflict([*rows, *more, rows[-1]])
    assert record["value"] == pytest.approx(6 / 11 / 2) and record["low"] > 0
