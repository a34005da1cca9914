r"""The kinds of problem sets: how each is known by its fields, and how a record becomes a question with its answer.

    gsm8k        question and an answer that is a chain ending in "#### 42"; its calculator marks <<...>> are taken out
    math         problem and solution with its answer in \boxed{}, or an answer of its own
    aime         problem and an answer that is a whole number
    gpqa         Question, Correct Answer, Incorrect Answer 1-3; always shuffled, since the first is right
    svamp        Body, Question, Answer
    multiarith   sQuestion, lSolutions
    aqua         question, options with letters, rationale, correct
    choice       question, options (a list, a table or one field each), and the right one by letter, number or text
    bbh          input, target; options are read from the input
    qa           any question and answer; a worked solution comes along

Field names are compared without case. `fields` names those that a file calls otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from chainwright.checkers.places import boxed_texts
from chainwright.tasks.problem_sets import values
from chainwright.tasks.problem_sets.records import Fields
from chainwright.tasks.problem_sets.values import LETTERS, BadField

ROLES = ("question", "answer", "choices", "chain", "id")
_NAMES: Mapping[str, tuple[str, ...]] = {
    "question": (
        "question",
        "problem",
        "prompt",
        "query",
        "squestion",
        "question_text",
        "problem_text",
        "question_stem",
        "instruction",
        "input",
        "task",
    ),
    "answer": (
        "answer",
        "final_answer",
        "finalanswer",
        "ground_truth",
        "expected_answer",
        "correct_answer",
        "correct answer",
        "reference_answer",
        "gold_answer",
        "gold",
        "target",
        "expected",
        "answers",
        "reference",
        "reward_model.ground_truth",
        "answerkey",
        "answer_key",
        "correct",
        "correct_option",
        "answer_letter",
        "answer_idx",
        "answer_index",
        "cop",
        "label",
        "output",
    ),
    "choices": ("choices", "options", "candidates", "alternatives", "endings"),
    "chain": (
        "solution",
        "rationale",
        "chain",
        "cot",
        "explanation",
        "reasoning",
        "worked_solution",
        "chain_of_thought",
    ),
    "id": (
        "id",
        "unique_id",
        "question_id",
        "problem_id",
        "task_id",
        "record id",
        "qid",
        "uid",
        "uuid",
        "idx",
        "index",
        "iindex",
    ),
}
_OPTION_FIELDS = (
    ("a", "b", "c", "d", "e", "f"),
    ("opa", "opb", "opc", "opd"),
    ("option_a", "option_b", "option_c", "option_d", "option_e"),
    ("choice_a", "choice_b", "choice_c", "choice_d", "choice_e"),
    ("answera", "answerb", "answerc", "answerd"),
    ("option1", "option2", "option3", "option4", "option5"),
    ("choice1", "choice2", "choice3", "choice4"),
)
_INDEX_FIRST = ("answer_index", "answer_idx", "answerkey", "answer_letter")
_MARKS = re.compile(r"<<[^<>\n]*>>")
_FINAL = re.compile(r"^[ \t]*(?:####|A:)[ \t]*(?P<answer>\S[^\n]*)\s*\Z", re.MULTILINE)
_CLAUSE = re.compile(r"(?:^|[.!?]\s+)(?:If|When|After|Before|Since|Given|While)\b[^.!?,]*$")
_BBH_OPTION = re.compile(r"^[ \t]*\(([A-Z])\)[ \t]*(.+?)[ \t]*$", re.MULTILINE)


class Draft(NamedTuple):
    """What a record says, before it becomes a problem.

    Attributes:
        question: The question without its options.
        answer: The right answer; with choices, the index of the right one.
        choices: The options; empty for an open question.
        chain: The worked solution, or "".
        used: Names of the fields that were read.
        is_lettered: Whether the question names its options itself, so that they are neither added nor shuffled.
        must_shuffle: Whether the right option would always be at the same place.
        has_answer: Whether the worked solution is known to end in its answer.
    """

    question: str
    answer: str | int
    used: tuple[str, ...]
    choices: tuple[str, ...] = ()
    chain: str = ""
    is_lettered: bool = False
    must_shuffle: bool = False
    has_answer: bool = False


class Names:
    """The names that the fields of a set have, by role."""

    def __init__(self, names: Sequence[str], chosen: Mapping[str, str] | None = None):
        self.by_lower: dict[str, str] = {}
        for name in names:
            self.by_lower.setdefault(name.lower(), name)
        self.chosen = dict(chosen or {})

    def has(self, *names: str) -> bool:
        """Return whether all these fields are there, whatever their case."""
        return all(name in self.by_lower for name in names)

    def own(self, name: str) -> str:
        """Return a field's name as the records write it."""
        return self.by_lower.get(name, name)

    def of(self, role: str, *before: str) -> str | None:
        """Return the field of a role: the one that was chosen, or the first usual one that is there."""
        if role in self.chosen:
            return self.chosen[role]
        known = next((name for name in (*before, *_NAMES[role]) if name.partition(".")[0] in self.by_lower), None)
        if known is None:
            return None
        first, dot, rest = known.partition(".")
        return self.own(first) + dot + rest

    def options(self) -> tuple[str, ...]:
        """Return the fields that hold one option each."""
        for family in _OPTION_FIELDS:
            there = [name for name in family if name in self.by_lower]
            if len(there) > 1 and there == list(family[: len(there)]):
                return tuple(map(self.own, there))
        return ()


