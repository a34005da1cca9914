"""`chainwright study run | status | show | diff`, and the study file."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import study_plans
from chainwright._errors import BadInput
from chainwright.models.load import load_model
from chainwright.studies import Study
from chainwright.studies.diagnosis.diff import difference, paired, unpaired
from chainwright.studies.diagnosis.run import DiagnoseConfig
from chainwright.studies.diagnosis.toml import read_study_file, study_file_text
from command_line import call
from study_plans import files

FILE = """
model = "reasoner"
hops = { clf = [8, 13], parity = "13" }
n = 8
seeds = [0, 1]
n_contexts = 2
min_errors = 2
max_types = 1
"""


def written(folder: Path, text: str, name: str = "small.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished study, and what was printed."""
    folder = tmp_path_factory.mktemp("cli")
    code, printed = call("study", "run", written(folder, FILE), "-o", folder / "s")
    assert code == 0, printed
    return folder / "s", printed


def copied(ran: tuple[Path, str], folder: Path) -> Path:
    return Path(shutil.copytree(ran[0], folder))


def test_run_tells_what_is_done_and_ends_with_the_five_lines(ran: tuple[Path, str]) -> None:
    folder, printed = ran
    assert re.search(r"\[1/6\] Parity-NL, 13 hops, seed 0: 8 problems \(\d+ s, about \d+ s left\)", printed)
    assert re.search(r"\[13/13\] Scoring every token", printed) and "First errors" in printed
    assert "Where: over 2 tasks" in printed and "Reach:" in printed and "report.html" in printed
    assert (folder / "report.html").stat().st_size > 10_000


def test_run_goes_on_from_the_folder_and_from_the_file(ran: tuple[Path, str], tmp_path: Path) -> None:
    folder = copied(ran, tmp_path / "s")
    before = files(folder)
    for unit in ("scores/clf-008-0", "errors"):
        shutil.rmtree(folder / unit)
    state = json.loads((folder / "study.json").read_text())
    listed = dict.fromkeys(unit for unit in state["units"] if not unit.startswith("heads"))
    (folder / "study.json").write_text(json.dumps(state | {"is_complete": False, "units": listed}))
    shutil.rmtree(folder / "heads")
    (folder / "report.html").unlink()
    code, printed = call("study", "status", folder)
    assert code == 0 and "not finished" in printed and "11 done" not in printed and "missing: errors" in printed
    assert f"Resume it: chainwright study run {folder}" in printed
    assert call("study", "show", folder)[1].startswith(f"{folder} is not finished; these are its results so far.")
    code, printed = call("study", "run", folder)
    assert code == 0 and "12 of 13 units were finished before" in printed and "[14/14] First errors" in printed
    assert files(folder) == before
    code, printed = call("study", "run", written(tmp_path, FILE), "-o", folder, "-q")
    assert code == 0 and "Where:" in printed and files(folder) == before


def test_the_default_folder_has_the_name_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = 'model = "reasoner"\ntasks = ["clf"]\nhops = 2\nn = 1\ninstruments = ["accuracy"]\n'
    code, printed = call("study", "run", written(tmp_path, asked, "easy.toml"), "-q")
    assert code == 0 and "CLF" in printed and (tmp_path / "runs" / "easy" / "accuracy" / "result.json").is_file()
    assert not (tmp_path / "runs" / "easy" / "report.html").exists()
    code, printed = call("report", tmp_path / "runs" / "easy")
    assert code == 2 and "needs the instruments accuracy and errors, but errors is missing" in printed


def test_status_and_show_of_a_finished_study(ran: tuple[Path, str]) -> None:
    code, printed = call("study", "status", ran[0])
    assert code == 0 and re.search(r"diagnosis, finished; made with Chainwright 0\.2\.0 Model: reasoner", printed)
    assert re.search(r"Units: \d+ done.* Time: .* spent Locked by: none", printed) and "Resume it" not in printed
    code, printed = call("study", "show", ran[0])
    assert code == 0 and "Where:" in printed and "Accuracy" in printed and "traces/clf-013-1" in printed
    assert "clf: " in printed and "Erroneous-processing" in printed and "report.html" in printed


