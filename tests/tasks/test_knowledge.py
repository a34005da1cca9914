"""The made-up world, arithmetic without a chain, and question files."""

from __future__ import annotations

import json

import pytest

from chainwright import BadInput, tasks
from chainwright.tasks.arithmetic import composite_problems, two_digit_problems
from chainwright.tasks.knowledge import Composition, Fact, World, category, questions, split
from chainwright.tasks.readers import read_problems


def test_a_world_is_the_same_for_the_same_seed_and_answers_are_balanced():
    world = World(20, 4, seed=3)
    assert world.tails == World(20, 4, seed=3).tails != World(20, 4, seed=4).tails
    assert len(set(world.entities)) == 20
    for tails in world.tails:
        assert sorted(tails) == list(range(20)), "each entity is an answer once"
        assert all(tails[e] != e for e in range(20))


def test_questions_in_three_orders():
    world = World(20, 4)
    e1, r1, r2 = world.entities[5], world.relations[1], world.relations[2]
    assert world.question(5, 1, 2, order="bare").prompt == f"{e1} {r1} {r2}"
    assert world.question(5, 1, 2).prompt == f"{e1} 's {r1} 's {r2} is"
    problem = world.question(5, 1, 2, order="nested")
    assert problem.prompt == f"the {r2} of the {r1} of {e1} is"
    assert problem.answer == world.entities[world.tails[2][world.tails[1][5]]]
    assert problem.facts["e2"] == world.entities[world.tails[1][5]]
    assert problem.facts["r2(e1)"] == world.entities[world.tails[2][5]]
    assert problem.check(problem.answer) and not problem.check("nobody")
    assert problem.first_error(problem.facts["e2"] + "x").error_type in ("second hop", "unparsed")
    assert world.question(5, 1, order="bare").prompt == f"{e1} {r1}"


def test_categories_name_the_usual_mistakes():
    problem = World(50, 4).question(5, 1, 2)
    for name in ("e3", "e2", "r2(e1)", "e1"):
        first = next(n for n in ("e3", "e2", "r2(e1)", "e1") if problem.facts[n] == problem.facts[name])
        assert category(problem, problem.facts[name]) == first
    assert category(problem, "somebody") == "unknown"


def test_a_split_keeps_what_it_promises():
    world = World(40, 5)
    parts = split(world, share=0.2, share_new=0.1)
    everything = [*parts.train, *parts.held_out, *parts.new_first, *parts.new_second, *parts.new_both]
    assert sorted(everything) == sorted(world.compositions) and len(set(everything)) == len(everything)
    first = {Fact(c.head, c.first) for c in parts.train}
    second = {Fact(world.tail(c.head, c.first), c.second) for c in parts.train}
    assert all(Fact(c.head, c.first) not in first for c in parts.new_first)
    assert all(Fact(world.tail(c.head, c.first), c.second) not in second for c in parts.new_second)
    assert parts.held_out and not set(parts.held_out) & set(parts.train)
    assert parts.train == split(world, share=0.2, share_new=0.1).train


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(BadInput, match="n_entities must be a whole number from 2 to 4900"):
        World(n_entities=1)
    with pytest.raises(BadInput, match="Unknown order 'backwards'"):
        World().question(0, 1, order="backwards")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="one or two relations"):
        World().question(0, 1, 2, 3)
    with pytest.raises(BadInput, match="share_new must be"):
        split(World(10, 2), share_new=1.0)


def test_compositions_and_facts_become_questions():
    world = World(10, 3)
    asked = questions(world, [Composition(1, 0, 2), Fact(1, 0)], "bare")
    assert [p.hops for p in asked] == [2, 1]


def test_arithmetic_is_right():
    problems = two_digit_problems()
    assert len(problems) == 16_200
    assert (problems[1].prompt, problems[1].answer) == ("10 - 10 =", "0")
    for problem in problems[::997] + composite_problems(50, n_operands=4, seed=1):
        expression = problem.prompt.removesuffix("=")
        assert eval(expression) == int(problem.answer.replace(" ", ""))
    assert composite_problems(3, seed=2) == composite_problems(5, seed=2)[:3]
    with pytest.raises(BadInput, match="at least 2 operands"):
        composite_problems(3, n_operands=1)


