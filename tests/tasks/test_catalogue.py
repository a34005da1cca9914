"""A task is one file: what it states of itself is all that the package knows about it."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from chainwright import BadInput, _registry, tasks
from chainwright.plugins import register
from chainwright.tasks.cells import choose_cells, fit_cells
from chainwright.tasks.clf import TASK as CLF
from chainwright.tasks.compass import TASK as COMPASS


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_registry, "_live", dict(_registry._live))
    monkeypatch.setattr(_registry, "_owners", dict(_registry._owners))


def test_usual_hops_are_those_of_the_reasoner_and_of_the_paper() -> None:
    assert choose_cells("all", None, "short") == {
        "parity": (6, 10, 12, 13, 14),
        "mdm": (1, 2, 3, 4),
        "llc": (4, 7, 8, 9, 10),
        "clf": (6, 10, 12, 13, 14),
        "moas": (6, 10, 11, 12, 13),
        "nums": (5, 8, 9, 10, 11),
        "objc": (5, 8, 9, 10, 11),
    }
    assert choose_cells("all", None, "natural") == {
        "parity": (10, 20, 30, 40, 50),
        "mdm": (2, 3, 4, 5, 6),
        "llc": (2, 4, 6, 8, 10),
        "clf": (10, 20, 30),
        "moas": (10, 20, 30, 40, 50),
        "nums": (5, 10, 15, 20),
        "objc": (10, 20, 30, 40, 50),
    }


def test_repairs_are_fitted_on_the_last_three_unless_the_task_says_otherwise() -> None:
    assert fit_cells("mdm,clf", None, "short") == {"mdm": (2, 3), "clf": (12, 13, 14)}
    assert fit_cells("mdm,clf", None, "natural") == {"mdm": (4, 5, 6), "clf": (10, 20, 30)}
    assert fit_cells("mdm", "1", "short") == {"mdm": (1,)}


def test_a_task_without_usual_hops_asks_for_them() -> None:
    register("task", "folders")(replace(CLF, name="folders", title="Folders", paper_order=None, usual_hops={}))
    with pytest.raises(BadInput, match=r"The task folders states no usual hops for the short rendering; .* --hops"):
        choose_cells("folders", None, "short")
    assert choose_cells("folders", "3-4", "short") == {"folders": (3, 4)}
    assert "folders" in tasks.known() and "folders" not in tasks.names()
    assert tasks.canonical("FOLDERS") == "folders" and tasks.sample("folders", 3, 1)[0].task == "folders"


def test_a_task_is_registered_under_its_own_name() -> None:
    register("task", "other")(CLF)
    with pytest.raises(BadInput, match="'other' registers one called 'clf'"):
        tasks.title("other")


def test_a_rendering_that_a_task_does_not_have_is_refused() -> None:
    assert COMPASS.renderings == ("short",)
    with pytest.raises(BadInput, match="has the short rendering alone"):
        choose_cells("compass", None, "natural")
    register("task", "talk")(replace(CLF, name="talk", title="Talk", renderings=("natural",)))
    assert tasks.sample("talk", 2, 1)[0].rendering == "natural"
    with pytest.raises(BadInput, match="The task talk has the natural rendering alone"):
        tasks.sample("talk", 2, 1, rendering="short")


def test_the_family_of_an_error_type_is_what_its_task_states() -> None:
    for task in tasks.known():
        for kind in tasks.error_types(task):
            assert tasks.family(task, kind) != "other"
            assert ("recall" in kind) == (tasks.family(task, kind) == "recall")  # how they were told apart before
    register("task", "lookups")(replace(CLF, name="lookups", title="Lookups", error_types={"lookup": "recall"}))
    assert tasks.family("lookups", "lookup") == "recall"
    assert tasks.family("lookups", "recall of a date") == tasks.family("by hand", "name recall") == "other"
    assert tasks.family("by hand", tasks.UNPARSED) == "cannot be read"
    assert tasks.family("by hand", "more hops") == tasks.family("clf", "fewer hops") == "fewer or more hops"


def test_every_slot_has_an_error_type_that_its_task_states() -> None:
    for task in tasks.known():
        for problem in tasks.sample(task, 3, 5):
            assert {slot.error_type for slot in problem.slots} <= set(tasks.error_types(task))


def test_the_tokens_of_the_bundled_models_never_change() -> None:
    digest = hashlib.sha256("\0".join(tasks.vocabulary()).encode()).hexdigest()
    assert digest == "91c73514d276823b77440c0dea6f9005426a57df2aec294c67346fccdccd0b80"


def test_the_vocabulary_of_one_task_writes_its_problems() -> None:
    register("task", "folders")(replace(CLF, name="folders", title="Folders", words=("up/",)))
    assert tasks.vocabulary("folders")[-1] == "up/" and "folders" in tasks.vocabulary("folders")
    assert "up/" not in tasks.vocabulary()
    known = set(tasks.vocabulary("compass"))
    assert all(
        set(p.prompt.split()) <= known | {p.prompt.split()[i] for i in (22, 24)} for p in tasks.sample("compass", 3, 5)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "My Task"}, "The name of a task is written in lower-case letters, digits and spaces; got 'My Task'"),
        ({"name": "my task"}, "The name of a task is one word"),
        ({"error_types": {"carry/borrow": "recall"}}, "The error type of a task is written .* got 'carry/borrow'"),
    ],
)
def test_names_of_a_task_can_be_parts_of_file_names(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        replace(CLF, **changes)  # type: ignore[arg-type]


def test_each_task_can_have_hops_of_its_own() -> None:
    assert choose_cells("parity,mdm", "MDM=2,3; parity=8", "natural") == {"parity": (8,), "mdm": (2, 3)}


@pytest.mark.parametrize(
    ("hops", "words"),
    [
        ("parity=8", r"'parity=8' names no hops for mdm; add some \('mdm=4'\)"),
        ("parity=8;mdm=2;clf=3", "names hops for clf, which is not asked; asked: parity, mdm"),
        ("parity=8;mdm=2;parity=3", "The hops of parity are named twice"),
        ("parity=8;mdm=x", "Hops must be whole numbers from 1"),
        ("parity=8;mad=2", "Unknown task 'mad'"),
        ("parity=8;", "Unknown task ''"),
    ],
)
def test_hops_by_task_that_do_not_fit_are_refused(hops: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        choose_cells("parity,mdm", hops, "natural")
