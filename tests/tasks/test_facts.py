"""Real facts: the table is consistent, questions name what they ask, and answers are read by their beginning."""

from __future__ import annotations

import pytest

from chainwright._errors import BadInput
from chainwright.tasks import facts
from chainwright.tasks._facts_table import ALSO, COUNTRIES, LANDMARKS


def test_the_table_is_large_and_consistent() -> None:
    names, capitals = [row[0] for row in COUNTRIES], [row[1] for row in COUNTRIES]
    assert len(names) == len(set(names)) == len(set(capitals)) >= 60
    assert sum(row[2] is not None for row in COUNTRIES) >= 40 and len(LANDMARKS) >= 40
    assert len({landmark for landmark, _ in LANDMARKS}) == len(LANDMARKS)
    assert {country for _, country in LANDMARKS} <= set(names)
    assert set(ALSO) <= {name for row in COUNTRIES for name in row if name is not None}
    counts = {relation: len(facts.one_hop(relation)) for relation in facts.relations()}
    assert counts["capital"] == len(COUNTRIES) and counts["country"] == len(LANDMARKS) == len(facts.two_hop("capital"))


def test_questions_name_the_entity_and_the_relation_and_nothing_of_the_answer() -> None:
    every = [p for r in facts.relations() for p in facts.one_hop(r)]
    every += [p for r in facts.second_relations() for p in facts.two_hop(r)]
    for problem in every:
        marks = ("e1", "r1") if problem.hops == 1 else ("e1", "r1", "r2")
        assert all(problem.facts[mark] in problem.prompt for mark in marks), problem.prompt
        assert problem.prompt[0].isupper() and not problem.prompt.endswith(" ")
        assert problem.hops == 1 or problem.facts["e2"].removeprefix("the ") not in problem.prompt
        assert facts.is_right(problem, f" {problem.answer}, a fine place")
    texts = [problem.prompt for problem in every]
    assert "The Colosseum is located in the country of" in texts and "The capital city of France is" in texts
    assert "The main language of the country where Machu Picchu is located is" in texts


def test_what_a_response_begins_with_decides() -> None:
    (problem,) = (p for p in facts.two_hop("capital") if p.facts["e1"] == "the Rijksmuseum")
    assert (problem.facts["e2"], problem.facts["e3"]) == ("the Netherlands", "Amsterdam")
    for text, found in {
        " Amsterdam.": "e3",
        " the AMSTERDAM": "e3",
        " Amsterdamse": "other",
        " the Netherlands": "e2",
        " Netherlands, in": "e2",
        " Holland": "e2",
        " the Rijksmuseum Museum": "e1",
        " a city": "other",
        "": "other",
    }.items():
        assert facts.outcome(problem, text) == found, text
    (bridge,) = (p for p in facts.two_hop("language") if p.facts["e1"] == "the Charles Bridge")
    found = [facts.outcome(bridge, said) for said in (" Czech.", " the Czech Republic.", " Czechia")]
    assert found == ["e3", "e2", "e2"]
    (kyiv,) = (p for p in facts.one_hop("capital") if p.facts["e1"] == "Ukraine")
    assert facts.is_right(kyiv, " Kiev.") and facts.is_right(kyiv, " Kyiv") and not facts.is_right(kyiv, " Ukraine")


def test_relations_that_do_not_exist() -> None:
    with pytest.raises(BadInput, match="Unknown relation 'capitol'; known: capital, language, country"):
        facts.one_hop("capitol")
    with pytest.raises(BadInput, match=r"Unknown relation 'country'; known: capital, language\."):
        facts.two_hop("country")
