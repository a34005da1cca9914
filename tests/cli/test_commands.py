"""How the command line is put together: commands from the registry, options from configs, names that exist."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
import typer

import chainwright
from chainwright import _registry
from chainwright.cli._command import expanded
from chainwright.repair.tcr.config import CandidateConfig, ClassifierConfig, FitConfig, FitProblems
from chainwright.reproduce.tcr.config import ReproduceTCRConfig
from chainwright.studies.config import DecodeSettings
from chainwright.studies.diagnosis.config import DiagnoseConfig
from command_line import call

COMMANDS = _registry.names("command")
COMMAND = r"(?<!from )(?<![\w./])chainwright ([a-z][\w-]*)(?: ([a-z][\w-]*))?"
SOURCES = Path(chainwright.__file__).parent


def test_every_command_has_a_file_of_its_name() -> None:
    cli = files("chainwright.cli")
    for name in COMMANDS:
        words = name.replace("-", "_").split(".")
        assert cli.joinpath(*words[:-1], f"{words[-1]}.py").is_file() or cli.joinpath(f"{words[0]}.py").is_file(), name


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_is_printed(name: str) -> None:
    code, printed = call(*name.split("."), "--help")
    assert code == 0
    if printed.startswith("usage: lm-eval"):
        return  # another program's
    assert "Show this message and exit" in printed
    for word in ("left out", "goes on", "gone on", "mend", "nobody", "anew"):
        assert word not in printed, word


def test_every_option_has_a_help_text() -> None:
    for name in COMMANDS:
        for parameter in _parameters(name):
            assert parameter.help, f"{name} {parameter.name}"


def _parameters(name: str) -> list[typer.core.TyperOption]:
    from chainwright.cli._command import built

    command = built(name, _registry.load("command", name))
    return [p for p in command.params if getattr(p, "help", "Show this message and exit.") != "help"]


def test_options_of_one_flag_have_one_help_text() -> None:
    """The exceptions mean something else, or mean it under a condition that they name."""
    other = {
        "-o",
        "--set",
        "--n-problems",
        "-n",
        "--task",
        "--repair",
        "--model",
        "--hops",
        "--plan",
        "--rendering",
        "--seed",
        "--decision",
        "--prompt",
        "--traces",
        "--samples",
        "--temperature",
        "--top-p",
        "--max-new-tokens",
        "--kind",
        "--detector",
        "--positions",
        "--contexts",
        "--lessons",
        "--source",
    }
    texts: dict[str, set[str]] = {}
    for name in COMMANDS:
        for parameter in _parameters(name):
            for flag in set(parameter.opts) - other - {"--out", "-m", "-t"}:
                if not name.startswith(("train", "plan")) or flag not in ("--seed", "--device", "--workers"):
                    texts.setdefault(flag, set()).add(str(parameter.help))
    assert {flag: found for flag, found in texts.items() if len(found) > 1} == {}


def test_defaults_are_those_of_the_configs() -> None:
    def defaults(name: str) -> dict[str, object]:
        return {option: p.default for p in _parameters(name) for option in p.opts}

    asked = defaults("diagnose")
    fields = DiagnoseConfig.model_fields
    assert asked["-n"] is None and asked["--n-contexts"] is None and asked["--max-types"] is None
    assert asked["--n-maps"] == fields["n_maps"].default
    fit, study = defaults("fit.tcr"), defaults("reproduce.tcr")
    assert (fit["-n"], fit["--seed"], fit["--task"]) == (FitProblems().n, FitProblems().seed, FitProblems().task)
    assert study["--fit-n"] == FitProblems().n and study["--decision"] == fit["--decision"]
    seeds = ReproduceTCRConfig.model_fields["seeds"].default
    assert study["--seeds"] == ",".join(map(str, seeds)) == defaults("reproduce.stepflow")["--seeds"]
    assert fit["--votes"] is FitConfig().n_votes and fit["--max-heads"] == CandidateConfig().max_heads
    assert fit["--selector-lr"] == ClassifierConfig().lr and fit["--selector-epochs"] == ClassifierConfig().n_epochs
    for name in ("generate", "evaluate"):
        assert defaults(name)["--temperature"] == DecodeSettings().temperature


def test_help_does_not_wait_for_pytorch() -> None:
    helped = ([], ["reproduce"], ["fit"], ["diagnose"], ["fit", "tcr"], ["reproduce", "tcr"])
    for words in (["--version"], *([*words, "--help"] for words in helped)):
        check = (
            "import sys\nfrom typer.testing import CliRunner\nfrom chainwright.cli import app\n"
            f"assert CliRunner().invoke(app, {words}).exit_code == 0\nprint('torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
        assert done.stdout == "False\n", (words, done.stderr)


def test_the_version_is_printed() -> None:
    assert call("--version") == (0, f"chainwright {chainwright.__version__} ")


def test_unknown_commands_are_refused_with_a_suggestion() -> None:
    code, printed = call("diagnos")
    assert code == 2 and "No such command 'diagnos'" in printed and "diagnose" in printed
    code, printed = call("fit", "trc")
    assert code == 2 and "No such command 'trc'" in printed


def test_a_command_of_the_running_program_is_found_and_its_mistakes_are_one_sentence() -> None:
    from chainwright._errors import BadInput

    @_registry.register("command", "fit.mine")
    def mine(size: int = 3) -> None:
        """Fit a repair of one's own."""
        raise BadInput(f"Size {size} is too small.")

    try:
        assert "Fit a repair of one's own." in call("fit", "--help")[1]
        assert call("fit", "mine", "--size", 2) == (2, "error: Size 2 is too small. ")
    finally:
        _registry._live.pop(("command", "fit.mine"))
        _registry._owners.pop(("command", "fit.mine"))


