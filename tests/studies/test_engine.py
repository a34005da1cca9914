"""The engine of studies: whatever happens in between, a study ends with the same bytes."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import study_plans
from chainwright._errors import BadInput
from chainwright.studies import Job, Plan, Results, Study, Watch
from study_plans import Squares, files

UNITS = ["square/0", "square/1", "square/2", "sum", "none"]


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    Study.make(tmp_path / "whole", Squares()).run()
    return tmp_path / "whole"


def change(folder: Path, **values: object) -> None:
    path = folder / "study.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_study_computes_stage_after_stage_and_is_found_again(tmp_path: Path) -> None:
    plan = Squares()
    study = Study.make(tmp_path / "s", plan)
    assert study.units == [] and not study.is_complete
    results = study.run()
    assert plan.computed == study.units == UNITS and study.is_complete
    assert list(results) == UNITS[:-1] and results.skipped == {"none": "there is none"}
    assert json.loads((results["sum"] / "deep" / "value.json").read_text()) == 5
    again = Study.open(tmp_path / "s")
    assert dict(again.results) == dict(results) and again.results.skipped == results.skipped
    assert files(tmp_path / "s").keys() == {
        "study.json", "sum/unit.json", "sum/deep/value.json", "none/unit.json",
        *(f"square/{n}/{name}" for n in range(3) for name in ("unit.json", "value.json", "big.bin")),
    }  # fmt: skip


def test_a_finished_study_is_run_again_without_a_change(whole: Path) -> None:
    before, log, plan = files(whole), (whole / "study.log").read_bytes(), Squares()
    assert len(Study.make(whole, plan).run()) == 4
    assert plan.computed == [] and files(whole) == before and (whole / "study.log").read_bytes() == log


def test_the_status_names_every_unit(tmp_path: Path) -> None:
    study = Study.make(tmp_path / "s", Squares(seconds=0.01))
    seen = []

    class Stop(Watch):
        def listed(self, n_done: int, n_units: int) -> None:
            seen.append((n_done, n_units))

        def finished(self, title: str, seconds: float, skipped: str | None, left: float | None) -> None:
            seen.append((title, skipped))
            if title == "square/1":
                status = study.status()
                assert status.holder is not None and status.holder.pid == os.getpid()
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.run(Stop())
    status = study.status()
    assert [(u.unit, u.state) for u in status.units] == [
        ("square/0", "done"), ("square/1", "done"), ("square/2", "missing")
    ]  # fmt: skip
    assert status.holder is None and not status.is_complete and status.count("done") == 2
    assert status.seconds_left is not None and 0.01 < status.seconds_left < status.seconds_spent
    study.run(Watch())
    status = study.status()
    assert [u.state for u in status.units] == ["done"] * 4 + ["skipped"] and status.units[-1].note == "there is none"
    assert status.is_complete and status.seconds_left == 0.0
    assert seen == [(0, 3), ("square/0", None), ("square/1", None)]


@pytest.mark.parametrize("at", [*range(5)])
def test_an_interruption_costs_the_unit_in_flight_alone(whole: Path, tmp_path: Path, at: int) -> None:
    class Interrupted(Squares):
        def compute(self, job: object) -> None:
            if len(self.computed) == at:
                raise KeyboardInterrupt
            super().compute(job)  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt):
        Study.make(tmp_path / "s", Interrupted()).run()
    plan = Squares()
    Study.make(tmp_path / "s", plan).run()
    assert plan.computed == UNITS[at:] and files(tmp_path / "s") == files(whole)


@pytest.mark.parametrize("part", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 5))])
def test_sigkill_at_random_moments_ends_with_the_same_bytes(tmp_path: Path, part: int) -> None:
    """Fifty kills in five parts; each study is killed until it comes through."""
    Study.make(tmp_path / "whole", Squares(4)).run()
    draw, n_kills = random.Random(part), 0
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for _ in range(10):
        command = [sys.executable, study_plans.__file__, str(tmp_path / "s"), "0.01"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.stdin.write(b"go\n")
        process.stdin.flush()
        time.sleep(draw.random() * 0.1)  # a run takes at least 0.12 s
        process.send_signal(signal.SIGKILL)
        n_kills += process.wait() == -signal.SIGKILL
        process.stdin.close()
        process.stdout.close()
        if draw.random() < 0.4:
            Study.make(tmp_path / "s", Squares(4)).run()
            assert files(tmp_path / "s") == files(tmp_path / "whole")
            shutil.rmtree(tmp_path / "s")
    Study.make(tmp_path / "s", Squares(4)).run()
    assert files(tmp_path / "s") == files(tmp_path / "whole")
    assert n_kills >= 5, "most runs were killed before they ended"


def test_a_second_process_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, study_plans.__file__, str(tmp_path / "s"), "0.5"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"go\n")
    process.stdin.flush()
    while not (tmp_path / "s" / "study.log").exists():
        time.sleep(0.02)
    for overwrite in (False, True):
        with pytest.raises(BadInput, match=rf"being computed by process {process.pid} on .+, since 20\d\d-.*; wait"):
            Study.make(tmp_path / "s", Squares(4), overwrite=overwrite).run()
    holder = Study.open(tmp_path / "s").status().holder
    assert holder is not None and holder.pid == process.pid
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    assert Study.open(tmp_path / "s").status().holder is None
    Study.make(tmp_path / "s", Squares(4)).run()


DAMAGE = {
    "gone": (lambda p: p.unlink(), r"value\.json is missing"),
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:1]), r"value\.json was cut short: 1 of 2 bytes are there"),
    "empty": (lambda p: p.write_bytes(b""), r"value\.json was cut short: 0 of 2 bytes are there"),
    "longer": (lambda p: p.write_bytes(p.read_bytes() + b"\n"), r"value\.json was changed after it was written"),
    "changed": (lambda p: p.write_bytes(b"7\n"), r"value\.json was changed after it was written"),
    "no record": (lambda p: (p.parent / "unit.json").unlink(), r"square/1/unit\.json is missing"),
    "broken record": (lambda p: (p.parent / "unit.json").write_text("{"), r"unit\.json is no readable JSON"),
    "strange record": (lambda p: (p.parent / "unit.json").write_text("[]"), r"unit\.json was edited or damaged"),
    "no unit": (lambda p: shutil.rmtree(p.parent), r"square/1/unit\.json is missing"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_is_named_and_computed_again_only_if_asked(whole: Path, how: str) -> None:
    before, (do, says) = files(whole), DAMAGE[how]
    do(whole / "square" / "1" / "value.json")
    damaged = files(whole)
    says = rf"Unit square/1 of .*whole is damaged: .*{says}.*compute it again: python squares\.py .*whole --recompute"
    for call in (Study.make(whole, Squares()).run, lambda: Study.open(whole).results):
        with pytest.raises(BadInput, match=says):
            call()
    assert files(whole) == damaged, "nothing is changed unasked"
    assert [u.unit for u in Study.open(whole).status().units if u.state == "damaged"] == ["square/1"]
    plan = Squares()
    Study.make(whole, plan).run(recompute=True)
    assert plan.computed == ["square/1"] and files(whole) == before


def test_a_record_changed_together_with_its_file_is_found_in_a_finished_study(whole: Path) -> None:
    """Whoever writes a matching record for a changed file is found out by study.json."""
    from chainwright.studies import records

    unit = whole / "square" / "1"
    key = json.loads((unit / "unit.json").read_text())["study"]
    (unit / "value.json").write_text("7")
    records.write_record(unit, key)
    with pytest.raises(BadInput, match=r"unit\.json was changed after the study was finished"):
        _ = Study.open(whole).results


def test_a_repair_that_comes_out_differently_is_refused(whole: Path) -> None:
    class Other(Squares):
        def compute(self, job: object) -> None:
            job.out.joinpath("value.json").write_text("another")  # type: ignore[attr-defined]

    (whole / "square" / "1" / "value.json").unlink()
    with pytest.raises(BadInput, match="was computed again and came out differently"):
        Study.make(whole, Other()).run(recompute=True)


def test_changed_settings_are_named_with_both_values(whole: Path) -> None:
    before = files(whole)
    says = r'other settings: up_to is 3 there, 4 was asked; x\.y is not set there, "a" was asked\. Use the same'
    with pytest.raises(BadInput, match=says):
        Study.make(whole, Squares(4, x={"y": "a"}))
    assert files(whole) == before
    Study.make(whole, Squares(2), overwrite=True).run()
    assert json.loads((whole / "sum" / "deep" / "value.json").read_text()) == 1
    assert not (whole / "square" / "2").exists()


def test_a_study_replaced_and_killed_meanwhile_is_still_one_of_the_old_config(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, real, seen = files(whole), shutil.rmtree, []

    def once(path: Path, **options: object) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(path)
        real(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", once)
        with pytest.raises(KeyboardInterrupt):
            Study.make(whole, Squares(2), overwrite=True)
    with pytest.raises(BadInput, match="up_to is 3 there, 2 was asked"):
        Study.make(whole, Squares(2))
    Study.make(whole, Squares()).run()
    assert files(whole) == before


EDITS = [
    ("config", {"up_to": 2}, r"was made with another config or model than study\.json names"),
    ("config", [], r"edited or damaged: config must be a table; got \[\]\. Put it back"),
    ("units", [], r"units must be a table of texts, or none; got \[\]"),
    ("units", {"sum": None}, r"square/0 is there, but study\.json does not name that unit"),
    ("is_complete", "yes", r"is_complete must be true or false; got 'yes'"),
    ("model", None, r"model must be a table of texts; got None"),
    ("kind", "other", r'kind is "other" there, "squares" was asked'),
    ("schema_version", 1, r"has study schema version 1, this Chainwright reads 2; use the version that wrote it"),
    ("schema_version", 3, r"has study schema version 3, this Chainwright reads 2"),
    ("chainwright", "9.9", r'chainwright is "9\.9" there, "0\.2\.0" was asked'),
]


@pytest.mark.parametrize(("name", "value", "says"), EDITS)
def test_a_manifest_edited_by_hand(whole: Path, name: str, value: object, says: str) -> None:
    change(whole, **{name: value})
    plan = Squares(2) if value == {"up_to": 2} else Squares()
    with pytest.raises(BadInput, match=says):
        Study.make(whole, plan).run()
    text = (whole / "study.json").read_text()
    (whole / "study.json").write_text(text[: len(text) // 2])
    for call in (lambda: Study.make(whole, Squares()), lambda: Study.open(whole)):
        with pytest.raises(BadInput, match=r"study\.json is no readable JSON"):
            call()


def test_a_key_that_is_missing_from_a_manifest_is_named(whole: Path) -> None:
    state = json.loads((whole / "study.json").read_text())
    for name in ("kind", "again", "model", "chainwright", "is_complete", "units"):
        (whole / "study.json").write_text(json.dumps({k: v for k, v in state.items() if k != name}))
        with pytest.raises(BadInput, match=f"edited or damaged: {name} is missing; it must be "):
            Study.open(whole)
    for name in ("schema_version", "config"):
        (whole / "study.json").write_text(json.dumps({k: v for k, v in state.items() if k != name}))
        with pytest.raises(BadInput, match="was not written by Chainwright"):
            Study.open(whole)


def test_a_unit_that_a_manifest_names_in_vain(whole: Path) -> None:
    state = json.loads((whole / "study.json").read_text())
    change(whole, is_complete=False, units=state["units"] | {"square/9": None})
    with pytest.raises(BadInput, match=r"names the unit 'square/9', which such a study does not have"):
        Study.make(whole, Squares()).run()


@pytest.mark.parametrize("overwrite", [False, True])
def test_foreign_folders_are_left_alone(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("mine")
    with pytest.raises(BadInput, match="mine exists and holds no study of Chainwright's; choose an empty or new"):
        Study.make(tmp_path / "mine", Squares(), overwrite=overwrite)
    (tmp_path / "mine" / "study.json").write_text('{"trials": 3}')
    with pytest.raises(BadInput, match=r"study\.json was not written by Chainwright"):
        Study.make(tmp_path / "mine", Squares(), overwrite=overwrite)
    assert files(tmp_path / "mine").keys() == {"a.txt", "study.json"}
    with pytest.raises(BadInput, match="is a file; choose a folder"):
        Study.make(tmp_path / "mine" / "a.txt", Squares(), overwrite=overwrite)
    with pytest.raises(BadInput, match="none holds no study"):
        Study.open(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_files_of_others_inside_a_study_stay(whole: Path) -> None:
    (whole / "notes.txt").write_text("mine")
    (whole / "square" / "notes.txt").write_text("mine")
    Study.make(whole, Squares(1), overwrite=True).run()
    assert (whole / "notes.txt").read_text() == (whole / "square" / "notes.txt").read_text() == "mine"
    assert not (whole / "square" / "1").exists()


@contextmanager
def small_disk(n_bytes: int) -> Iterator[None]:
    """Refuse files above a size, as a full disk does, by the system itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_room_is_one_sentence_and_loses_nothing(whole: Path, tmp_path: Path) -> None:
    study = Study.make(tmp_path / "s", Squares())
    with small_disk(5000), pytest.raises(BadInput, match=r"Cannot write .*square/0: File too large; nothing was"):
        study.run()
    assert study.status().count("done") == 0 and study.status().holder is None
    study.run()
    assert files(tmp_path / "s") == files(whole)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_disk_that_is_really_full(whole: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        filler = disk / "filler"
        filler.write_bytes(bytes(80 * 1024))
        with pytest.raises(BadInput, match=r"Cannot write .*: No space left on device; nothing was changed there"):
            Study.make(disk / "s", Squares()).run()
        n_done = Study.open(disk / "s").status().count("done")
        assert 0 < n_done < 3
        filler.unlink()
        plan = Squares()
        Study.make(disk / "s", plan).run()
        assert plan.computed == UNITS[n_done:] and files(disk / "s") == files(whole)
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_no_permission_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Root may write anywhere, so the system's refusal is put in its mouth."""
    real = os.open

    def refused(path: object, flags: int, *mode: int, **options: object) -> int:
        if str(path).endswith("study.lock") and flags & os.O_RDWR:
            raise OSError(number, os.strerror(number))
        return real(path, flags, *mode, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(BadInput, match=rf"Cannot write .*study\.lock: {os.strerror(number)}; nothing was changed"):
        Study.make(tmp_path / "s", Squares())


def test_a_counter_ticks_by_the_sizes_of_batches(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    job = Job("a", tmp_path, Results(tmp_path, {}), lambda done, total: seen.append((done, total)))
    count = job.counter(5)
    for batch in ([1, 2], [], [3, 4, 5]):
        count(batch)
    assert seen == [(2, 5), (2, 5), (5, 5)]


def test_mistakes_of_plans_are_no_users_mistakes(tmp_path: Path) -> None:
    class Listing(Plan):
        kind, again, config = "listing", "", {}

        def __init__(self, *units: str) -> None:
            self.names = units

        def units(self, done: Results) -> tuple[str, ...]:
            return self.names

        def compute(self, job: object) -> None:
            raise AssertionError

    for i, names in enumerate([("../a",), ("/a",), ("a/",), (".a",), ("a", "a"), ("a", "a/b"), ("a b",), ("",)]):
        with pytest.raises(ValueError, match="A plan lists") as caught:
            Study.make(tmp_path / str(i), Listing(*names)).run()
        assert not isinstance(caught.value, BadInput)


def test_a_study_opened_to_be_read_is_not_run(whole: Path) -> None:
    with pytest.raises(BadInput, match=r"opened for reading only; resume it with: python squares\.py .*whole"):
        Study.open(whole).run()


def test_a_log_cut_by_a_kill_is_read_and_extended(whole: Path) -> None:
    from chainwright.studies import timing

    took = timing.seconds_by_unit(whole)
    assert list(took) == UNITS
    with (whole / "study.log").open("ab") as log:
        log.write(b'{"event": "unit", "un')
    timing.note(whole, "unit", unit="sum", seconds=9.0)
    assert timing.seconds_by_unit(whole) == took | {"sum": 9.0}
    assert timing.seconds_left(["square/7", "x"], {"square/1": 2.0, "square/2": 4.0, "sum": 9.0}) == 3.0 + 5.0
    assert timing.seconds_left(["a"], {}) is None and timing.seconds_left([], {"a": 1.0}) == 0.0
    assert [timing.words(s) for s in (4, 99, 130, 12000)] == ["4 s", "99 s", "2 min", "3 h 20 min"]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_byte_of_any_file_that_changes_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """One bit flipped, or a file cut at any place: the study is refused, or reads as before (JSON's white space)."""
    folder = tmp_path_factory.mktemp("s") / "s"
    Study.make(folder, Squares(2)).run()
    names = [name for name in files(folder) if name != "study.json"]
    path = folder / data.draw(st.sampled_from(names))
    content = path.read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(content[:at])
    else:
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << data.draw(st.integers(0, 7))]) + content[at + 1 :])
    with pytest.raises(BadInput, match="is damaged"):
        _ = Study.open(folder).results
    Study.make(folder, Squares(2)).run(recompute=True)
    assert path.read_bytes() == content


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=60) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["schema_version", "kind", "config", "units", "model", "again", "chainwright"]), inner),
    max_leaves=8,
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_whatever_a_manifest_contains_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("m")
    (folder / "study.json").write_bytes(content)
    with pytest.raises(BadInput):
        Study.open(folder)
