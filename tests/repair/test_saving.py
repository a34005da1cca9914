"""A repair is a folder: saved, loaded, refused for another model, and refused when damaged."""

import json
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import chainwright.repair
from chainwright._errors import BadInput, OtherWeights
from chainwright._registry import load as load_registered
from chainwright._registry import names
from chainwright.cli import app
from chainwright.models import load
from chainwright.repair import TCR, EntropyDetector, Origin, RemoveAndResample, Repair, TCRConfig, TrainedDetector
from chainwright.repair.base import model_identity
from chainwright.repair.tcr._mlp import Perceptron
from chainwright.repair.tcr.selector import LightSelector, RandomSelector
from families import random_ids, tiny

HEADS = [(0, 1), (2, 3)]


def fitted(family: str = "llama") -> TCR:
    """Return a repair of random networks, made for the tiny model of a family."""
    torch.manual_seed(0)
    selector = LightSelector(Perceptron(2 * 48, 8, 3).eval())
    detector = TrainedDetector(Perceptron(2 * 48 + 4, 0, 1).eval(), 0.4)
    origin = Origin(model_identity(tiny(family)), [{"task": "clf", "gain": 0.25}], "Measured on nothing.")
    config = TCRConfig(n_votes=2, positions="last", scale=0.1, max_bytes=1000)
    return TCR(HEADS, selector, detector, config=config, layers=[0, -1], end_ids=[2], origin=origin)


def tokens(repair: Repair) -> list[int]:
    model, ids = tiny("llama"), random_ids(1, 9)
    with repair.attached(model):
        return model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None)[0].tolist()


def test_a_saved_repair_decodes_the_same(tmp_path: Path) -> None:
    repair = fitted()
    folder = repair.save_pretrained(tmp_path / "repair")
    again = Repair.from_pretrained(folder)
    assert isinstance(again, TCR) and again.settings() == repair.settings()
    assert again.origin == repair.origin and again.config == repair.config
    assert tokens(again) == tokens(repair) and again.cost.n_flagged == repair.cost.n_flagged > 0
    assert {p.name for p in folder.iterdir()} == {"repair.json", "repair.safetensors", "README.md"}
    card = (folder / "README.md").read_text()
    assert "| clf | 0.250 |" in card and "Measured on nothing." in card and "L0H1, L2H3" in card


def test_other_kinds_are_told_apart(tmp_path: Path) -> None:
    folder = RemoveAndResample(EntropyDetector(0.2)).save_pretrained(tmp_path / "removal")
    again = Repair.from_pretrained(folder)
    assert isinstance(again, RemoveAndResample) and again.detector == EntropyDetector(0.2)
    with pytest.raises(BadInput, match=r"holds a repair of kind 'remove-and-resample'; TCR reads: tcr\."):
        TCR.from_pretrained(folder)


