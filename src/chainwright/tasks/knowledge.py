"""A made-up world of facts: one-hop and two-hop questions about entities and relations that exist nowhere else.

1. Every relation maps every entity to another one, each entity being the answer exactly once, so that no answer is
   likelier than another before the question is read.
2. A question names an entity and one relation (one hop) or two (two hops), in the order "bado 's mother 's boss is" or
   "the boss of the mother of bado is", or bare, "bado mother boss".
3. `split` says which two-hop questions a training may see: some facts are never met as a first hop, some never as a
   second one, and of the other compositions a share is held out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from random import Random
from typing import Literal, NamedTuple, get_args

from chainwright._errors import BadInput, unknown_name
from chainwright.tasks.base import Problem, Slot

Order = Literal["possessive", "nested", "bare"]
Part = Literal["train", "held_out", "new_first", "new_second", "new_both"]
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"
_RELATIONS = (
    "mother father boss friend teacher rival doctor neighbour cousin guard tailor baker pilot partner sister heir"
).split()
FIRST_HOP, SECOND_HOP = "first hop", "second hop"


class Fact(NamedTuple):
    """That relation `relation` of entity `head` is some entity; both as numbers."""

    head: int
    relation: int


class Composition(NamedTuple):
    """A two-hop question: `second` of `first` of `head`."""

    head: int
    first: int
    second: int


@dataclass(frozen=True)
class World:
    """Entities and relations, drawn from a seed.

    Attributes:
        n_entities: Entities, at most 4900.
        n_relations: Relations, at most 16.
        seed: Decides names and facts.
    """

    n_entities: int = 100
    n_relations: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be named."""
        n_names = (len(_CONSONANTS) * len(_VOWELS)) ** 2
        for name, most in (("n_entities", n_names), ("n_relations", len(_RELATIONS))):
            value = getattr(self, name)
            if not isinstance(value, int) or not 2 <= value <= most:
                raise BadInput(f"{name} must be a whole number from 2 to {most}; got {value!r}.")

    @cached_property
    def entities(self) -> tuple[str, ...]:
        """The entities' names, one word each."""
        syllables = [c + v for c, v in product(_CONSONANTS, _VOWELS)]
        taken = {*_RELATIONS, "the", "of", "is"}
        names = [a + b for a, b in product(syllables, syllables) if a + b not in taken]
        return tuple(Random(f"{self.seed}/names").sample(names, self.n_entities))

    @property
    def relations(self) -> tuple[str, ...]:
        """The relations' names, one word each."""
        return tuple(_RELATIONS[: self.n_relations])

    @cached_property
    def tails(self) -> tuple[tuple[int, ...], ...]:
        """The answer to each fact, `tails[relation][head]`."""
        return tuple(self._derangement(Random(f"{self.seed}/{r}")) for r in range(self.n_relations))

    def _derangement(self, random: Random) -> tuple[int, ...]:
        order = list(range(self.n_entities))
        random.shuffle(order)
        following = dict(zip(order, [*order[1:], order[0]], strict=True))  # one cycle: no entity is its own mother
        return tuple(following[i] for i in range(self.n_entities))

    @property
    def facts(self) -> list[Fact]:
        """Every fact, by head and relation."""
        return [Fact(e, r) for e in range(self.n_entities) for r in range(self.n_relations)]

    @property
    def compositions(self) -> list[Composition]:
        """Every two-hop question with two different relations."""
        pairs = [(a, b) for a in range(self.n_relations) for b in range(self.n_relations) if a != b]
        return [Composition(e, a, b) for e in range(self.n_entities) for a, b in pairs]

    def tail(self, head: int, *relations: int) -> int:
        """Return the entity reached from `head` by one relation after another."""
        for relation in relations:
            head = self.tails[relation][head]
        return head

    def vocabulary(self) -> list[str]:
        """Return every word that the questions and answers use."""
        return ["the", "of", "'s", "is", *self.relations, *self.entities]

    def question(self, head: int, *relations: int, order: Order = "possessive") -> Problem:
        """Return a question about `head`; its response is the answer's name and nothing else.

        `Problem.facts` holds e1, r1, e2 (and r2, e3) by name, and "wrong": what the usual mistakes would say.

        Raises:
            BadInput: An unknown order, or not one or two relations.
        """
        if order not in get_args(Order):
            raise unknown_name("order", str(order), get_args(Order))
        if len(relations) not in (1, 2):
            raise BadInput(f"A question has one or two relations; got {len(relations)}.")
        names = [self.relations[r] for r in relations]
        answer = self.entities[self.tail(head, *relations)]
        slot = Slot(0, len(answer), FIRST_HOP if len(relations) == 1 else SECOND_HOP, len(relations) - 1, answer)
        prompt = _prompt(self.entities[head], names, order)
        task = "two-hop" if len(relations) == 2 else "one-hop"
        facts = {"order": order, "e1": self.entities[head], "r1": names[0], "e2": self._named(head, relations[0])}
        if len(relations) == 2:
            facts |= {"r2": names[1], "e3": answer, "r2(e1)": self._named(head, relations[1])}
        return Problem(task, len(relations), prompt, answer, answer, (slot,), facts=facts)

    def _named(self, head: int, relation: int) -> str:
        return self.entities[self.tail(head, relation)]


