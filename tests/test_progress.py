from __future__ import annotations

import io

import pytest
from rich.console import Console

from chainwright._progress import progress_bar, progress_rows


def test_nothing_is_drawn_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for shown in (True, False):
        with progress_bar("generating", 3, shown=shown) as bar:
            bar.advance()
            bar.move_to(3, "loss 0.1")
    assert capsys.readouterr() == ("", ""), "the error stream of a test is no terminal"


@pytest.mark.parametrize("shown", [True, False])
def test_a_terminal_shows_title_count_and_note_and_is_left_clean(shown: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with progress_rows(console, shown=shown) as rows:
        task = rows.add_task("training [x]", total=30, completed=10, note="loss 0.123")
        rows.advance(task, 2)
        rows.refresh()
    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    if not shown:
        assert drawn == ""
        return
    assert all(text in drawn for text in ("training [x]", "12/30", "loss 0.123"))
    assert drawn.endswith("\x1b[2K"), "the line is erased at the end"


def test_a_bar_starts_where_an_earlier_run_ended() -> None:
    with progress_bar("training", 5, completed=2) as bar:
        bar.advance()
        (task,) = bar.rows.tasks
        assert (task.completed, task.total, task.fields["note"]) == (3, 5, "")
        bar.move_to(5, "loss 0.1")
        assert (task.completed, task.fields["note"]) == (5, "loss 0.1")
