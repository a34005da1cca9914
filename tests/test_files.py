"""Atomic writing: whatever happens on the way, a file or folder is the old one or the new one."""

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from chainwright import _files
from chainwright._errors import BadInput
from chainwright._files import (
    atomic_file,
    atomic_folder,
    clear_disk_errors,
    current_folder,
    is_draft,
    read_json,
    remove_leftovers,
    write_json,
)

FULL = OSError(errno.ENOSPC, "No space left on device")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def put(path: Path, text: str) -> None:
    with atomic_file(path) as draft:
        draft.write_text(text)


def put_folder(folder: Path, **files: str) -> None:
    with atomic_folder(folder) as draft:
        for name, text in files.items():
            (draft / name).write_text(text)


def test_a_file_takes_its_place_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "a.txt"
    with atomic_file(path) as draft:
        draft.write_text("one")
        assert not path.exists() and draft.parent == path.parent
        assert is_draft(draft, "a.txt") and not is_draft(draft, "b.txt") and not is_draft(path, "a.txt")
    assert path.read_text() == "one" and names(path.parent) == ["a.txt"]
    put(path, "two")
    assert path.read_text() == "two" and names(path.parent) == ["a.txt"]


def test_parents_are_made_only_if_wanted(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="No such file or directory; nothing was changed there"):
        with atomic_file(tmp_path / "no" / "a.txt", make_parents=False) as draft:
            draft.write_text("one")
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt(), ValueError("mine")])
def test_an_error_while_writing_keeps_the_old_content(tmp_path: Path, error: BaseException) -> None:
    put(tmp_path / "a.txt", "old")
    put_folder(tmp_path / "b", x="old", y="old")
    expected = BadInput if error is FULL else type(error)
    with pytest.raises(expected):
        with atomic_file(tmp_path / "a.txt") as draft:
            draft.write_text("half")
            raise error
    with pytest.raises(expected):
        with atomic_folder(tmp_path / "b") as draft:
            (draft / "x").write_text("half")
            raise error
    assert (tmp_path / "a.txt").read_text() == "old" and (tmp_path / "b" / "x").read_text() == "old"
    assert names(tmp_path) == ["a.txt", "b"] and names(tmp_path / "b") == ["x", "y"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_disk_that_is_full_at_the_last_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    put(tmp_path / "a.txt", "old")
    put_folder(tmp_path / "b", x="old")

    def full(*_: object, **__: object) -> None:
        raise FULL

    with monkeypatch.context() as patch:
        patch.setattr(_files.os, failing, full)
        for write in (lambda: put(tmp_path / "a.txt", "new"), lambda: put_folder(tmp_path / "b", x="new")):
            with pytest.raises(BadInput, match=r"Cannot write .*: No space left on device; nothing was changed there"):
                write()
    assert (tmp_path / "a.txt").read_text() == "old" and (tmp_path / "b" / "x").read_text() == "old"
    assert names(tmp_path) == ["a.txt", "b"]


def test_a_folder_that_cannot_take_its_place_gives_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_folder(tmp_path / "b", x="old")
    real, seen = os.replace, []

    def second_fails(source: Path, target: Path) -> None:
        seen.append(source)
        if len(seen) == 2:
            raise FULL
        real(source, target)

    monkeypatch.setattr(_files.os, "replace", second_fails)
    with pytest.raises(BadInput, match="No space left"):
        put_folder(tmp_path / "b", x="new")
    assert (tmp_path / "b" / "x").read_text() == "old" and names(tmp_path) == ["b"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EFBIG, errno.ENOTDIR, errno.EISDIR])
def test_what_the_system_has_against_it_is_one_sentence(number: int) -> None:
    with pytest.raises(BadInput) as caught:
        with clear_disk_errors(Path("here/a.txt")):
            raise OSError(number, os.strerror(number))
    message = str(caught.value)
    assert message.startswith(f"Cannot write here/a.txt: {os.strerror(number)}; nothing was changed there.")
    assert "\n" not in message and isinstance(caught.value.__cause__, OSError)


def test_other_errors_are_left_as_they_are() -> None:
    with pytest.raises(ConnectionResetError):
        with clear_disk_errors(Path("a")):
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
    with pytest.raises(ZeroDivisionError):
        with clear_disk_errors(Path("a")):
            1 / 0  # noqa: B018


