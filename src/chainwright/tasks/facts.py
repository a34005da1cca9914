"""Real facts that a pretrained model may know, as questions with one hop and with two.

One hop: the capital or language of a country, the country of a landmark. Two hops: the capital or language of the
country that a landmark is in, so that the answer needs a fact about an entity, e2, which the question does not name. A
question is a text that the answer continues; it is asked as it is, without a chat template.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from chainwright._errors import unknown_name
from chainwright.tasks._facts_table import ALSO, COUNTRIES, LANDMARKS
from chainwright.tasks.base import Problem, Slot
from chainwright.tasks.knowledge import FIRST_HOP, SECOND_HOP

Outcome = Literal["e3", "e2", "e1", "other"]
_FIRST = "country"


class _Wording(NamedTuple):
    """How a relation is asked, with "{}" for the entity, and the words in it that name the relation."""

    text: str
    words: str


_WORDINGS = {
    "capital": _Wording("The capital city of {} is", "capital city"),
    "language": _Wording("The main language of {} is", "main language"),
    "country": _Wording("{} is located in the country of", "country"),
}
_NESTED = "the country where {} is located"


def relations() -> list[str]:
    """Return the relations of one-hop questions."""
    return list(_WORDINGS)


def second_relations() -> list[str]:
    """Return the relations that two-hop questions end with; they all begin with the country of a landmark."""
    return [name for name in _WORDINGS if name != _FIRST]


def one_hop(relation: str) -> list[Problem]:
    """Return every question about one relation.

    `Problem.facts` holds e1, r1 and e2 as they are written in the question, and "relation".

    Raises:
        BadInput: An unknown relation.
    """
    wording = _wording(relation, relations())
    return [_one_hop(relation, wording, entity, answer) for entity, answer in _pairs(relation).items()]


def two_hop(relation: str) -> list[Problem]:
    """Return every question about a relation of the country that a landmark is in.

    `Problem.facts` holds e1, r1, e2, r2 and e3, and "relation".

    Raises:
        BadInput: An unknown relation, or the country of a landmark, which is the first hop.
    """
    wording = _wording(relation, second_relations())
    answers = _pairs(relation)
    return [
        _two_hop(relation, wording, landmark, country, answers[country])
        for landmark, country in LANDMARKS
        if country in answers
    ]


def _pairs(relation: str) -> dict[str, str]:
    """Return the answer of each entity that has one."""
    if relation == _FIRST:
        return dict(LANDMARKS)
    column = 1 if relation == "capital" else 2
    return {row[0]: answer for row in COUNTRIES if (answer := row[column]) is not None}


def _wording(relation: str, allowed: list[str]) -> _Wording:
    if relation not in allowed:
        raise unknown_name("relation", relation, allowed)
    return _WORDINGS[relation]


def _one_hop(relation: str, wording: _Wording, entity: str, answer: str) -> Problem:
    prompt = _capitalised(wording.text.format(entity))
    written = _capitalised(entity) if wording.text.startswith("{") else entity
    slot = Slot(0, len(answer), FIRST_HOP, 0, answer)
    facts = {"relation": relation, "e1": written, "r1": wording.words, "e2": answer}
    return Problem("facts", 1, prompt, answer, answer, (slot,), rendering="natural", facts=facts)


def _two_hop(relation: str, wording: _Wording, landmark: str, country: str, answer: str) -> Problem:
    prompt = wording.text.format(_NESTED.format(landmark))
    slot = Slot(0, len(answer), SECOND_HOP, 1, answer)
    facts = {"relation": relation, "e1": landmark, "r1": "country", "e2": country, "r2": wording.words, "e3": answer}
    return Problem("two-hop-facts", 2, prompt, answer, answer, (slot,), rendering="natural", facts=facts)


def _capitalised(text: str) -> str:
    return text[0].upper() + text[1:]


def outcome(problem: Problem, response: str) -> Outcome:
    """Return which entity a response begins with: the right answer, an earlier entity of the question, or neither.

    With two hops "e3" is right, "e2" stops after the first hop, and "e1" repeats the landmark; with one hop the right
    answer is "e2". Articles and case are not compared, and other spellings of a name count. Of two names that a
    response begins with, the longer one is meant: "Czech Republic" is a country and no language.
    """
    names: tuple[Outcome, ...] = ("e3", "e2", "e1")
    spellings = [
        (len(spelling.removeprefix("the ")), name)
        for name in names
        if (entity := problem.facts.get(name)) is not None
        for spelling in (entity, *ALSO.get(entity, ()))
        if _begins(response, spelling)
    ]
    return max(spellings, key=lambda found: found[0])[1] if spellings else "other"


def is_right(problem: Problem, response: str) -> bool:
    """Return whether a response begins with the right answer."""
    return outcome(problem, response) == ("e3" if problem.hops == 2 else "e2")


def _begins(response: str, name: str) -> bool:
    said, wanted = (text.strip().casefold().removeprefix("the ") for text in (response, name))
    return said.startswith(wanted) and not said[len(wanted) : len(wanted) + 1].isalnum()