def test_the_seven_tasks_stay_as_they_are():
    assert tasks.names() == ["parity", "mdm", "llc", "clf", "moas", "nums", "objc"]


def test_files_of_three_kinds_are_read(tmp_path):
    two = tmp_path / "two.csv"
    two.write_text(
        '"e1.value","e2.value","e3.value","r2(r1(e1)).prompt"\nAda,Ben,Cleo,"The wife of the son of Ada is"\n'
    )
    (problem,) = read_problems(two, "two-hop")
    assert (problem.answer, problem.facts["e2"], problem.hops) == ("Cleo", "Ben", 2)
    svamp = tmp_path / "svamp.json"
    svamp.write_text(json.dumps([{"Body": "Ann has 3 pens", "Question": "How many?", "Answer": 3.0, "Equation": "3"}]))
    (problem,) = read_problems(svamp, "svamp")
    assert (problem.prompt, problem.answer) == ("Ann has 3 pens. How many?", "3")
    multi = tmp_path / "multi.jsonl"
    multi.write_text(json.dumps({"sQuestion": " What is it? ", "lSolutions": [12.5]}) + "\n")
    (problem,) = read_problems(multi, "multiarith")
    assert (problem.prompt, problem.answer) == ("What is it?", "12.5")


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(BadInput, match="There is no file"):
        read_problems(tmp_path / "no.json", "svamp")
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    with pytest.raises(BadInput, match="cannot be read as json"):
        read_problems(bad, "svamp")
    bad.write_text(json.dumps([{"Body": "x", "Question": "y"}]))
    with pytest.raises(BadInput, match=r"Record 0 .* has no Answer or answer"):
        read_problems(bad, "svamp")
    bad.write_text(json.dumps([{"Body": "x", "Question": "y", "Answer": "many"}]))
    with pytest.raises(BadInput, match="must be a number"):
        read_problems(bad, "svamp")
    bad.write_text("[]")
    with pytest.raises(BadInput, match="holds no records"):
        read_problems(bad, "svamp")
    with pytest.raises(BadInput, match="Unknown kind of file 'gsm'"):
        read_problems(bad, "gsm")


@pytest.mark.parametrize(
    ("name", "text", "kind", "message"),
    [
        ("a.csv", "", "two-hop", "holds no records"),
        ("a.csv", "e1,e2,e3\nAda,Ben,Cleo\n", "two-hop", r"Record 0 .* has no r2\(r1\(e1\)\)\.prompt or .* it has: e1"),
        ("a.csv", "e1,e2,e3,prompt\nAda,Ben\n", "two-hop", "Record 0 .* has no e3"),
        ("a.json", "", "svamp", "cannot be read as json"),
        ("a.json", '{"Body": "x"', "svamp", "cannot be read as json"),
        ("a.json", '{"Body": "x"}', "svamp", "must hold a list of records; got dict"),
        ("a.json", '["x", "y"]', "svamp", "must hold a list of records"),
        ("a.jsonl", '{"sQuestion": "x", "lSolutions": [1]}\n{broken\n', "multiarith", "Line 2 of .* cannot be read"),
        ("a.jsonl", '{"sQuestion": "x", "lSolutions": []}\n', "multiarith", "has no answer to its question"),
        ("a.json", '[{"question": "x", "final_ans": "1 or 2"}]', "multiarith", "must be a number; got '1 or 2'"),
        ("a.txt", "x", "svamp", "none of .json, .jsonl and .csv"),
    ],
    ids=[
        "empty csv", "no prompt column", "short row", "empty json", "half json", "one record", "no records",
        "broken line", "no solution", "two answers", "other kind",
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said(tmp_path, name, text, kind, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(BadInput, match=message):
        read_problems(path, kind)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(BadInput, match="is not UTF-8 text"):
        read_problems(path, "svamp")
