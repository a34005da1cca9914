from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from chainwright._errors import BadInput
from chainwright.studies.lock import HOLDER, LOCK, Holder, holder, locked


def test_the_holder_is_named_while_it_holds_the_lock_and_not_afterwards(tmp_path: Path) -> None:
    assert holder(tmp_path) is None and list(tmp_path.iterdir()) == [], "asking writes nothing"
    with locked(tmp_path):
        held = holder(tmp_path)
        assert held is not None and held[:2] == (os.getpid(), socket.gethostname())
        assert str(held) == f"process {held.pid} on {held.host}, since {held.since}"
        with (
            pytest.raises(BadInput, match=rf"is being computed by process {os.getpid()} on .*; wait until"),
            locked(tmp_path),
        ):
            pass
        assert holder(tmp_path) == held, "who was refused left the holder's name"
    assert holder(tmp_path) is None and not (tmp_path / HOLDER).exists()


def test_a_name_that_a_kill_left_behind_means_nothing(tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    (tmp_path / HOLDER).write_text('{"pid": 1, "host": "h", "since": "then"}')
    assert holder(tmp_path) is None
    with locked(tmp_path):
        held = holder(tmp_path)
        assert held is not None and held.pid == os.getpid()


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"pid": 1}'])
def test_a_holder_that_cannot_be_read_is_unknown(tmp_path: Path, text: str) -> None:
    with locked(tmp_path):
        (tmp_path / HOLDER).write_text(text)
        assert holder(tmp_path) == Holder(0, "an unknown machine", "an unknown time")


def test_the_lock_is_free_again_if_its_holder_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / HOLDER).mkdir()
    with pytest.raises(BadInput, match=r"Cannot write .*study\.holder"), locked(tmp_path):
        pass
    (tmp_path / HOLDER).rmdir()
    with locked(tmp_path):
        assert holder(tmp_path) is not None


def test_a_reader_without_the_right_to_write_gets_what_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refused(path: object, flags: int, *mode: int, **options: object) -> int:
        if str(path).endswith(LOCK) and flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied")
        return real(path, flags, *mode, **options)  # type: ignore[arg-type]

    with locked(tmp_path):
        held = holder(tmp_path)
        monkeypatch.setattr(os, "open", refused)
        assert holder(tmp_path) == held
