"""`chainwright models --check-families`: every kind of outcome, none of which ends the survey."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from chainwright._errors import BadInput
from chainwright.cli import _families
from chainwright.cli._families import Outcome, as_markdown, check_family, counts, model_types, tiny_model
from command_line import call


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "llama4_text", "gpt_oss"])
def test_types_that_work(kind: str) -> None:
    assert check_family(kind) == Outcome(kind, "works")


@pytest.mark.parametrize(("kind", "why"), [("bloom", "do not dispatch"), ("bert", "later tokens"), ("mamba", "none")])
def test_types_that_are_refused_by_name(kind: str, why: str) -> None:
    outcome = check_family(kind)
    assert outcome.verdict == "refused" and why in outcome.reason and kind in outcome.reason


def test_the_models_are_tiny_and_have_heads_that_matter() -> None:
    model = tiny_model("llama")
    assert sum(p.numel() for p in model.parameters()) < 10**6
    assert (model.config.num_hidden_layers, model.config.num_attention_heads) == (3, 4)
    assert model.dtype == torch.float32 and not model.training


def test_a_type_that_cannot_be_built_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(kind: str, **options: bool) -> Any:
        raise ZeroDivisionError("no heads\nat all")

    monkeypatch.setattr(_families, "_small_config", broken)
    assert check_family("llama") == Outcome("llama", "could not be built", "ZeroDivisionError: no heads")


def test_a_wrong_knockout_and_a_wrong_score_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(_families.KnockOut):
        def __init__(self, heads: Any):
            super().__init__({(layer, (head + 1) % 4) for layer, head in heads})

    with monkeypatch.context() as changed:
        changed.setattr(_families, "KnockOut", Wrong)
        outcome = check_family("llama")
    assert outcome.verdict == "differs" and outcome.reason.startswith("a knockout differs by")
    own = _families._log_probs
    monkeypatch.setattr(_families, "_log_probs", lambda logits, ids: own(logits.roll(1, -1), ids))
    assert check_family("llama").reason.startswith("score differs by")


def test_an_error_in_what_is_tried_is_an_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_families, "score", lambda *_: {}["missing"])
    assert check_family("llama") == Outcome("llama", "fails", "KeyError: 'missing'")


def test_the_command_prints_a_table_and_the_counts() -> None:
    code, printed = call("models", "--check-families", "--only", "gpt2,bloom")
    assert code == 0 and "gpt2" in printed and "works" in printed and "refused" in printed
    assert "2 model types: 1 works, 1 refused." in printed
    code, printed = call("models", "--check-families", "--only", "gpt2", "--markdown")
    assert code == 0 and "| type | verdict | reason | |---|---|---| | gpt2 | works | |" in printed


def test_options_that_do_not_fit_are_refused() -> None:
    for arguments, why in (
        (["models", "--only", "llama"], "--only and --markdown belong to --check-families"),
        (["models", "reasoner", "--check-families"], "--check-families builds models of its own"),
        (["models", "--check-families", "--only", "lama"], "--only takes model types that AutoModelForCausalLM knows"),
        (["models", "--check-families", "--only", ","], "got none"),
    ):
        code, printed = call(*arguments)
        assert code == 2 and why in printed


def test_all_types_are_tried_by_default() -> None:
    assert {"llama", "gpt2", "bloom"} < set(model_types()) and model_types("gpt2, llama") == ["gpt2", "llama"]
    with pytest.raises(BadInput, match="got nothing-like-it"):
        model_types("llama,nothing-like-it")


def test_the_counts_and_the_markdown_hold_what_came_of_each() -> None:
    outcomes = [Outcome("a", "works"), Outcome("b", "refused", "x|y (tried: a, b); use c."), Outcome("c", "works")]
    assert counts(outcomes) == "3 model types: 2 works, 1 refused."
    assert as_markdown(outcomes).splitlines()[2:] == ["| a | works |  |", r"| b | refused | x\|y |", "| c | works |  |"]
