"""Every kind of study is made again from its folder alone, as it was begun by its command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chainwright import StepFlow, plugins
from chainwright._errors import BadInput
from chainwright.studies import Study, generation, manifest
from chainwright.studies.plan import Plan, plan_of
from command_line import call
from study_plans import files

PIVOTS = ("--samples", 3, "--temperature", 2.5, "--alternatives", 1, "--band", "0.1-0.9")


def as_begun(folder: Path) -> Study:
    """Return a study with its plan, made from the folder; it must be the study that is there."""
    study = Study.open(folder).with_plan(device="cpu")
    assert study.plan is not None
    manifest.check_same(folder, study.manifest, manifest.of_plan(study.plan))
    return study


def problem_set(folder: Path) -> Path:
    rows = [{"question": f"What is {n} plus {n}?", "answer": str(2 * n)} for n in range(5)]
    path = folder / "sums.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("kind", plugins.names("study"))
def test_every_kind_of_study_has_a_way_to_be_resumed(kind: str) -> None:
    plan = plan_of(kind)
    if kind not in ("squares",):  # one of the tests', which says how it is resumed instead
        assert plan.resumed.__func__ is not Plan.resumed.__func__  # type: ignore[attr-defined]


@pytest.mark.parametrize("completer", [(), ("--completer", "gold"), ("--completer", "reasoner")])
def test_a_search_of_tasks_resumes_to_the_same_bytes(tmp_path: Path, completer: tuple[str, ...]) -> None:
    asked = ("pivots", "-t", "llc", "--hops", "2", "-n", 4, *PIVOTS, *completer, "--device", "cpu")
    code, printed = call(*asked, "-o", tmp_path / "s", "--executor", "folder")
    assert code == 0 and f"chainwright study work {tmp_path / 's'}" in printed, printed
    as_begun(tmp_path / "s")
    if completer == ("--completer", "gold"):
        assert call(*asked, "-o", tmp_path / "whole", "-q")[0] == 0
        code, printed = call("study", "work", tmp_path / "s", "-q")
        assert code == 0 and "is finished; this worker computed" in printed
        units = Study.open(tmp_path / "s").units
        assert units == Study.open(tmp_path / "whole").units
        for unit in units:
            assert files(tmp_path / "s" / unit) == files(tmp_path / "whole" / unit)


def test_a_search_of_a_problem_set_resumes_unless_it_was_changed(tmp_path: Path) -> None:
    path = problem_set(tmp_path)
    more = ("--shots", 1, "-n", 3, "--device", "cpu")
    code, printed = call("pivots", "--problems", path, *PIVOTS, *more, "-o", tmp_path / "s", "--executor", "folder")
    assert code == 0, printed
    study = as_begun(tmp_path / "s")
    assert len(study.plan.asked) == 3 and len(study.plan.pool) == 5  # type: ignore[union-attr]
    path.write_text(path.read_text().replace("plus", "and"))
    code, printed = call("study", "run", tmp_path / "s")
    assert code == 2 and "sums.jsonl was changed since the study began, so it cannot be resumed with it" in printed


def test_a_search_of_traces_resumes_unless_the_file_was_changed(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    drawn = ("generate", "-t", "llc", "--hops", "2", "-n", 6, "--temperature", 2.5, "--device", "cpu")
    assert call(*drawn, "-o", path, "-q")[0] == 0
    more = ("--completer", "gold", "--device", "cpu")
    code, printed = call("pivots", "--traces", path, *PIVOTS, *more, "-o", tmp_path / "s", "--executor", "folder")
    assert code == 0, printed
    assert len(as_begun(tmp_path / "s").plan.asked) == 6  # type: ignore[union-attr]
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(BadInput, match=r"There is no file .*t\.parquet, whose traces this study is of; put it back"):
        as_begun(tmp_path / "s")
    path.write_bytes(content + b" ")
    with pytest.raises(BadInput, match=r"t\.parquet was changed since the study began"):
        as_begun(tmp_path / "s")


GENERATED = {
    "tasks": ("-t", "clf,llc", "--hops", "2,3", "-n", 3),
    "sampled": ("-t", "clf", "-n", 2, "--temperature", 1.5, "--top-p", 0.9, "--samples", 2, "--seed", 3, "--stop", "x"),
    "repaired": ("-t", "clf", "--hops", "2", "-n", 3, "--repair", "tcr-reasoner", "--batch-size", 2),
    "repaired twice": ("-t", "clf", "--hops", "2", "-n", 3, "--repair", "FLOW", "--repair", "tcr-reasoner"),
    "prompt": ("--prompt", "start 3", "--raw", "--max-new-tokens", 5),
    "shots": ("-t", "clf", "-n", 1, "--rendering", "natural", "--shots", 2, "--demo-hops", 1, "--max-new-tokens", 4),
}


@pytest.mark.parametrize("how", GENERATED)
def test_parts_of_traces_resume_from_their_folder_and_are_joined_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(generation, "ROWS", 4)
    StepFlow().save_pretrained(tmp_path / "flow")
    named = (tmp_path / "flow" if each == "FLOW" else each for each in GENERATED[how])
    asked = ("generate", *named, "--device", "cpu", "-q")
    assert call(*asked, "-o", tmp_path / "whole.parquet")[0] == 0
    real = generation.TracesPlan.compute

    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(generation.TracesPlan, "compute", stop)
        assert call(*asked, "-o", tmp_path / "t.parquet")[0] == 130
    parts = tmp_path / "t.parquet.parts"
    as_begun(parts)
    code, printed = call("study", "work", parts, "-q")
    assert code == 0 and "Every part is decoded; run the command that began them again" in printed, printed
    monkeypatch.setattr(generation.TracesPlan, "compute", stop)
    assert real is not stop and call(*asked, "-o", tmp_path / "t.parquet")[0] == 0, "nothing is decoded again"
    assert (tmp_path / "t.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_parts_of_a_problem_set_and_of_a_changed_repair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from chainwright.repair.base import Repair

    Repair.from_pretrained("tcr-reasoner").save_pretrained(tmp_path / "mine (1)")
    path = problem_set(tmp_path)

    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generation.TracesPlan, "compute", stop)
    asked = ("generate", "--problems", path, "-n", 2, "--repair", tmp_path / "mine (1)", "--device", "cpu", "-q")
    assert call(*asked, "-o", tmp_path / "t.parquet")[0] == 130
    as_begun(tmp_path / "t.parquet.parts")
    card = tmp_path / "mine (1)" / "README.md"
    card.write_text("another")
    with pytest.raises(BadInput, match=r"The repair .*mine \(1\) was changed since the study began"):
        as_begun(tmp_path / "t.parquet.parts")
