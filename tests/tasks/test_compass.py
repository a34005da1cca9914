"""The compass task: its chain follows the table, only the short rendering exists, and it is none of the seven."""

import pytest

from chainwright import tasks
from chainwright._errors import BadInput
from chainwright.tasks import compass
from chainwright.tasks.cells import choose_cells


@pytest.mark.parametrize("hops", [1, 7, 40, 60])
def test_every_direction_follows_from_the_question(hops: int) -> None:
    for problem in tasks.sample("compass", hops, 5, seed=3):
        words = problem.prompt.split()
        turns = dict(zip(words[1:21:2], words[2:21:2], strict=True))
        first, last, now, asked = int(words[22]), int(words[24]), words[26], words[28]
        lines = [line.split() for line in problem.chain.split("\n")]
        assert [int(minute) for minute, _ in lines[:-2]] == list(range(first, last + 1)) and last - first + 1 == hops
        for minute, direction in lines[:-2]:
            quarter = compass.DIRECTIONS.index(now) + compass.TURNS.index(turns[minute[-1]])
            now = compass.DIRECTIONS[quarter % 4]
            assert direction == now
        assert lines[-2:] == [["end"], ["answer", lines[0 if asked == "first" else -3][1]]]
        assert problem.check(problem.chain) and problem.first_error(problem.chain) is None
        assert tasks.from_record(problem.to_record()) == problem


def test_errors_have_their_names() -> None:
    problem = tasks.sample("compass", 6, 1, seed=3)[0]
    lines = problem.chain.split("\n")
    minute, direction = lines[2].split()
    other = next(name for name in compass.DIRECTIONS if name != direction)
    wrong = {
        "turn": [*lines[:2], f"{minute} {other}", *lines[3:]],
        "minute copy": [*lines[:2], f"59 {direction}", *lines[3:]],
        "fewer hops": [*lines[:4], *lines[6:]],
        "more hops": [*lines[:6], f"{int(lines[5][:2]) + 1:02d} north", *lines[6:]],
        "answer copy": [*lines[:-1], "answer " + next(n for n in compass.DIRECTIONS if n != problem.answer)],
    }
    assert {name: problem.first_error("\n".join(text)).error_type for name, text in wrong.items()} == {
        name: name for name in wrong
    }


def test_it_is_known_but_none_of_the_seven() -> None:
    assert "compass" not in tasks.names() and "compass" in tasks.known()
    assert tasks.known()[:7] == tasks.names()
    assert choose_cells("compass", None, "short") == {"compass": (8, 16, 24, 32)}
    with pytest.raises(BadInput, match="has the short rendering alone"):
        tasks.sample("compass", 4, 1, rendering="natural")
    with pytest.raises(BadInput, match="an integer from 1 to 60, got 61"):
        tasks.sample("compass", 61, 1)