class Kind(NamedTuple):
    """A kind of problem sets.

    Attributes:
        name: Its name.
        fits: Whether records with these names and first examples are of it.
        read: Makes a draft of a record; raises `BadField`.
        checker: The checker of its answers; None where that depends on the answers.
    """

    name: str
    fits: Callable[[Names, Sequence[Fields]], bool]
    read: Callable[[Names, Fields], Draft]
    checker: str | None


def _required(names: Names, role: str, *before: str) -> str:
    name = names.of(role, *before)
    if name is None:
        known = ", ".join(names.by_lower.values())
        raise BadField(f"has no field for the {role} (it has {known}); name it with fields={{{role!r}: ...}} (--field)")
    return name


def _question(names: Names, fields: Fields, *before: str) -> tuple[str, str]:
    name = _required(names, "question", *before)
    question = values.as_question(values.field(fields, name), name)
    more = names.own("input")
    if name.lower() == "instruction" and values.has(fields, more):  # the two parts of instruction data
        question += "\n" + values.as_question(values.field(fields, more), more)
    return question, name


def _chain(names: Names, fields: Fields, *taken: str) -> tuple[str, tuple[str, ...]]:
    """Return the worked solution, if there is one, and the field that it is in."""
    name = names.of("chain")
    if name is None or name in taken or not values.has(fields, name):
        return "", ()
    value = values.field(fields, name)
    if not isinstance(value, str):
        if "chain" in names.chosen:
            raise BadField(f"the field {name!r} is no text")
        return "", ()
    return value.replace("\r\n", "\n").strip(), (name,)


def _ends_in_answer(value: Any) -> bool:
    return isinstance(value, str) and "\n" in value.strip() and _FINAL.search(value) is not None


def _is_gsm8k(names: Names, first: Sequence[Fields]) -> bool:
    answer = names.of("answer")
    if names.of("question") is None or answer is None:
        return False
    texts = [each[answer] for each in first if isinstance(each.get(answer), str)]
    return sum("####" in text or _ends_in_answer(text) for text in texts) * 2 > len(first)


def _gsm8k(names: Names, fields: Fields) -> Draft:
    question, q = _question(names, fields)
    a = _required(names, "answer")
    value = values.field(fields, a)
    text = value.replace("\r\n", "\n").strip() if isinstance(value, str) else ""
    final = _FINAL.search(text)
    if final is None:
        raise BadField(f"the field {a!r} does not end in '#### ' and an answer")
    answer = final["answer"].strip()
    answer = answer.replace(",", "") if re.fullmatch(r"[-+]?[$]?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?", answer) else answer
    return Draft(question, answer, (q, a), chain=_MARKS.sub("", text), has_answer=True)


def _is_math(names: Names, first: Sequence[Fields]) -> bool:
    chain = names.of("chain")
    if names.of("question") is None or (chain is None and not names.has("problem", "answer")):
        return False
    if names.has("problem", "answer"):
        texts = [str(each.get(names.own("answer"))) for each in first]
        return any(map(names.has, ("solution", "level", "subject"))) or any(
            re.search(r"[\\$^]", text) for text in texts
        )
    return sum("boxed" in str(each.get(chain or "")) for each in first) * 2 > len(first)


def _math(names: Names, fields: Fields) -> Draft:
    question, q = _question(names, fields, "problem")
    chain, used = _chain(names, fields)
    a = names.of("answer")
    if a is not None and a not in used and values.has(fields, a):
        return Draft(question, values.as_answer(values.field(fields, a), a), (q, a, *used), chain=chain)
    if not chain:
        values.field(fields, _required(names, "chain"))  # names what is missing
    boxes = boxed_texts(chain)
    if not boxes:
        raise BadField(f"the field {used[0]!r} has no answer in \\boxed{{}}")
    return Draft(question, boxes[-1].strip(), (q, *used), chain=chain)


def _is_aime(names: Names, first: Sequence[Fields]) -> bool:
    if not names.has("problem", "answer") or names.has("level") or names.has("subject"):
        return False
    return all(re.fullmatch(r"\s*[0-9]{1,3}(\.0)?\s*", str(each.get(names.own("answer")))) for each in first)


def _aime(names: Names, fields: Fields) -> Draft:
    return _math(names, fields)


def _is_gpqa(names: Names, first: Sequence[Fields]) -> bool:
    return names.has("question", "correct answer", "incorrect answer 1")


def _gpqa(names: Names, fields: Fields) -> Draft:
    question, q = _question(names, fields, "question")
    options = [names.own("correct answer"), *(names.own(f"incorrect answer {i}") for i in (1, 2, 3))]
    texts = tuple(values.as_answer(values.field(fields, name), name) for name in options)
    name = names.own("explanation")
    chain = str(fields[name]).strip() if isinstance(fields.get(name), str) else ""
    return Draft(question, 0, (q, *options, name), choices=texts, chain=chain, must_shuffle=True)


