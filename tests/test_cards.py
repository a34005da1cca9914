"""The cards of the bundled models and repairs: their code runs as pasted, and gives the figures that they print."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from chainwright import Repair, generate, load_model, tasks
from chainwright.cli import app
from chainwright.evaluation.accuracy import Accuracy, evaluate
from chainwright.lab import two_hop
from chainwright.lab.arithmetic import ArithmeticConfig, accuracies, wrong_by_signs
from chainwright.lab.knowledge import KnowledgeConfig, known_compositions, read_recipe
from chainwright.models.load import BUNDLED
from chainwright.reproduce.back_real.config import ReproduceBackRealConfig
from chainwright.reproduce.back_real.problems import outcome, parts_of
from chainwright.tasks import Problem
from chainwright.tasks.arithmetic import held_out_composites
from chainwright.tasks.cells import choose_cells, sample_cells
from chainwright.tasks.knowledge import Split, World, category, questions
from chainwright.traces import Trace

REPAIRS = Path(__file__).parent.parent / "src/chainwright/repair/bundled"
_PARTS = {
    "held-out compositions": "held_out",
    "compositions with a new first fact": "new_first",
    "compositions with a new second fact": "new_second",
    "compositions of two new facts": "new_both",
}


def card(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def rows(text: str, n_columns: int) -> list[list[str]]:
    """Return the cells of a card's tables with so many columns, without the heads."""
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return [
        row
        for row, before in zip(cells, [[""], *cells], strict=False)
        if len(row) == n_columns and row[0].strip("-") and row[0] not in ("questions", "task", "measure", "lines")
    ]


def run_snippet(name: str, problems: Sequence[Problem]) -> list[Trace]:
    """Run the code of a repair's card as pasted, with its name and problems filled in, and return its traces."""
    (code,) = re.findall(r"```python\n(.*?)```", card(REPAIRS / name), re.DOTALL)
    names: dict[str, object] = {"problems": problems}
    exec(compile(code.replace("this folder or Hub id", name), f"{name}/README.md", "exec"), names)
    return names["traces"]  # type: ignore[return-value]


@cache
def recipe_of(model: str) -> KnowledgeConfig:
    settings = {key: value for key, value in read_recipe(model).items() if key in KnowledgeConfig.model_fields}
    return KnowledgeConfig(**settings)


def asked_of(model: str, words: str) -> list[Problem]:
    """Return the questions that a card's row is about."""
    recipe = recipe_of(model)
    known, parts = known_compositions(recipe)
    if words in ("single facts", "one hop"):
        return questions(recipe.world, recipe.world.facts, "bare")
    every = recipe.world.compositions
    of = {"compositions learned by heart": known, "all compositions": every, "two hops, bare order": every}
    chosen = of[words] if words in of else getattr(parts, _PARTS[words])
    return questions(recipe.world, two_hop.drawn(chosen, 500), "bare")


def share(traces: Sequence[Trace]) -> str:
    return f"{sum(bool(t.is_correct) for t in traces) / len(traces):.3f}"


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(
            row, id=row[0], marks=[] if row[0] in ("single facts", "held-out compositions") else pytest.mark.slow
        )
        for row in rows(card(REPAIRS / "back-world"), 3)
    ],
)
def test_back_world(row: list[str]) -> None:
    words, alone, repaired = row
    problems = asked_of("world", words)
    assert share(run_snippet("back-world", problems)) == repaired
    assert share(generate(*load_model("world"), problems, progress=False)) == alone


def test_the_table_of_back_smollm2_is_what_its_study_measured() -> None:
    figures = Repair.from_pretrained("back-smollm2").origin.figures
    assert rows(card(REPAIRS / "back-smollm2"), 3) == [
        [row["questions"], f"{row['model alone']:.3f}", f"{row['repaired']:.3f}"] for row in figures
    ]
    assert len(figures) == 3


@pytest.mark.real
def test_back_smollm2() -> None:
    """The held-out questions of its study, answered by the code of its card."""
    pytest.importorskip("gguf")
    held_out = parts_of(ReproduceBackRealConfig(), 0).held_out
    for words, alone, repaired in rows(card(REPAIRS / "back-smollm2"), 3)[:2]:
        problems = held_out[words.partition(" (")[0]]
        right = sum(outcome(t.problem, t.response or "") == "right" for t in run_snippet("back-smollm2", problems))
        assert f"{right / len(problems):.3f}" == repaired > alone


@pytest.mark.parametrize("name", ["tcr-reasoner", "tcr-reasoner-lora"])
def test_the_table_of_a_tcr_card_is_what_its_fit_measured(name: str) -> None:
    """The fit measures while it forces right prefixes on its tune lessons, which a card's code does not do."""
    measured = {row["measure"]: row["value"] for row in Repair.from_pretrained(name).origin.figures}
    assert {words: value for words, value in rows(card(REPAIRS / name), 2)} == {
        words: f"{value:.3f}" for words, value in measured.items()
    }
    assert len(measured) > 10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tcr-reasoner", "tcr-reasoner-lora"])