def test_nothing_is_overwritten_unless_asked(tmp_path: Path) -> None:
    folder = fitted().save_pretrained(tmp_path / "repair")
    with pytest.raises(BadInput, match="exists; pass overwrite=True"):
        fitted().save_pretrained(folder)
    fitted().save_pretrained(folder, overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(BadInput, match="holds no repair, so it is not replaced"):
        fitted().save_pretrained(tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


@pytest.mark.parametrize("other", ["qwen3", "llama with more layers"])
def test_a_repair_made_for_another_model_is_refused(other: str) -> None:
    model = tiny("qwen3") if other == "qwen3" else tiny("llama", num_hidden_layers=4)
    with (
        pytest.raises(BadInput, match=r"tcr repair was made for .*llama, 3 layers x 4 heads.*, not for .*; fit"),
        fitted().attached(model),
    ):
        pass
    assert not model._forward_hooks


def test_weights_are_read_once_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    read, real = [], load.fingerprint
    monkeypatch.setattr(load, "fingerprint", lambda model: read.append(model) or real(model))
    repair, model, other = fitted(), tiny("llama"), tiny("llama")
    read.clear()
    for one in (model, model, other, other, model):
        repair.check_model(one)
    assert [one is model for one in read] == [True, False, True]


def test_other_weights_of_the_same_shape_are_warned_of() -> None:
    model, other = tiny("llama"), tiny("llama")
    with torch.no_grad():
        other.model.layers[0].self_attn.q_proj.weight[0, 0] += 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted().check_model(model)
        fitted().check_model(other.to(torch.bfloat16))  # fingerprints of another number type differ anyway
    with pytest.warns(OtherWeights, match=r"made for other weights than those of .*; fit one for this model"):
        fitted().check_model(other.to(torch.float32))
    unknown = fitted()
    unknown.origin = replace(unknown.origin, model={**unknown.origin.model, "fingerprint": None})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unknown.check_model(other)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "repair.safetensors").write_bytes(b"not tensors"), "is missing or damaged"),
        (lambda f: (f / "repair.safetensors").unlink(), "is missing or damaged"),
        (lambda f: (f / "repair.json").write_text("{"), "is no readable JSON"),
        (lambda f: (f / "repair.json").unlink(), "holds no repair"),
        (lambda f: _change(f, schema_version=99), "has repair schema version 99, this Chainwright reads 1"),
        (lambda f: _change(f, kind="nonsense"), "holds a repair of kind 'nonsense'"),
        (lambda f: _change(f, settings={}), "is damaged: its parts do not make a TCR"),
        (lambda f: _change(f, settings=None), "is damaged: its parts do not make a TCR"),
        (lambda f: _set(f, heads=5), r"do not make a TCR \(heads must be a list .*; got 5\); save or fetch it again"),
        (lambda f: _set(f, end_ids=["a"]), "end_ids must be a list of whole numbers"),
        (lambda f: _set(f, detector={"kind": "trained"}), r"do not make a TCR \('threshold' is missing\)"),
        (lambda f: _set(f, config={"n_vote": 3}), "Unknown setting of TCR 'n_vote'"),
        (lambda f: _change(f, origin=None), "do not make a TCR"),
        (lambda f: _retensor(f, lambda t: t.pop("detector.mean")), "a network has .* where .* is due"),
        (lambda f: _retensor(f, lambda t: t.update({"selector.last.bias": torch.zeros(7)})), "a network has"),
        (lambda f: _set(f, heads=[]), "at least one candidate head; the list of heads is empty"),
        (lambda f: _set(f, heads=[[0, 1]]), "its selector does not fit 1 heads and 2 layers"),
        (lambda f: _set(f, layers=[0, 1, 2, 0, 1]), "its detector does not fit 2 heads and 5 layers"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_sentence(tmp_path: Path, damage: object, words: str) -> None:
    folder = fitted().save_pretrained(tmp_path / "repair")
    damage(folder)
    with pytest.raises(BadInput, match=words) as error:
        Repair.from_pretrained(folder)
    assert "\n" not in str(error.value)


def test_what_a_model_does_not_have_is_refused(tmp_path: Path) -> None:
    folder = fitted().save_pretrained(tmp_path / "repair")
    _set(folder, layers=[0])  # half of what the networks read
    with pytest.raises(BadInput, match="its detector does not fit 2 heads and 1 layers"):
        Repair.from_pretrained(folder).check_model(tiny("llama"))
    outside = TCR([(0, 1), (3, 0)], RandomSelector(2), EntropyDetector())
    with pytest.raises(BadInput, match=r"silences head \(3, 0\), and the model has 3 layers of 4 heads"):
        outside.check_model(tiny("llama"))


def test_a_mistake_in_restore_is_not_called_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fitted().save_pretrained(tmp_path / "repair")

    def broken(settings: object, tensors: object, origin: object) -> TCR:
        return {}["a name that nobody saved"]

    monkeypatch.setattr(TCR, "restore", staticmethod(broken))
    with pytest.raises(KeyError, match="a name that nobody saved"):
        Repair.from_pretrained(folder)


@pytest.mark.parametrize("name", names("repair"))
def test_the_remedy_for_another_model_names_what_exists(name: str) -> None:
    kind = load_registered("repair", name)
    for command in re.findall(r"\(chainwright ([\w -]+)\)", kind.remedy):
        assert CliRunner().invoke(app, [*command.split(), "--help"]).exit_code == 0, command
    for attribute in re.findall(r"\((\w+(?:\.\w+)*)\)", kind.remedy):
        found = chainwright.repair
        for part in attribute.split("."):
            found = getattr(found, part)
    made = kind.__new__(kind)
    made.origin = Origin(model_identity(tiny("llama")))
    with pytest.raises(BadInput, match=re.escape(kind.remedy)):
        Repair.check_model(made, tiny("llama", num_hidden_layers=4))


def _retensor(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "repair.safetensors")
    change(tensors)
    save_file(tensors, folder / "repair.safetensors")


def _change(folder: Path, **changes: object) -> None:
    path = folder / "repair.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _set(folder: Path, **changes: object) -> None:
    _change(folder, settings={**json.loads((folder / "repair.json").read_text())["settings"], **changes})


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="Unknown repair 'nosuch'"):
        Repair.from_pretrained("nosuch")
    with pytest.raises(BadInput, match=r"There is no folder .*none; give one that save_pretrained wrote"):
        Repair.from_pretrained(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="holds no repair"):
        Repair.from_pretrained(tmp_path / "empty")


def test_no_heads_and_bad_settings_are_refused() -> None:
    with pytest.raises(BadInput, match="at least one candidate head; the list of heads is empty"):
        TCR([], RandomSelector(0), EntropyDetector())
    with pytest.raises(BadInput, match="no layers were given"):
        TCR(HEADS, LightSelector(Perceptron(4, 0, 3)), EntropyDetector())
    with pytest.raises(BadInput, match="decision='verify' needs a verifier"):
        TCR(HEADS, RandomSelector(2), EntropyDetector(), config=TCRConfig(decision="verify"))
    for bad in ({"n_votes": 0}, {"decision": "guess"}, {"max_bytes": 0}, {"positions": "first"}):
        with pytest.raises(BadInput, match=next(iter(bad))):
            TCRConfig(**bad)
    with pytest.raises(BadInput, match="tau must be an entropy"):
        EntropyDetector(-1.0)


def test_repairs_for_studies_cannot_be_saved(tmp_path: Path) -> None:
    from chainwright.repair import GoldDetector

    gold = TCR(HEADS, RandomSelector(2), GoldDetector({(1,): [2]}))
    with pytest.raises(BadInput, match="GoldDetector cannot be saved: its class is not registered as a detector"):
        gold.save_pretrained(tmp_path / "gold")
    assert not (tmp_path / "gold").exists()
