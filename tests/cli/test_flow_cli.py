"""The command that follows what writes an answer."""

from __future__ import annotations

import re

import pytest
import torch
from typer.testing import CliRunner

from chainwright import Finding, load_model, tasks
from chainwright.cli import app
from chainwright.diagnose import FlowStages, LogitFlow
from chainwright.traces import Trace, write_traces


def run(*arguments: str):
    return CliRunner().invoke(app, ["flow", *arguments], env={"COLUMNS": "200"})


def test_a_prompt_with_marks(tmp_path):
    out = tmp_path / "flow"
    asked = ("--prompt", "buro neighbour", "--target", "duru", "--against", "kevi", "--out", str(out))
    result = run(*asked, "--entity", "buro", "--relation", "neighbour")
    assert result.exit_code == 0, result.output
    assert "Log-probability of 'duru'" in result.output and "Stages, buro neighbour" in result.output
    flow, stages = Finding.load(out / "flow-0"), Finding.load(out / "stages-0")
    assert isinstance(flow, LogitFlow) and isinstance(stages, FlowStages)
    assert (out / "report.html").is_file()
    again = run(*asked)
    assert again.exit_code == 2 and "pass --overwrite" in again.output


def test_a_token_of_a_trace(tmp_path):
    model, tokenizer = load_model("reasoner")
    problem = tasks.sample("parity", 3, 1, rendering="short")[0]
    wrong = Trace.from_text(
        tokenizer, problem.prompt, problem.chain.replace(problem.slots[0].value, "bob", 1), problem=problem
    )
    right = Trace.from_text(tokenizer, problem.prompt, problem.chain, problem=problem)
    write_traces(tmp_path / "t.parquet", [right, wrong])
    asked = ("--model", "reasoner", "--trace-file", str(tmp_path / "t.parquet"))
    result = run(*asked, "--trace", "2", "--out", str(tmp_path / "flow"))
    assert result.exit_code == 0, result.output
    flow, place = Finding.load(tmp_path / "flow" / "flow-0"), wrong.first_error_position
    with torch.no_grad():
        by_hand = model(wrong.input_ids[None, :place]).logits[0, -1].log_softmax(-1)[wrong.input_ids[place]]
    assert flow.logprob == pytest.approx(float(by_hand), abs=1e-4)
    for more, message in (
        (("--trace", "3"), "--trace must be from 1 to 2"),
        (("--trace", "1"), "No first error is known"),
        (("--trace", "2", "--token", "0"), "--token must be in the response"),
    ):
        result = run(*asked, *more, "--out", str(tmp_path / "other"))
        assert result.exit_code == 2 and message in " ".join(result.output.split()), result.output


def test_questions_of_a_world(tmp_path):
    result = run("--model", "world-e2", "--task", "two-hop", "-n", "2", "--out", str(tmp_path / "flow"))
    assert result.exit_code == 0, result.output
    for said in ("answered right", "answered wrong, what it said", "at the end of the stack"):
        assert said in result.output
    stages = [Finding.load(tmp_path / "flow" / f"stages-{i}") for i in range(3)]
    assert [stage.n_queries for stage in stages] == [2, 2, 2]


@pytest.mark.slow
def test_slots_of_chains(tmp_path):
    asked = ("--model", "reasoner", "--task", "clf", "--hops", "13", "-n", "2", "--n-problems", "6", "--quiet")
    result = run(*asked, "--out", str(tmp_path / "flow"))
    assert result.exit_code == 0, result.output
    assert "right results" in result.output and "first errors, the right token" in result.output


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ([], "Pass either --prompt with --target, or --task"),
        (["--prompt", "buro neighbour"], "--prompt needs --target"),
        (["--prompt", " ", "--target", "duru"], "The prompt is empty"),
        (["--prompt", "buro neighbour", "--target", "duru vupi"], "choose --span first"),
        (["--prompt", "buro neighbour", "--target", "Paris"], "not in this model's vocabulary"),
        (["--prompt", "buro neighbour", "--target", "duru", "--entity", "buro"], "the relation is not"),
        (["--prompt", "buro neighbour", "--target", "duru", "--span", "all"], "--span must be"),
        (["--task", "one-hop", "--target", "duru"], "--target would change nothing; they belong to --prompt"),
        (["--task", "three-hop"], "Did you mean 'two-hop'"),
        (["--task", "one-hop", "--order", "backwards"], "Unknown order 'backwards'"),
        (["--task", "one-hop", "-n", "0"], "-n must be at least 1"),
        (["--task", "one-hop", "--model", "reasoner"], "The model is not one of a made-up world"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_mistakes_are_one_sentence(asked, message, tmp_path):
    result = run(*asked, "--out", str(tmp_path / "flow"))
    assert result.exit_code == 2 and message in " ".join(result.output.split())
    assert not (tmp_path / "flow").exists()


def test_with_a_back_attention(tmp_path):
    asked = ("--task", "two-hop", "-n", "2", "--repair", "back-world", "--out", str(tmp_path / "flow"))
    result = run(*asked)
    assert result.exit_code == 0, result.output
    flow = Finding.load(tmp_path / "flow" / "flow-0")
    assert float(flow.between[0].abs()) > 0.01, "what the module adds stands between the embedding and layer 0"
    assert "added before it" in [row["component"] for row in flow.components(40)]
    plain = run(*asked[:4], "--out", str(tmp_path / "plain"))
    right = [int(re.search(r"(\d+) of 2000 right", r.output)[1]) for r in (plain, result)]
    assert right[0] < 20 < right[1]


def test_other_repairs_are_refused(tmp_path):
    asked = ("--model", "reasoner", "--task", "clf", "--repair", "tcr-reasoner", "--out", str(tmp_path / "flow"))
    result = run(*asked)
    said = " ".join(result.output.split())
    assert result.exit_code == 2 and "only a BackAttention can be attached; got a TCR" in said