def test_what_was_skipped_is_said_with_the_reason(tmp_path: Path) -> None:
    asked = 'model = "reasoner"\nhops = { parity = 14 }\nn = 3\nmax_types = 0\n'
    code, printed = call("study", "run", written(tmp_path, asked), "-o", tmp_path / "s")
    assert code == 0 and re.search(r"Heads at Parity-NL, .*\(skipped: more than 0 key types\)", printed)
    assert re.search(r"skipped: heads/parity-.* \(more than 0 key types\)", call("study", "status", tmp_path / "s")[1])
    assert re.search(r"heads/parity-.*: skipped: more than 0 key types", call("study", "show", tmp_path / "s")[1])


def test_status_says_who_is_at_work_and_needs_no_lock(tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, study_plans.__file__, str(tmp_path / "s"), "1"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"go\n")
    process.stdin.flush()
    while not (tmp_path / "s" / "study.log").exists():
        time.sleep(0.02)
    code, printed = call("study", "status", tmp_path / "s")
    assert code == 0 and f"Locked by: process {process.pid} on " in printed and "Resume it" not in printed
    assert call("study", "show", tmp_path / "s")[0] == 0
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    code, printed = call("study", "status", tmp_path / "s")
    assert "Locked by: none" in printed and f"Resume it: python squares.py {tmp_path / 's'}" in printed
    code, printed = call("study", "run", tmp_path / "s")
    assert code == 2 and "cannot be resumed from its folder alone; resume it with: python squares.py" in printed
    assert "{folder}" not in printed


def test_damage_is_one_sentence_with_the_remedy(ran: tuple[Path, str], tmp_path: Path) -> None:
    folder = copied(ran, tmp_path / "s")
    before = files(folder)
    shutil.rmtree(folder / "traces" / "clf-013-1")
    code, printed = call("study", "status", folder)
    assert code == 0 and "1 damaged" in printed and f"Resume it: chainwright study run {folder} --recompute" in printed
    for command in (["run", folder], ["show", folder], ["diff", folder, ran[0]]):
        code, printed = call("study", *command)
        assert code == 2 and re.search(r"Unit traces/clf-013-1 of .* is damaged: .*unit\.json is missing", printed)
        assert f"chainwright study run {folder} --recompute" in printed
    code, printed = call("report", folder)
    assert code == 2 and "is damaged" in printed
    assert call("study", "run", folder, "--recompute", "-q")[0] == 0
    assert files(folder) == before