@pytest.mark.parametrize("kind", ["a folder", "below a file", "a long name"])
def test_impossible_places(tmp_path: Path, kind: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("old")
    path = {
        "a folder": tmp_path / "folder",
        "below a file": tmp_path / "file" / "a.txt",
        "a long name": tmp_path / ("a" * 300),
    }[kind]
    with pytest.raises(BadInput, match=r"Cannot write .*(directory|too long|File exists)"):
        put(path, "new")
    assert names(tmp_path) == ["file", "folder"] and (tmp_path / "file").read_text() == "old"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_rights(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(BadInput, match="Permission denied"):
            put(tmp_path / "a.txt", "new")
    finally:
        tmp_path.chmod(0o700)


def test_a_full_disk_under_safetensors(tmp_path: Path) -> None:
    """Safetensors raises an error of its own, which is no OSError."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "a.safetensors"
    with atomic_file(path) as draft:
        save_file({"a": torch.zeros(2)}, draft)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
    try:
        with pytest.raises(BadInput, match=r"Cannot write .*a\.safetensors: File too large; nothing was changed"):
            with atomic_file(path) as draft:
                save_file({"a": torch.zeros(5000)}, draft)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(load_file(path)["a"]) == 2
    assert names(tmp_path) == ["a.safetensors"]


def test_files_have_the_rights_that_the_user_gives_new_ones(tmp_path: Path) -> None:
    """Safetensors gives its files to their owner alone."""
    before = os.umask(0o027)
    try:
        with atomic_file(tmp_path / "a") as draft:
            save_file({"a": torch.zeros(2)}, draft)
        with atomic_folder(tmp_path / "b") as draft:
            save_file({"a": torch.zeros(2)}, draft / "x")
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "a", tmp_path / "b", tmp_path / "b" / "x")}
    assert modes == {"a": 0o640, "b": 0o750, "x": 0o640}


KILLED = """
import os, sys, time
from pathlib import Path
from chainwright import _files
where, what = Path(sys.argv[1]), sys.argv[2]
def wait(*_):
    print("ready", flush=True)
    time.sleep(60)
if what == "swap":
    real = os.replace
    def once(a, b):
        real(a, b)
        wait()
    _files.os.replace = once
context = _files.atomic_file(where / "a.txt") if what == "file" else _files.atomic_folder(where / "b")
with context as draft:
    (draft if what == "file" else draft / "x").write_text("half")
    if what != "swap":
        wait()
"""


@pytest.mark.parametrize("what", ["file", "folder", "swap"])
def test_a_kill_leaves_the_old_content(tmp_path: Path, what: str) -> None:
    put(tmp_path / "a.txt", "old")
    put_folder(tmp_path / "b", x="old")
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path), what], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert (current_folder(tmp_path / "b") / "x").read_text() == "old"
    assert len(names(tmp_path)) == 3, "the draft is left"
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["a.txt", "b"] and (tmp_path / "b" / "x").read_text() == "old"


def test_leftovers_are_told_from_other_hidden_files(tmp_path: Path) -> None:
    mine = [".draft", ".a.draft", ".a.old", ".git", ".x.12-zz.draft", "a.12-0123abcd.draft"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    put_folder(tmp_path / "b", x="new")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / ".a.txt.12-0123abcd.draft").write_text("half")
    (tmp_path / ".b.12-0123abcd.old").mkdir()
    (tmp_path / ".b.12-0123abcd.old" / "x").write_text("old")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted([*mine, "b", "deep"]) and names(tmp_path / "deep") == []
    assert (tmp_path / "b" / "x").read_text() == "new", "what is there is newer than what was put aside"


def test_of_several_folders_put_aside_the_latest_counts(tmp_path: Path) -> None:
    for token, text in (("aaaaaaaa", "older"), ("00000000", "latest")):
        aside = tmp_path / f".b.7-{token}.old"
        aside.mkdir()
        (aside / "x").write_text(text)
        time.sleep(0.02)
    assert (current_folder(tmp_path / "b") / "x").read_text() == "latest"
    assert current_folder(tmp_path / "c") == tmp_path / "c"
    assert current_folder(tmp_path / "no" / "c") == tmp_path / "no" / "c"
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["b"] and (tmp_path / "b" / "x").read_text() == "latest"


def test_json_comes_back(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, True, "é🙂"], "b": {"c": 1e-300, "d": 0.1}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert (tmp_path / "a.json").read_text(encoding="utf-8").endswith("}\n")


def test_json_that_cannot_be_written_keeps_the_old(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    for bad in (float("nan"), {1, 2}):
        with pytest.raises((ValueError, TypeError)):
            write_json(tmp_path / "a.json", bad)
    assert read_json(tmp_path / "a.json") == {"a": 1} and names(tmp_path) == ["a.json"]


def test_json_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(BadInput, match=r"There is no file .*a\.json"):
        read_json(path)
    for content in (b"{", b"", b"\xff\xfe{}", json.dumps({"a": 1}).encode()[:-1]):
        path.write_bytes(content)
        with pytest.raises(BadInput, match=r"a\.json is no readable JSON"):
            read_json(path)
    with pytest.raises(BadInput, match=r"Cannot read .*: Is a directory"):
        read_json(tmp_path)