def _prompt(entity: str, relations: list[str], order: Order) -> str:
    if order == "bare":
        return " ".join([entity, *relations])
    if order == "possessive":
        return " ".join([entity, *(f"'s {relation}" for relation in relations), "is"])
    return " ".join([*(f"the {relation} of" for relation in reversed(relations)), entity, "is"])


@dataclass(frozen=True)
class Split:
    """The two-hop questions of a world, by what a training on `train` has seen of them.

    Attributes:
        train: What a training may see.
        held_out: New compositions of two facts that were each seen in their place.
        new_first: The first fact was never seen as a first hop.
        new_second: The second fact was never seen as a second hop.
        new_both: Neither was.
    """

    train: list[Composition]
    held_out: list[Composition]
    new_first: list[Composition]
    new_second: list[Composition]
    new_both: list[Composition]


def split(world: World, *, share: float = 0.2, share_new: float = 0.1, seed: int = 0) -> Split:
    """Return the compositions of a world in parts.

    Args:
        world: The world.
        share: Share of the compositions of known facts that is held out.
        share_new: Share of the facts that are never a first hop in training, and likewise never a second one.
        seed: Decides which.

    Raises:
        BadInput: A share outside of 0 to 1.
    """
    for name, value in (("share", share), ("share_new", share_new)):
        if not 0 <= value < 1:
            raise BadInput(f"{name} must be at least 0 and below 1; got {value}.")
    random = Random(f"{world.seed}/split/{seed}")
    n_new = round(share_new * len(world.facts))
    never_first, never_second = (set(random.sample(world.facts, n_new)) for _ in range(2))
    parts: dict[str, list[Composition]] = {name: [] for name in get_args(Part)}
    for c in world.compositions:
        is_new = (Fact(c.head, c.first) in never_first, Fact(world.tail(c.head, c.first), c.second) in never_second)
        known: Part = "held_out" if random.random() < share else "train"
        where: dict[tuple[bool, bool], Part] = {(True, True): "new_both", (True, False): "new_first"}
        parts[where.get(is_new, "new_second" if is_new[1] else known)].append(c)
    return Split(**parts)


def category(problem: Problem, answer: str) -> str:
    """Return what an answer to a two-hop question is: "e3" (right), "e2", "r2(e1)", "e1" or "unknown"."""
    return next((name for name in ("e3", "e2", "r2(e1)", "e1") if problem.facts.get(name) == answer), "unknown")


def questions(world: World, asked: Iterable[Composition | Fact], order: Order = "possessive") -> list[Problem]:
    """Return the question of each composition or fact."""
    return [world.question(c[0], *c[1:], order=order) for c in asked]