def test_a_full_disk_while_the_report_is_written(
    ran: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chainwright.report import page

    folder = copied(ran, tmp_path / "s")
    before = files(folder)
    (folder / "report.html").unlink()
    real = Path.write_text

    def full(self: Path, *args: object, **kwargs: object) -> int:
        if "report.html" in self.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, *args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        code, printed = call("study", "run", folder, "-q")
    assert code == 2 and "The study is finished, but not its report. Cannot write" in printed
    assert "No space left on device" in printed and f"`chainwright report {folder}` writes the report" in printed
    assert Study.open(folder).is_complete and not (folder / "report.html").exists()
    assert page.write_report is not None and call("report", folder)[0] == 0
    assert files(folder) == before


def test_diff_of_a_study_with_itself_and_with_another_seed(ran: tuple[Path, str], tmp_path: Path) -> None:
    code, printed = call("study", "diff", ran[0], ran[0])
    assert code == 0 and "The same settings and model." in printed and "16 shared" in printed and "+0.00" in printed
    code, _ = call("study", "run", written(tmp_path, FILE.replace("[0, 1]", "[7]")), "-o", tmp_path / "b", "-q")
    assert code == 0
    code, printed = call("study", "diff", ran[0], tmp_path / "b")
    assert code == 0 and "seeds: [0, 1] in A, [7] in B" in printed and "16 and 8" in printed
    assert "Heads at " in printed and "First errors" in printed


def test_diff_pairs_the_same_problems(ran: tuple[Path, str], tmp_path: Path) -> None:
    """Another model on the same problems: the table is what counting by hand gives."""
    from chainwright.studies.diagnosis import open_diagnosis

    model, tokenizer = load_model("reasoner")
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.mul_(0.9)
    config = DiagnoseConfig(model="reasoner", hops={"parity": (13,), "clf": (8, 13)}, n=8, seeds=(0, 1), max_types=0)
    from chainwright.studies.diagnosis import run_diagnosis

    other = run_diagnosis(model, tokenizer, config, tmp_path / "b", progress=False)
    found = difference(ran[0], tmp_path / "b")
    assert any(line.startswith("model.fingerprint: ") for line in found.settings)
    cell = next(c for c in found.cells if (c.measure, c.task, c.hops) == ("chains", "clf", 13))
    right = [
        [t.first_error is None for t in d.traces if t.problem and (t.problem.task, t.problem.hops) == ("clf", 13)]
        for d in (open_diagnosis(ran[0]), other)
    ]
    assert cell.problems == "16 shared" and cell.a == sum(right[0]) / 16 and cell.b == sum(right[1]) / 16
    assert cell.difference == pytest.approx((sum(right[1]) - sum(right[0])) / 16)
    assert cell.low is not None and cell.high is not None and cell.low <= cell.difference <= cell.high


def test_intervals_of_differences() -> None:
    """Newcombe's example (56 of 70 against 48 of 80): 0.0524 to 0.3339; Agresti and Min by hand."""
    first, second = [True] * 48 + [False] * 32, [True] * 56 + [False] * 14
    assert unpaired(first, second) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    pairs = [(True, True)] * 6 + [(False, True)] * 3 + [(True, False)] + [(False, False)] * 2
    # lost 1.5, won 3.5 of 14: middle 2/14, spread 1.96 sqrt(5 - 4/14) / 14
    assert paired(pairs) == pytest.approx((2 / 12, 2 / 14 - 0.30396, 2 / 14 + 0.30396), abs=1e-4)
    assert paired([(True, True)] * 5)[0] == 0.0


def test_the_example_of_the_docs_is_the_one_that_is_shipped() -> None:
    root = Path(__file__).parents[2]
    docs = (root / "docs" / "studies.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```toml\n(.*?)```", docs, re.DOTALL)
    assert text == (root / "examples" / "study.toml").read_text(encoding="utf-8")
    asked = read_study_file(root / "examples" / "study.toml")
    assert asked.hops == {"parity": (12, 13, 14), "clf": (10, 13), "moas": (12,)} and asked.seeds == (0, 1)
    rows = re.findall(r"^\| (`.*?) \|", docs.partition("## Keys")[2], re.MULTILINE)
    named = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    assert named == set(DiagnoseConfig.model_fields) | {"tasks"}


def test_the_study_file_of_a_report_asks_for_the_same_diagnosis(tmp_path: Path) -> None:
    plain = {"model": 'a "model"', "hops": {"parity": (4, 8), "clf": (5,)}, "rendering": "short"}
    for more in (
        {},
        {"n": 7, "seeds": (3, 4), "temperature": 0.5, "repair": "C:\\x", "min_errors": 3, "dtype": "bfloat16"},
    ):
        config = DiagnoseConfig(**plain, **more)
        again = read_study_file(written(tmp_path, study_file_text(config)))
        assert again.record() == config.record()
    text = study_file_text(DiagnoseConfig(model="reasoner", hops={"parity": (4, 8)}, rendering="short"))
    assert text == 'model = "reasoner"\nrendering = "short"\n\n[hops]\n"parity" = [4, 8]\n', "no more than it must"


BAD_FILES = [
    ('mdoel = "reasoner"', r"Unknown key in .*bad\.toml: 'mdoel'; known: model, .*Did you mean 'model'\?"),
    ('model = "reasoner"\nseed = 3', r"Unknown key in .*: 'seed'; .*Did you mean 'seeds'\?"),
    ('model = "reasoner"\n[heads]\nx = 1', r"Unknown key in .*: 'heads'"),
    ("n = 3", r"bad\.toml must name a model, such as model = \"reasoner\"; got None"),
    ("model = 3", r"must name a model, .*got 3"),
    ('model = "reasoner"\nn = "ten"', r"bad\.toml: n must be a whole number from 1; got 'ten'"),
    ('model = "reasoner"\nn = 2.5', r"n must be a whole number from 1; got 2\.5"),
    ('model = "reasoner"\nseeds = 3', r"seeds must be a list of different whole numbers; got 3"),
    ('model = "reasoner"\ntemperature = -1', r"temperature must be 0 \(greedy\) or a positive number; got -1"),
    ('model = "reasoner"\nrendering = "long"', r"--rendering must be auto, short or natural; got 'long'"),
    ('model = "reasoner"\nrendering = 1', r"rendering must be a text; got 1"),
    ('model = "reasoner"\ntasks = ["sudoku"]', r"Unknown task 'sudoku'"),
    ('model = "reasoner"\ntasks = 3', r"tasks must be a list of names, or \"all\"; got 3"),
    ('model = "reasoner"\nhops = "ten"', r"whole numbers from 1.*got 'ten'"),
    ('model = "reasoner"\nhops = [1.5]', r"Hops are given as \"4-10\", 12 or \[4, 8, 12\], .*got \[1\.5\]"),
    ('model = "reasoner"\nhops = { clf = true }', r"Hops are given as .*got True"),
    (
        'model = "reasoner"\ntasks = ["clf"]\nhops = { parity = 3 }',
        r"hops names 'parity', which is not among the tasks",
    ),
    ('model = "reasoner"\ninstruments = ["steps?"]', r"Unknown instrument 'steps\?'"),
    (
        'model = "reasoner"\ninstruments = "errors"',
        r"instruments must be a list of instruments, such as accuracy, errors, heads",
    ),
    ('model = "reasoner"\nbatch_size = 0', r"batch_size must be a whole number from 1, or none; got 0"),
    ('model = "reasonr"\nrendering = "short"', r"Unknown model 'reasonr'.*Did you mean 'reasoner'\?"),
    ("model = reasoner", r"bad\.toml is no readable TOML: .*line 1"),
    ("\x00", r"is no readable TOML"),
]


@pytest.mark.parametrize(("text", "says"), BAD_FILES, ids=[text.replace("\n", " ") for text, _ in BAD_FILES])
def test_a_mistake_in_a_study_file_is_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    code, printed = call("study", "run", written(tmp_path, text, "bad.toml"), "-o", tmp_path / "s")
    assert code == 2 and re.search(says, printed), printed
    assert not (tmp_path / "s").exists()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert re.search(
        r"Cannot read the study file .*none\.toml: No such", call("study", "run", tmp_path / "none.toml")[1]
    )
    (tmp_path / "latin.toml").write_bytes(b'model = "\xff"')
    assert "is no readable TOML" in call("study", "run", tmp_path / "latin.toml")[1]
    (tmp_path / "empty").mkdir()
    for command in ("run", "status", "show"):
        code, printed = call("study", command, tmp_path / "empty")
        assert code == 2 and "holds no study (there is no study.json in it)" in printed
    code, printed = call("study", "run", tmp_path / "empty", "-o", tmp_path / "x")
    assert code == 2 and "it is resumed in place, so drop --out" in printed


def test_what_a_study_file_may_say(tmp_path: Path) -> None:
    def read(text: str) -> DiagnoseConfig:
        return read_study_file(written(tmp_path, 'model = "reasoner"\n' + text))

    assert read("").cells() == read('tasks = "all"').cells() and len(read("").hops) == 7
    assert read("").rendering == "short" and read('rendering = "natural"').hops["clf"] == (10, 20, 30)
    assert read('tasks = ["clf", "parity"]\nhops = "4-6"').hops == {"clf": (4, 5, 6), "parity": (4, 5, 6)}
    assert read("[hops]\nclf = [9, 3, 9]\nParity = 2").hops == {"clf": (3, 9), "parity": (2,)}
    assert read('tasks = ["clf", "mdm"]\nhops = { clf = 3 }').hops == {"clf": (3,), "mdm": (1, 2, 3, 4)}
    asked = read('n = 3\nseeds = [4, 5]\ntemperature = 1\ninstruments = ["accuracy"]\ndtype = "bfloat16"')
    assert (asked.n, asked.seeds, asked.temperature, asked.instruments, asked.dtype) == (
        3, (4, 5), 1, ("accuracy",), "bfloat16"
    )  # fmt: skip
    with pytest.raises(BadInput):
        read("tasks = []\n")


def test_studies_of_other_kinds_go_on_by_their_own_command_or_from_their_folder(tmp_path: Path) -> None:
    Study.make(tmp_path / "s", study_plans.Squares())
    code, printed = call("study", "run", tmp_path / "s")
    assert (
        code == 2 and "'squares' cannot be resumed from its folder alone; resume it with: python squares.py" in printed
    )
    code, printed = call("study", "run", tmp_path / "s", "--overwrite")
    assert code == 2 and "--overwrite starts a study again, which only the command that made" in printed
