import json
import pickle

import pytest

from chainwright import tasks
from chainwright._errors import BadInput

RENDERINGS = ("short", "natural")
FIRST_LINES = {
    "parity": "parity start heads . hugo stays . paul flips . gina stays ?",
    "mdm": "mdm 972 * 535 ?",
    "llc": "llc rock cloud echo ?",
    "clf": "clf ./ build/ tests/ ?",
    "moas": "moas start 57 . add 10 . add 9 . add 10 ?",
    "nums": "nums time 40 . start 1 . 19 to 31 . 27 to 60 . 48 to 99 ?",
    "objc": "objc start 3 . jack makes 2 socks . liam buys 1 apples . vera gets 6 bells ?",
}


def test_names_and_titles_in_the_order_of_the_paper():
    assert tasks.names() == ["parity", "mdm", "llc", "clf", "moas", "nums", "objc"]
    titles = [tasks.title(name) for name in tasks.names()]
    assert titles == ["Parity-NL", "MDM", "LLC", "CLF", "MOAS", "NumS", "ObjC"]
    assert tasks.sample("PARITY-nl", 2, 1)[0].task == "parity"


@pytest.mark.parametrize("name", tasks.names())
def test_bytes_of_a_seed_never_change(name):
    assert tasks.sample(name, 3, 1, seed=1)[0].prompt == FIRST_LINES[name] + "\n"


@pytest.mark.parametrize("rendering", RENDERINGS)
@pytest.mark.parametrize("name", tasks.names())
def test_a_problem_depends_on_its_index_and_not_on_their_number(name, rendering):
    ten = tasks.sample(name, 4, 10, seed=3, rendering=rendering)
    assert tasks.sample(name, 4, 5, seed=3, rendering=rendering) == ten[:5]
    assert tasks.sample(name, 4, 5, seed=4, rendering=rendering) != ten[:5]
    assert len({problem.prompt for problem in ten}) == 10
    assert len({hash(problem) for problem in ten}) == 10


@pytest.mark.parametrize("name", ["parity", "mdm", "llc", "clf", "nums"])
def test_facts_do_not_depend_on_the_rendering(name):
    short, natural = (tasks.sample(name, 4, 3, rendering=rendering) for rendering in RENDERINGS)
    assert [problem.facts for problem in short] == [problem.facts for problem in natural]


@pytest.mark.parametrize("rendering", RENDERINGS)
@pytest.mark.parametrize("name", tasks.names())
@pytest.mark.parametrize("hops", [1, 2, 7, 12])
def test_slots_lie_in_the_chain_and_have_types_of_the_task(name, rendering, hops):
    for problem in tasks.sample(name, hops, 5, rendering=rendering):
        ends = [0] + [slot.end for slot in problem.slots]
        for slot, end_before in zip(problem.slots, ends, strict=False):
            assert slot.start >= end_before
            assert problem.chain[slot.start : slot.end] == slot.value
            assert slot.error_type in tasks.error_types(name)
            assert 0 <= slot.hop <= hops
        assert problem.slots[-1].value == problem.answer
        assert not problem.chain.endswith("\n")
        assert problem.prompt.endswith("\n")


@pytest.mark.parametrize("name", tasks.names())
def test_every_error_type_of_a_task_can_occur(name):
    problem = tasks.sample(name, 10, 1)[0]
    seen = {slot.error_type for p in tasks.sample(name, 10, 20) for slot in p.slots} | {"fewer hops"}
    assert seen == set(tasks.error_types(name))
    assert problem.hops == 10


@pytest.mark.parametrize("name", ["parity", "llc", "clf", "moas", "nums", "objc"])
@pytest.mark.parametrize("rendering", RENDERINGS)
def test_fifty_hops(name, rendering):
    problem = tasks.sample(name, 50, 1, rendering=rendering)[0]
    assert max(slot.hop for slot in problem.slots) == 50
    assert problem.first_error(problem.chain) is None


def test_ranges_of_the_short_rendering():
    for hops in (1, 20, 90):
        for problem in tasks.sample("moas", hops, 20) + tasks.sample("objc", hops, 20):
            totals = [int(slot.value) for slot in problem.slots if slot.error_type == "local calculation"]
            assert all(0 <= total <= 99 for total in totals)
    depths = [int(p.answer) for p in tasks.sample("clf", 300, 5)]
    assert all(0 <= depth <= 20 for depth in depths)


