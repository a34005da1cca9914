"""Responses with one thing wrong: the type, the slot and the place that are named."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainwright import tasks
from chainwright.tasks import Problem

CASES = [(name, rendering) for name in tasks.names() for rendering in ("short", "natural")]
OTHER = {
    "heads": "tails",
    "tails": "heads",
    "flips": "stays",
    "stays": "flips",
    "does not flip": "flips",
    "+": "-",
    "-": "+",
    "+ 1": "- 1",
    "- 1": "+ 1",
    "add": "subtract",
    "subtract": "add",
    "Add": "Subtract",
    "Subtract": "Add",
    "in": "out",
    "out": "in",
    "inside": "outside",
    "outside": "inside",
    "ones": "tens",
}


def corrupt(slot):
    """Return another value that could stand in the slot."""
    if slot.value in OTHER:
        return OTHER[slot.value]
    if slot.value.lstrip("-").isdigit():
        return str(int(slot.value) + 3)
    if slot.value.endswith("/"):
        return "./" if slot.value != "./" else "../"
    if slot.error_type == "digit":
        return "ones"
    if slot.error_type == "concatenation":
        return slot.value + (" q" if " " in slot.value or len(slot.value) == 1 else "q")
    if slot.error_type == "letter":
        return "q"
    return "zebra"


def problems(name, rendering, hops=(1, 2, 3, 6)):
    return [p for n in hops for p in tasks.sample(name, n, 2, seed=11, rendering=rendering)]


def write(lines):
    return "\n".join(line.text for line in lines)


def first_slot(problem, i):
    """Return the index of the first slot of a gold line."""
    return sum(len(line.slots) for line in problem.lines[:i])


def indices(problem, kind):
    return [i for i, line in enumerate(problem.lines) if line.kind.name == kind]


def by_hand(problem):
    return Problem(problem.task, problem.hops, problem.prompt, problem.chain, problem.answer, problem.slots)


@pytest.mark.parametrize(("name", "rendering"), CASES)
def test_right_response_covers_every_slot(name, rendering):
    for problem in problems(name, rendering):
        for reader in (problem, by_hand(problem)):
            assert reader.first_error(problem.chain) is None
            read = reader.read(problem.chain)
            assert [(s.slot, s.start, s.end, s.got) for s in read] == [
                (i, slot.start, slot.end, slot.value) for i, slot in enumerate(problem.slots)
            ]
            assert all(slot.is_right and slot.error_type is None for slot in read)


@pytest.mark.parametrize(("name", "rendering"), CASES)
def test_a_wrong_value_is_named_by_type_slot_and_place(name, rendering):
    for problem in problems(name, rendering):
        for i, slot in enumerate(problem.slots):
            if slot.error_type == "more hops":
                continue
            got = corrupt(slot)
            response = problem.chain[: slot.start] + got + problem.chain[slot.end :]
            error = problem.first_error(response)
            assert error is not None
            assert (error.error_type, error.slot, error.hop) == (slot.error_type, i, slot.hop), response
            assert (error.start, error.end) == (slot.start, slot.start + len(got))
            assert (error.expected, error.got) == (slot.value, got)
            assert len(problem.read(response)) == i + 1


@pytest.mark.parametrize("name", tasks.names())
def test_a_problem_made_by_hand_names_the_same_errors(name):
    for problem in problems(name, "short", hops=(2, 3)):
        for slot in problem.slots:
            if slot.error_type != "more hops":
                response = problem.chain[: slot.start] + corrupt(slot) + problem.chain[slot.end :]
                assert by_hand(problem).first_error(response) == problem.first_error(response)


@pytest.mark.parametrize(("name", "rendering"), CASES)
def test_ending_early_is_fewer_hops(name, rendering):
    for problem in problems(name, rendering, hops=(2, 5)):
        hops = indices(problem, "hop")
        for n_kept in range(len(hops)):
            lines = [line for i, line in enumerate(problem.lines) if i not in hops[n_kept:]]
            response = write(lines)
            error = problem.first_error(response)
            assert error is not None
            closing = write(lines[: hops[n_kept]])
            assert error.error_type == "fewer hops"
            assert error.slot == first_slot(problem, hops[n_kept])
            assert error.hop == problem.lines[hops[n_kept]].hop
            assert error.start == (len(closing) + 1 if closing else 0)
            assert error.got == response[error.start :].split()[0]


@pytest.mark.parametrize(("name", "rendering"), CASES)
def test_one_hop_more_is_more_hops(name, rendering):
    for problem in problems(name, rendering, hops=(2, 5)):
        for kind in ("hop", "sum"):
            for i in indices(problem, kind)[-1:]:
                lines = [*problem.lines[: i + 1], *problem.lines[i:]]
                error = problem.first_error(write(lines))
                assert error is not None
                assert (error.error_type, error.slot) == ("more hops", first_slot(problem, i + 1))
                assert error.start == len(write(problem.lines[: i + 1])) + 1


@pytest.mark.parametrize(("name", "rendering"), CASES)
def test_a_dropped_hop_is_a_recall_error_of_the_next_line(name, rendering):
    for problem in problems(name, rendering, hops=(3, 6)):
        hops = indices(problem, "hop")
        for i in hops[:-1]:
            due, got = problem.lines[i].slots, problem.lines[i + 1].slots
            if [part.pattern for part in due] != [part.pattern for part in got]:
                continue
            error = problem.first_error(write([*problem.lines[:i], *problem.lines[i + 1 :]]))
            n = next((n for n, part in enumerate(due) if part.value != got[n].value), None)
            if n is not None:
                assert error is not None
                assert (error.error_type, error.slot) == (due[n].error_type, first_slot(problem, i) + n)


def test_a_missing_addition_is_fewer_hops():
    problem = tasks.sample("mdm", 3, 1)[0]
    i = indices(problem, "sum")[-1]
    error = problem.first_error(write([*problem.lines[:i], *problem.lines[i + 1 :]]))
    assert error is not None
    assert (error.error_type, error.slot) == ("fewer hops", first_slot(problem, i))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda line: line.rpartition(" and ")[0], ("local result copy", "")),
        (lambda line: line + " and 17", ("local result copy", "972 and 17")),
    ],
)
def test_list_of_parts_of_the_wrong_length(change, expected):
    problem = next(p for p in tasks.sample("mdm", 2, 2000) if p.facts["a"] == 972)
    i = indices(problem, "parts")[0]
    lines = [line.text for line in problem.lines]
    lines[i] = change(lines[i])
    error = problem.first_error("\n".join(lines))
    assert error is not None
    assert error.error_type == expected[0]
    assert error.got.split(" and ")[1:] == expected[1].split(" and ")[1:]


def test_lines_whose_shape_depends_on_values():
    problem = next(p for p in tasks.sample("clf", 2, 500) if p.facts["operations"] == ["./", "src/"])
    assert problem.chain == "./ 0 = 0\nsrc/ 0 + 1 = 1\nend 1\nanswer 1"
    for response, error_type, got in [
        ("./ 0 + 1 = 1\n", "local calculation", "+"),
        ("./ 0 = 1\n", "local calculation", "1"),
        ("lib/ 0 + 1 = 1\n", "operation recall", "lib/"),
        ("./ 2 + 1 = 3\n", "depth copy", "2"),
        ("./ 0 = 0\nsrc/ 0 = 0\nend 0\n", "local calculation", "="),
        ("./ 0 = 0\nsrc/ 0 - 1 = 0\nend 0\n", "local calculation", "- 1"),
        ("./ 0 = 0\n../ 0 = 0\nend 0\n", "operation recall", "../"),
    ]:
        error = problem.first_error(response)
        assert error is not None
        assert (error.error_type, error.got) == (error_type, got)
        assert response[error.start : error.end] == got


@pytest.mark.parametrize(("name", "rendering"), CASES)
def test_a_response_that_breaks_off_is_unparsed(name, rendering):
    for problem in tasks.sample(name, 2, 2, seed=2, rendering=rendering):
        for cut in range(problem.slots[-1].start):
            error = problem.first_error(problem.chain[:cut])
            assert error is not None
            assert error.error_type == "unparsed", problem.chain[:cut]
            assert error.slot is not None
            assert problem.slots[error.slot].end >= error.start
            assert all(slot.is_right for slot in problem.read(problem.chain[:cut]))


def test_an_error_in_a_line_that_breaks_off_is_still_seen():
    problem = tasks.sample("parity", 3, 1, seed=1)[0]
    error = problem.first_error("start heads\nzoe flips")
    assert error is not None
    assert (error.error_type, error.got, error.slot) == ("name recall", "zoe", 1)
    for response in ("start heads\nzoe", "start heads\nzoe %% flips", "start heads\nhugo st"):
        error = problem.first_error(response)
        assert error is not None
        assert error.error_type == "unparsed"


def test_a_strange_line_ends_the_reading():
    problem = tasks.sample("parity", 3, 1, seed=1)[0]
    error = problem.first_error("start heads\nlet me think about that\n" + problem.chain)
    assert error is not None
    assert (error.error_type, error.slot, error.start) == ("unparsed", 1, 12)
    assert problem.first_error("start heads\nstart heads\n" + problem.chain).error_type == "unparsed"


@pytest.mark.parametrize(("name", "rendering"), CASES)
def test_kinds_of_lines_are_not_mistaken_for_each_other(name, rendering):
    from chainwright.tasks._reader import Row, scan

    for problem in problems(name, rendering):
        for line in problem.lines:
            row = Row(0, len(line.text))
            fitting = [s for s in problem.shapes if scan(s, line.text, row).fits(line.text, row, s)]
            assert {shape.kind for shape in fitting} == {line.kind}


LINES = [line for name, rendering in CASES for line in problems(name, rendering, (2,))[0].chain.split("\n")]
POOL = [problem for name, rendering in CASES for problem in problems(name, rendering, (2,))[:1]]


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(st.characters(exclude_characters="aeiouAEIOU"), max_size=80),
    i=st.integers(0, len(POOL) - 1),
)
def test_any_text_without_a_word_of_the_tasks_is_unparsed(text, i):
    problem = POOL[i]
    error = problem.first_error(text)
    assert error is not None
    assert error.error_type == "unparsed"
    assert 0 <= error.start == error.end <= len(text)
    assert problem.check(text) in (True, False)


@settings(max_examples=250, deadline=None)
@given(
    rows=st.lists(st.one_of(st.sampled_from(LINES), st.text(max_size=12)), max_size=8),
    i=st.integers(0, len(POOL) - 1),
    cut=st.integers(0, 12),
)
def test_any_mix_of_lines_gives_a_type_of_the_task(rows, i, cut):
    problem = POOL[i]
    text = "\n".join(rows)
    text = text[: len(text) - cut]
    error = problem.first_error(text)
    if error is not None:
        assert error.error_type in (*tasks.error_types(problem.task), "unparsed")
        assert text[error.start : error.end] == error.got
    for n, slot in enumerate(problem.read(text)):
        assert slot.slot == n
        assert text[slot.start : slot.end] == slot.got
        assert slot.is_right == (slot.error_type is None)


def test_long_strange_text_is_read_in_no_time():
    problem = POOL[0]
    for text in (
        " " * 50_000,
        "*" * 50_000 + "x",
        "1" * 50_000,
        "1,111" * 9_000,
        "the " * 20_000,
        "- " * 30_000,
    ):
        assert problem.first_error(text).error_type == "unparsed"
        assert not problem.check(text)
        assert not tasks.sample("mdm", 2, 1)[0].check("answer " + text + "x")


def test_read_slots_of_a_problem_without_shapes():
    problem = replace(POOL[0], shapes=())
    assert problem.first_error(problem.chain) is None