def _is_svamp(names: Names, first: Sequence[Fields]) -> bool:
    return names.has("body", "question", "answer")


def _svamp(names: Names, fields: Fields) -> Draft:
    question, q = _question(names, fields, "question")
    body, a = names.own("body"), _required(names, "answer", "answer")
    start = values.as_question(values.field(fields, body), body)
    if _CLAUSE.search(start):  # "If each costs 3 dollars" ends no sentence
        start, question = start + ",", question[:1].lower() + question[1:]
    elif not start.endswith((".", "!", "?", ",")):
        start += "."
    return Draft(f"{start} {question}", values.as_answer(values.field(fields, a), a), (q, body, a))


def _is_multiarith(names: Names, first: Sequence[Fields]) -> bool:
    return names.has("squestion", "lsolutions")


def _multiarith(names: Names, fields: Fields) -> Draft:
    question, q = _question(names, fields, "squestion")
    a = _required(names, "answer", "lsolutions")
    return Draft(question, values.as_answer(values.field(fields, a), a), (q, a))


def _is_aqua(names: Names, first: Sequence[Fields]) -> bool:
    return names.has("question", "options", "correct")


def _is_choice(names: Names, first: Sequence[Fields]) -> bool:
    has_options = names.of("choices") is not None or bool(names.options())
    return names.of("question") is not None and names.of("answer", *_INDEX_FIRST) is not None and has_options


def _choice(names: Names, fields: Fields) -> Draft:
    question, q = _question(names, fields)
    a = _required(names, "answer", *_INDEX_FIRST)
    several = names.of("choices")
    if several is not None:
        choices, known_as = values.as_choices(values.field(fields, several), several)
        used: tuple[str, ...] = (several,)
    else:
        used = tuple(name for name in names.options() if values.has(fields, name))
        choices, known_as = values.as_choices([fields[name] for name in used], " ".join(names.options()))
    index = _right(values.field(fields, a), choices, known_as, used, a)
    chain, more = _chain(names, fields, q, a, *used)
    other = tuple(name for name in (names.of("answer"), names.of("answer", "answer_index")) if name)
    return Draft(question, index, (q, a, *used, *more, *other), choices=choices, chain=chain)


def _right(answer: Any, choices: Sequence[str], known_as: Sequence[str], used: Sequence[str], name: str) -> int:
    """Return the index of the right option; fields with one option each may be counted from 1, as they are named."""
    ends = [re.sub(r".*?([0-9]+|[a-z])$", r"\1", each.lower()) for each in used]
    is_named = len(used) == len(choices) and not isinstance(answer, (int, float))
    if is_named and str(answer).strip().lower() in ends and len(set(ends)) == len(ends):
        return ends.index(str(answer).strip().lower())
    return values.as_index(answer, choices, known_as, name)


def _is_bbh(names: Names, first: Sequence[Fields]) -> bool:
    return names.has("input", "target")


def _bbh(names: Names, fields: Fields) -> Draft:
    question, q = _question(names, fields, "input")
    a = _required(names, "answer", "target")
    answer = values.as_answer(values.field(fields, a), a)
    letter = re.fullmatch(r"\(?([A-Z])\)?", answer)
    options = _BBH_OPTION.findall(question)
    if letter is None or [option[0] for option in options] != list(LETTERS[: len(options)]) or not options:
        return Draft(question, answer, (q, a))
    index = LETTERS.index(letter[1])
    if index >= len(options):
        raise BadField(f"the field {a!r} is {answer!r}, and the question has {len(options)} options")
    return Draft(question, index, (q, a), choices=tuple(option[1] for option in options), is_lettered=True)


def _is_qa(names: Names, first: Sequence[Fields]) -> bool:
    return names.of("question") is not None and names.of("answer") is not None


def _qa(names: Names, fields: Fields) -> Draft:
    question, q = _question(names, fields)
    a = _required(names, "answer")
    chain, more = _chain(names, fields, q, a)
    more += (names.own("input"),) if q.lower() == "instruction" else ()
    return Draft(question, values.as_answer(values.field(fields, a), a), (q, a, *more), chain=chain)


KINDS = {
    kind.name: kind
    for kind in (
        Kind("gpqa", _is_gpqa, _gpqa, "choice"),
        Kind("svamp", _is_svamp, _svamp, "number"),
        Kind("multiarith", _is_multiarith, _multiarith, "number"),
        Kind("aqua", _is_aqua, _choice, "choice"),
        Kind("choice", _is_choice, _choice, "choice"),
        Kind("aime", _is_aime, _aime, "number"),
        Kind("math", _is_math, _math, "math"),
        Kind("gsm8k", _is_gsm8k, _gsm8k, "number"),
        Kind("bbh", _is_bbh, _bbh, None),
        Kind("qa", _is_qa, _qa, None),
    )
}
"""All kinds; those that are known by more particular fields come first."""
