"""What a diagnosis asks by default, by the model's size, the machine, and the hops that an adapter was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig

from chainwright import BadInput
from chainwright.diagnose.heads.role_sweep import RolesConfig
from chainwright.models import load_model
from chainwright.models.load import LoadedModel
from chainwright.studies.diagnosis import DiagnoseConfig
from chainwright.studies.diagnosis.estimate import plan_diagnosis
from chainwright.studies.diagnosis.usual import SMALLER, said, trained_hops, usual_for


@pytest.fixture(scope="module")
def reasoner() -> LoadedModel:
    return load_model("reasoner", device="cpu")


@pytest.fixture
def large(tmp_path: Path) -> str:
    """Return a folder with the config of a model of 77 million parameters in its layers, and no weights."""
    config = LlamaConfig(
        vocab_size=100, hidden_size=768, intermediate_size=2048, num_hidden_layers=11, num_attention_heads=12
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path / "large")
    return str(tmp_path / "large")


def _adapter(folder: Path, *hops: dict[str, list[int]] | None) -> str:
    folder.mkdir()
    trainings = [{"settings": {} if one is None else {"hops": one}} for one in hops]
    (folder / "recipe.json").write_text(json.dumps({"base": "smollm2", "trainings": trainings}), encoding="utf-8")
    return str(folder)


def test_a_large_model_on_a_processor_is_asked_less_and_a_small_one_as_much_as_ever(large: str) -> None:
    assert usual_for(large, device="cpu") == (SMALLER, {})
    assert usual_for(large, device="cuda") == ({}, {})
    assert usual_for("reasoner", device="cpu") == ({}, {})


def test_an_adapter_is_asked_where_its_training_ends(tmp_path: Path) -> None:
    folder = _adapter(tmp_path / "a", {"parity": [1, 9]}, {"parity": [1, 5], "mdm": [1, 2], "chess": [1, 3]})
    assert trained_hops("reasoner", folder) == {"parity": (1, 5), "mdm": (1, 2)}
    assert usual_for("reasoner", folder).hops == {"parity": (5, 6, 8), "mdm": (2, 3, 5)}


def test_adapters_trained_elsewhere_or_on_other_problems_have_no_hops(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    assert trained_hops("reasoner", str(tmp_path / "bare")) == {}
    assert trained_hops("reasoner", _adapter(tmp_path / "maths", None)) == {}
    assert trained_hops("reasoner", _adapter(tmp_path / "none")) == {}
    assert trained_hops("reasoner") == {}


def test_what_is_asked_is_said() -> None:
    config = DiagnoseConfig(model="m", hops={"parity": (3, 5), "objc": (4,)}, **SMALLER)  # type: ignore[arg-type]
    lines = list(said(config))
    assert lines[0] == "10 problems at each hop count: Parity-NL 3, 5; ObjC 4."
    assert "up to 1 key error type per task, in 5 right and 5 wrong contexts" in lines[1] and "25%" in lines[1]
    assert not any("Heads" in line for line in said(config.replace(max_types=0)))


def test_a_plan_counts_what_is_asked(reasoner: LoadedModel) -> None:
    config = DiagnoseConfig(model="reasoner", hops={"clf": (3, 4), "llc": (3,)}, n=2, n_contexts=2)
    plan = plan_diagnosis(*reasoner, config)
    assert DiagnoseConfig.model_fields["measured"].default == RolesConfig().measured, "written twice, and the same"
    assert (plan.n_problems, plan.n_types) == (6, 4)
    assert min(plan.traces, plan.scores, plan.heads) > 0
    assert plan.seconds == plan.traces + plan.scores + plan.heads
    assert "to answer 6 problems" in plan.summary() and "up to 4 error types" in plan.summary()
    without = plan_diagnosis(*reasoner, config.replace(instruments=("accuracy",)))
    assert (without.scores, without.heads, without.n_types) == (0, 0, 0)
    assert plan_diagnosis(*reasoner, config.replace(max_types=0)).heads == 0


def test_a_plan_of_traces_is_refused(reasoner: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"question": "1 + 1?", "answer": "2"}\n', encoding="utf-8")
    config = DiagnoseConfig(model="reasoner", problems={"source": str(path)}, rendering="natural")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="estimates a diagnosis of tasks"):
        plan_diagnosis(*reasoner, config)