def test_about_half_of_the_intervals_contain_the_time():
    verdicts = [
        slot.value
        for problem in tasks.sample("nums", 20, 50)
        for slot in problem.slots
        if slot.error_type == "condition judgement"
    ]
    assert 0.4 < verdicts.count("in") / len(verdicts) < 0.6


def test_natural_prompt_holds_worked_examples_with_fewer_hops():
    for n in (0, 1, 3):
        prompt = tasks.sample("parity", 8, 1, rendering="natural", n_demonstrations=n)[0].prompt
        assert prompt.count("Worked example:") == n
        assert prompt.count("Solution:") == n + 1
        assert "5. " not in prompt
    assert "Worked example" not in tasks.sample("parity", 8, 1, n_demonstrations=2)[0].prompt


@pytest.mark.parametrize("rendering", RENDERINGS)
@pytest.mark.parametrize("name", tasks.names())
def test_record_survives_json(name, rendering):
    for problem in tasks.sample(name, 5, 3, rendering=rendering):
        record = json.loads(json.dumps(problem.to_record()))
        again = tasks.from_record(record)
        assert again == problem == pickle.loads(pickle.dumps(problem))
        assert again.first_error(problem.chain) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 3}, "schema version 3, and this Chainwright reads up to 2"),
        ({"task": "sudoku"}, "Unknown task 'sudoku'; known: parity, mdm"),
        ({"rendering": "long"}, "Unknown rendering 'long'; known: short, natural"),
        ({"chain": "start heads"}, "not the one that its facts lead to"),
        ({"facts": {}}, "facts of this parity record cannot be written down"),
        ({"hops": 0}, "hops must be an integer of 1 or more, got 0"),
    ],
)
def test_record_that_cannot_be_used(change, message):
    record = tasks.sample("parity", 3, 1)[0].to_record() | change
    with pytest.raises(BadInput, match=message):
        tasks.from_record(record)


def test_record_without_a_field():
    record = tasks.sample("parity", 3, 1)[0].to_record()
    del record["facts"]
    with pytest.raises(BadInput, match=r"lacks facts; write it with Problem.to_record\(\)"):
        tasks.from_record(record)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("partiy", 3, 1), "Unknown task 'partiy'; .* Did you mean 'parity'"),
        ((7, 3, 1), "named by a string, got 7"),
        (("parity", 0, 1), "hops must be an integer of 1 or more, got 0: in parity a hop is one person"),
        (("parity", 2.0, 1), "hops must be an integer of 1 or more, got 2.0"),
        (("parity", True, 1), "hops must be an integer"),
        (("mdm", 13, 1), "from 1 to 12, got 13: in mdm a hop is one digit of the multiplier"),
        (("parity", 3, -1), "n must be an integer of 0 or more, got -1"),
        (("parity", 3, 1, "x"), "seed must be an integer, got 'x'"),
    ],
)
def test_bad_input_says_what_is_allowed(arguments, message):
    with pytest.raises(BadInput, match=message):
        tasks.sample(*arguments)


def test_bad_rendering_and_number_of_demonstrations():
    with pytest.raises(BadInput, match=r"Unknown rendering 'naturel'.*Did you mean 'natural'"):
        tasks.sample("parity", 3, 1, rendering="naturel")
    with pytest.raises(BadInput, match="n_demonstrations must be an integer of 0 or more, got -2"):
        tasks.sample("parity", 3, 1, rendering="natural", n_demonstrations=-2)
    assert tasks.sample("parity", 3, 0) == []


def test_worked_example_shows_every_form_of_a_line():
    for name, forms in {
        "clf": ["+ 1", "- 1", "no change"],
        "nums": ["inside", "outside"],
        "parity": ["flips", "does not flip"],
        "moas": ["Add", "Subtract"],
    }.items():
        for problem in tasks.sample(name, 20, 5, rendering="natural"):
            example = problem.prompt.split("Solution:")[1]
            assert all(form in example for form in forms), example