def test_the_code_of_a_tcr_card_gains_chains(name: str) -> None:
    problems = tasks.sample("clf", hops=13, n=20, seed=1)
    before = generate(*load_model("reasoner"), problems, progress=False)
    assert sum(bool(t.is_exact) for t in run_snippet(name, problems)) > sum(bool(t.is_exact) for t in before)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        pytest.param(name, row, id=f"{name}, {row[0]}")
        for name in ("world", "world-e2")
        for row in rows(card(BUNDLED / name), 6)
    ],
)
def test_worlds(name: str, row: list[str]) -> None:
    problems = asked_of(name, row[0])
    traces = generate(*load_model(name), problems, progress=False)
    assert share(traces) == row[1]
    if row[2]:
        said = [(t.response or "").split()[:1] for t in traces]
        counts = Counter(category(p, words[0] if words else "") for p, words in zip(problems, said, strict=True))
        got = [f"{counts[kind] / len(problems):.3f}" for kind in ("e2", "r2(e1)", "e1", "unknown")]
        assert got == row[2:]


def test_what_the_card_of_world_says_of_a_repair() -> None:
    (percent,) = re.findall(r"`back-world` \w+ (\d+)% of its held-out compositions", card(BUNDLED / "world"))
    (row,) = (row for row in rows(card(REPAIRS / "back-world"), 3) if row[0] == "held-out compositions")
    assert percent == f"{100 * float(row[2]):.0f}"


def test_arithmetic() -> None:
    model, tokenizer = load_model("arithmetic")
    config, text = ArithmeticConfig(), card(BUNDLED / "arithmetic")
    found = accuracies(model, tokenizer, config)
    printed = [tuple(map(int, re.findall(r"\d+", row[1])[:2])) for row in rows(text, 2)[1:]]
    assert printed == [(sum(right), len(right)) for right in found.values()]
    wrong = {signs: (n, of) for signs, (n, of) in wrong_by_signs(config, found["three, held out"]).items() if n}
    said = re.findall(r"`([-+*] then\s[-+*])`\s(\d+)\sof\s(\d+)", text)
    assert {re.sub(r"\s", " ", signs): (int(n), int(of)) for signs, n, of in said} == wrong
    _, held_out = held_out_composites(share=config.held_out_share, seed=config.split_seed)
    traces = generate(model, tokenizer, held_out[:200], progress=False)
    assert [bool(t.is_correct) for t in traces] == found["three, held out"][:200]


def cells_of(table: Accuracy) -> dict[tuple[str, int], list[str]]:
    """Return what a card prints of each (task, hops)."""
    return {
        (tasks.title(row["task"]), row["hops"]): [
            f"{row['accuracy']:.2f}",
            f"{row['low']:.2f}-{row['high']:.2f}",
            f"{row['exact']:.2f}",
            f"{row['exact_low']:.2f}-{row['exact_high']:.2f}",
        ]
        for row in table.rows
        if row["hops"] is not None
    }


def evaluated(command: str) -> Accuracy:
    """Return what an evaluate command of a card prints, from the same problems."""
    words = command.split()
    options = {words[i]: words[i + 1] for i in range(2, len(words), 2)}
    cells = choose_cells(options["--task"], options.get("--hops"), "short")
    problems = sample_cells(cells, int(options["-n"]), int(options["--seed"]), "short")
    assert CliRunner().invoke(app, ["evaluate", "--help"]).exit_code == 0
    return evaluate(generate(*load_model(options["--model"]), problems, seed=int(options["--seed"]), progress=False))


@pytest.mark.slow
def test_compass() -> None:
    text = card(BUNDLED / "compass")
    (command,) = re.findall(r"`(chainwright evaluate [^`]*?)`", text.replace("\n", " "))
    printed = {("Compass", int(row[0])): row[1:] for row in rows(text, 5)}
    assert cells_of(evaluated(command)) == {
        (tasks.title("compass"), hops): values for (_, hops), values in printed.items()
    }


@pytest.mark.slow
def test_reasoner() -> None:
    text = card(BUNDLED / "reasoner")
    makefile = (Path(__file__).parent.parent / "Makefile").read_text(encoding="utf-8")
    (command,) = re.findall(r"^card:.*\n\t\$\(BIN\)/(chainwright evaluate .*)$", makefile, re.MULTILINE)
    printed = {(row[0], int(row[1])): row[2:] for row in rows(text, 6)}
    assert cells_of(evaluated(command)) == printed


def test_a_world_is_that_of_its_recipe() -> None:
    assert recipe_of("world").world == World() and isinstance(known_compositions(recipe_of("world"))[1], Split)
