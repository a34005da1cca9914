"""The stages of real facts: marked as they are written, over facts that the model knows, with e2 as the rival."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from chainwright._errors import BadInput
from chainwright.diagnose.flow.attribution import LogitFlow
from chainwright.diagnose.flow.stages import FlowStages, MarkedQuery
from chainwright.models import load_model
from chainwright.models.load import LoadedModel
from chainwright.studies import fact_flow as room
from chainwright.studies.fact_flow import fact_flow
from chainwright.tasks import Problem, facts
from command_line import call
from gguf_files import write_gguf

pytest.importorskip("gguf")


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    """Return a model whose tokens are bytes; it knows the facts about Italy and Mexico, and combines those of Italy."""
    monkeypatch.setenv("CHAINWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(room, "known_facts", known)
    monkeypatch.setattr(room, "said_to", said)
    return load_model(write_gguf(tmp_path / "small.gguf"), device="cpu")


def known(model: object, tokenizer: object, problems: Sequence[Problem], **_: object) -> list[Problem]:
    return [p for p in problems if {"Italy", "Mexico"} & {p.facts["e1"], p.facts["e2"]}]


def said(model: object, tokenizer: object, problems: Sequence[Problem], **_: object) -> list[str]:
    return [p.answer if p.facts["e2"] == "Italy" else "the sea" for p in problems]


def text(tokenizer: PreTrainedTokenizerBase, query: MarkedQuery, places: Sequence[int]) -> str:
    return tokenizer.decode([int(query.input_ids[i]) for i in places])


@pytest.fixture
def followed(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[MarkedQuery]]:
    """Return the queries whose stages were asked for, by name."""
    seen: dict[str, list[MarkedQuery]] = {}
    stages = room.flow_stages

    def remember(model: object, queries: list[MarkedQuery], **settings: str) -> FlowStages:
        seen[settings["name"]] = queries
        return stages(model, queries[:1], **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(room, "flow_stages", remember)
    return seen


def test_known_facts_are_followed_by_relation(loaded: LoadedModel, followed: dict[str, list[MarkedQuery]]) -> None:
    found = fact_flow(*loaded, "facts", n=2, seed=0, progress=False)
    assert isinstance(found[0], LogitFlow) and all(isinstance(one, FlowStages) for one in found[1:])
    assert list(followed) == ["facts; known capital", "facts; known language", "facts; known country"]
    for query in followed["facts; known capital"]:
        assert text(loaded.tokenizer, query, query.entity) in (" Italy", "Italy", " Mexico", "Mexico")
        assert text(loaded.tokenizer, query, query.relation).strip() == "capital city" and query.conflict_id is None
    assert [len(queries) for queries in followed.values()] == [2, 2, 2]


def test_compositions_of_known_facts_are_followed_against_the_first_hop(
    loaded: LoadedModel, followed: dict[str, list[MarkedQuery]]
) -> None:
    found = fact_flow(*loaded, "two-hop-facts", n=20, seed=0, progress=False)
    assert [getattr(one, "marks", None) for one in found[1:]] == [["landmark", "second relation"]] * 2
    right, wrong = (
        followed["two-hop-facts; answered right"],
        followed["two-hop-facts; answered wrong, the right answer"],
    )
    countries = {problem.facts["e1"]: problem.facts["e2"] for problem in facts.two_hop("capital")}
    for queries, country in ((right, "Italy"), (wrong, "Mexico")):
        assert len(queries) == 2 * sum(name == country for name in countries.values()), "capital and language"
        for query in queries:
            assert countries[text(loaded.tokenizer, query, query.entity).strip()] == country
    spoken = {text(loaded.tokenizer, query, query.relation).strip() for query in right}
    assert spoken == {"capital city", "main language"}


def test_a_model_that_knows_nothing_is_refused(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "known_facts", lambda *_, **__: [])
    for task in ("facts", "two-hop-facts"):
        with pytest.raises(BadInput, match="knows none of these facts"):
            fact_flow(*loaded, task, n=2, seed=0, progress=False)
    with pytest.raises(BadInput, match="at least 1 answer"):
        fact_flow(*loaded, "facts", n=0, seed=0, progress=False)


def test_the_command_follows_facts(loaded: LoadedModel, tmp_path: Path) -> None:
    code, printed = call(
        "flow", "-m", tmp_path / "small.gguf", "--task", "facts", "-n", "1", "-o", tmp_path / "out", "--quiet"
    )
    assert code == 0 and "known capital" in printed and (tmp_path / "out" / "report.html").is_file(), printed