def test_expanded_commands_keep_the_order_of_their_options() -> None:
    import inspect

    from chainwright.cli.demo import demo

    assert list(inspect.signature(expanded(demo)).parameters) == ["out_folder", "problems__n", "overwrite"]


def test_every_command_that_is_named_in_a_string_exists() -> None:
    known = {tuple(name.split(".")) for name in COMMANDS}
    groups = {name[:1] for name in known if len(name) > 1}
    named = list(_named_commands())
    assert len(named) > 10
    for place, first, second in named:
        assert (first,) in known or ((first,) in groups and (second == "" or (first, second) in known)), place


def _named_commands() -> Iterator[tuple[str, str, str]]:
    """Yield where `chainwright x y` is written in a string of the package, with its two words."""
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for match in re.finditer(
                    r"(?<!from )(?<![\w./])chainwright ([a-z][\w-]*)(?: ([a-z][\w-]*))?", node.value
                ):
                    yield f"{path}: {match[0]}", match[1], match[2] or ""


BAD = [
    (["models", "reasonr"], "Unknown model 'reasonr'"),
    (["tasks", "clf", "--hops", "0"], "hop"),
    (["tasks", "clf", "--rendering", "long"], "rendering"),
    (["compare", "a.parquet"], "needs two trace files"),
    (["evaluate", "--traces", "x.txt"], "There is no file x.txt"),
    (["diagnose", "--max-types", "-1"], "max_types must be a whole number from 0; got -1"),
    (["diagnose", "--n-contexts", "0"], "n_contexts must be a whole number from 1; got 0"),
    (["diagnose", "-n", "0"], "n must be a whole number from 1; got 0"),
    (["diagnose", "--n-maps", "0"], "n_maps must be a whole number from 1; got 0"),
    (["demo", "-n", "0"], "n must be a whole number from 1; got 0"),
    (["study", "run", "none.toml"], "Cannot read the study file"),
    (["study", "show", "none"], "holds no study"),
    (["study", "diff", "none", "none"], "holds no study"),
    (["train", "world", "--set", "n_steps=0"], "n_steps must be"),
    (["train", "compass", "--set", "lr=fast"], "lr must be"),
    (["train", "iteration", "--task", "sums"], "sums"),
    (["train", "arithmetic", "--set", "d_mlp"], "--set takes name=value"),
    (["fit", "tcr", "--decision", "guess", "-o", "new"], "decision"),
    (["fit", "tcr", "-n", "0", "-o", "new"], "n must be a whole number from 1; got 0"),
    (["fit", "tcr", "--cover", "all", "-o", "new"], "cover"),
    (["fit", "back-attention", "--source", "first", "-o", "new"], "--source takes different whole numbers"),
    (["fit", "back-attention", "--targets", "top", "-o", "new"], "--targets takes different whole numbers"),
    (["fit", "back-attention", "--set", "n_steps=0", "-o", "new"], "n_steps must be a whole number from 1; got 0"),
    (["reproduce", "tcr", "--seeds", "1,1"], "--seeds takes different whole numbers"),
    (["reproduce", "tcr", "--decision", "guess"], "Unknown decision 'guess'"),
    (["reproduce", "stepflow", "--tune-n", "0"], "tune_n"),
    (["reproduce", "back-attention", "--set", "n=0"], "n must be"),
    (["reproduce", "iteration-heads", "--profile", "slow"], "Unknown profile 'slow'"),
]


@pytest.mark.parametrize(("words", "says"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_input_is_one_sentence_and_exit_code_2(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, printed = call(*words)
    assert code == 2 and says in printed and "Traceback" not in printed, printed
    assert list(tmp_path.iterdir()) == []
