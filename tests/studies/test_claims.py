"""Leases in a shared folder: one owner at a time, expiry by the reader's clock, no writing once a lease is lost."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import time
from pathlib import Path

import pytest

from chainwright._errors import BadInput
from chainwright.studies.crew import Heart, beat_of, living, workers_of
from chainwright.studies.workers import claims as claims_file
from chainwright.studies.workers.claims import Claim, Claims, LeaseLost, check_file_system


class Clock:
    """A monotonic clock that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(claims_file.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def crew_of(folder: Path, *names: str, lease: float = 10.0) -> list[Claims]:
    found = [Claims(folder, name, lease) for name in names]
    for each in found:
        each.open()
        beat(each, 0)
    return found


def beat(worker: Claims, n: int) -> None:
    (worker.folder / ".workers" / f"{worker.worker}.json").write_text(json.dumps({"beat": n}))


def computed(claim: Claim, text: str = "x") -> None:
    (claim.draft / "value.txt").write_text(text)


def taken_over(clock: Clock, by: Claims, name: str) -> Claim:
    """Return the claim that a worker takes after the silence of the former owner."""
    assert by.claim(name) is None, "what is seen for the first time is alive"
    clock.now += 9.9
    assert by.claim(name) is None
    clock.now += 0.2
    claim = by.claim(name)
    assert claim is not None
    return claim


def test_one_worker_has_a_unit_until_it_gives_it_back(tmp_path: Path, clock: Clock) -> None:
    a, b = crew_of(tmp_path, "a", "b")
    claim = a.claim("heads/x")
    assert claim is not None and claim.is_held() and b.claim("heads/x") is None and a.claim("heads/x") is None
    other = b.claim("heads/y")
    assert other is not None, "another unit is free"
    computed(claim)
    claim.publish(tmp_path / "heads" / "x")
    assert (tmp_path / "heads" / "x" / "value.txt").read_text() == "x"
    a.give_back(claim)
    assert not claim.place.exists() and not claim.draft.exists() and not claim.is_held()
    again = b.claim("heads/x")
    assert again is not None, "whoever claims it now finds that it has appeared"


def test_a_claim_expires_by_the_readers_clock_alone(tmp_path: Path, clock: Clock) -> None:
    """The owner's file may say any time: only that it changes counts, and how long the reader has seen it unchanged."""
    a, b = crew_of(tmp_path, "a", "b")
    assert a.claim("u") is not None
    for n in range(1, 20):
        assert b.claim("u") is None
        clock.now += 9.0
        beat(a, -n)  # as if its clock ran backwards
    assert b.claim("u") is None
    clock.now += 10.0
    assert b.claim("u") is not None


def test_the_lease_is_that_of_the_owner(tmp_path: Path, clock: Clock) -> None:
    (a,), (b,) = crew_of(tmp_path, "a", lease=100.0), crew_of(tmp_path, "b", lease=1.0)
    assert a.claim("u") is not None and b.claim("u") is None
    clock.now += 99.0
    assert b.claim("u") is None
    clock.now += 1.0
    assert b.claim("u") is not None


def test_who_lost_its_lease_publishes_nothing_whenever_it_wakes_up(tmp_path: Path, clock: Clock) -> None:
    a, b = crew_of(tmp_path, "a", "b")
    old = a.claim("u")
    assert old is not None
    computed(old, "old")
    new = taken_over(clock, b, "u")
    assert not old.is_held() and new.is_held()
    shutil.rmtree(old.draft, ignore_errors=True)
    old.draft.mkdir(parents=True)  # as code does that makes the folders above a file
    computed(old, "old")
    with pytest.raises(LeaseLost):
        old.publish(tmp_path / "u")
    a.give_back(old)
    assert not (tmp_path / "u").exists() and new.is_held(), "giving back a lost claim leaves the new one alone"
    computed(new, "new")
    new.publish(tmp_path / "u")
    with pytest.raises(LeaseLost):
        old.draft.mkdir(parents=True, exist_ok=True)
        old.publish(tmp_path / "u")
    assert (tmp_path / "u" / "value.txt").read_text() == "new"


def test_who_slept_between_both_renames_publishes_nothing(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = crew_of(tmp_path, "a", "b")
    old = a.claim("u")
    assert old is not None
    computed(old, "old")
    taken: list[Claim] = []

    def late(draft: Path, target: Path) -> None:
        if not taken:
            taken.append(taken_over(clock, b, "u"))
        real(draft, target)

    real = claims_file.put_once
    monkeypatch.setattr(claims_file, "put_once", late)
    with pytest.raises(LeaseLost):
        old.publish(tmp_path / "u")
    assert not (tmp_path / "u").exists()
    computed(taken[0], "new")
    taken[0].publish(tmp_path / "u")
    assert (tmp_path / "u" / "value.txt").read_text() == "new"


def test_what_was_published_before_the_fence_stays(tmp_path: Path, clock: Clock) -> None:
    a, b = crew_of(tmp_path, "a", "b")
    old = a.claim("u")
    assert old is not None
    computed(old, "old")
    assert b.claim("u") is None
    clock.now += 11
    old.publish(tmp_path / "u")
    new = b.claim("u")
    assert new is not None
    computed(new, "new")
    new.publish(tmp_path / "u")  # it should have looked; nothing is replaced even so
    assert (tmp_path / "u" / "value.txt").read_text() == "old"


def test_a_file_is_replaced_by_its_owner_alone(tmp_path: Path, clock: Clock) -> None:
    a, b = crew_of(tmp_path, "a", "b")
    (tmp_path / "study.json").write_text("0")
    for text in ("1", "2"):
        claim = a.claim("study.json")
        assert claim is not None and b.claim("study.json") is None
        (claim.draft / "study.json").write_text(text)
        claim.replace(tmp_path / "study.json")
        a.give_back(claim)
        assert (tmp_path / "study.json").read_text() == text
    old = a.claim("study.json")
    assert old is not None
    (old.draft / "study.json").write_text("old")
    new = taken_over(clock, b, "study.json")
    old.draft.mkdir(exist_ok=True)
    (old.draft / "study.json").write_text("old")
    with pytest.raises(LeaseLost):
        old.replace(tmp_path / "study.json")
    (new.draft / "study.json").write_text("new")
    new.replace(tmp_path / "study.json")
    b.give_back(new)
    assert (tmp_path / "study.json").read_text() == "new"
    with pytest.raises(LeaseLost):
        old.replace(tmp_path / "study.json")


def test_a_unit_that_was_taken_over_and_given_back_is_free_at_once(tmp_path: Path, clock: Clock) -> None:
    a, b, c = crew_of(tmp_path, "a", "b", "c")
    old = a.claim("u")
    assert old is not None
    b.give_back(taken_over(clock, b, "u"))
    claim = c.claim("u")
    assert claim is not None, "the first owner is fenced, so nobody waits for it"
    assert not old.is_held()


def test_of_many_takers_one_gets_a_claim_that_expired(tmp_path: Path, clock: Clock) -> None:
    a, *others = crew_of(tmp_path, *"abcdef")
    assert a.claim("u") is not None
    for other in others:
        assert other.claim("u") is None
    clock.now += 11
    assert sum(other.claim("u") is not None for other in others) == 1


def test_a_claim_without_a_readable_owner_expires_as_well(tmp_path: Path, clock: Clock) -> None:
    a, b = crew_of(tmp_path, "a", "b")
    claim = a.claim("u")
    assert claim is not None
    (claim.place / "owner.json").write_text("")
    assert taken_over(clock, b, "u").is_held()


@pytest.mark.parametrize("seed", range(20))
def test_whatever_workers_do_and_in_whatever_order_the_first_published_unit_stays(
    tmp_path: Path, clock: Clock, seed: int
) -> None:
    """Claims, sleeps, publications and clean-ups at random; each worker believes what it last knew."""
    draw = random.Random(seed)
    workers = crew_of(tmp_path, *"abcd")
    mine: dict[str, Claim] = {}
    fenced: set[str] = set()
    first = None
    for step in range(120):
        worker = draw.choice(workers)
        claim = mine.get(worker.worker)
        if draw.random() < 0.5:
            beat(worker, step)
        if claim is None:
            if (got := worker.claim("u")) is not None:
                fenced |= {other.token for other in mine.values()}
                mine[worker.worker] = got
                got.draft.mkdir(exist_ok=True)
                computed(got, got.token)
        elif draw.random() < 0.2:
            claim.draft.mkdir(exist_ok=True)
            computed(claim, claim.token)
            there = (tmp_path / "u").exists()
            try:
                claim.publish(tmp_path / "u")
            except LeaseLost:
                assert claim.token in fenced or there
            else:
                assert there or claim.token not in fenced, "a fenced claim has published"
        elif draw.random() < 0.2:
            worker.give_back(mine.pop(worker.worker))
        if (tmp_path / "u").exists():
            first = first or (tmp_path / "u" / "value.txt").read_text()
            assert (tmp_path / "u" / "value.txt").read_text() == first
        clock.now += draw.choice([0.1, 4.0, 11.0])
    assert first is not None


def test_a_lost_answer_of_the_server_is_found_out(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS repeats a call whose answer was lost; the second finds nothing to rename, although the first succeeded."""
    (a,) = crew_of(tmp_path, "a")
    real = os.rename

    def twice(source: Path, target: Path) -> None:
        real(source, target)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", twice)
        claim = a.claim("u")
    assert claim is not None and claim.is_held()


def test_a_folder_that_is_full_or_may_not_be_written_to_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (a,) = crew_of(tmp_path, "a")

    def refused(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "rename", refused)
    with pytest.raises(BadInput, match=r"Cannot write .*u\.1: No space left on device"):
        a.claim("u")


def test_a_file_system_without_exclusive_creation_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_file_system(tmp_path)
    real_open, real_rename = Path.open, os.rename
    says = r"on a file system that does not create files and folders exclusively.*`chainwright study run`\."
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, mode="r": real_open(path, mode.replace("x", "w")))
        with pytest.raises(BadInput, match=says):
            check_file_system(tmp_path)

    def merging(source: Path, target: Path) -> None:
        shutil.rmtree(target)
        real_rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", merging)
        with pytest.raises(BadInput, match=says):
            check_file_system(tmp_path)
    assert list((tmp_path / ".workers").iterdir()) == []


def test_a_heart_beats_until_its_block_ends(tmp_path: Path) -> None:
    with Heart(tmp_path, 1.0) as heart:
        first = beat_of(tmp_path, heart.worker)
        assert [state.worker for state in living(tmp_path)] == [heart.worker]
        heart.show("heads/x", 3)
        (state,) = workers_of(tmp_path)
        assert (state.pid, state.unit, state.n_done, state.lease) == (os.getpid(), "heads/x", 3, 1.0)
        assert beat_of(tmp_path, heart.worker) != first
    assert workers_of(tmp_path) == [] and beat_of(tmp_path, heart.worker) is None


def test_a_worker_that_was_killed_is_waited_for_no_longer_than_its_lease(tmp_path: Path) -> None:
    with Heart(tmp_path, 1.0) as heart:
        left = heart.path.read_bytes()
    heart.path.write_bytes(left)
    start = time.monotonic()
    assert living(tmp_path) == [] and 1.0 <= time.monotonic() - start < 10


def test_a_lease_below_a_second_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"A lease must be at least 1 second, and longer .*; got 0\.5\."):
        Heart(tmp_path, 0.5)
