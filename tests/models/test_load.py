"""Loading: what is asked for comes back ready to use, and every bad input is refused in one sentence, offline."""

import json
import pickle
import shutil
import socket
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from chainwright import _registry
from chainwright._errors import BadInput, SlowDtype, UnsupportedModel
from chainwright.models import anatomy, bundled_models, load_model, provenance
from chainwright.models.load import load_tokenizer
from chainwright.models.sources import ModelSource, known_models
from chainwright.plugins import register
from chainwright.prompts import rendering_for
from families import FAMILIES, random_ids, tiny
from reference import assert_equal


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        pytest.fail(f"a connection was tried: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def word_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, 61)}}
    tokenizer = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def save(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny("llama"), tmp_path_factory.mktemp("models") / "good")


@pytest.fixture
def copied(good: Path, tmp_path: Path) -> Path:
    """Return a copy of the good folder that a test may spoil."""
    return Path(shutil.copytree(good, tmp_path / "spoiled"))


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refusal(name: str | Path, **options: object) -> str:
    """Return the message with which a model is refused; one line."""
    with pytest.raises(BadInput) as caught:
        load_model(name, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message and message.endswith((".", "?")), message
    return message


@pytest.mark.parametrize("as_string", [True, False])
def test_a_folder_loads_as_a_plain_model_ready_to_use(good: Path, as_string: bool) -> None:
    model, tokenizer = load_model(str(good) if as_string else good)
    assert isinstance(model, PreTrainedModel) and not model.training and model.dtype == torch.float32
    assert model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("left", "</s>")
    batch = tokenizer(["w3 w4 w5", "w6"], return_tensors="pt", padding=True)
    assert batch["input_ids"].tolist() == [[3, 4, 5], [2, 2, 6]]
    ids = random_ids(1, 5)
    with torch.no_grad():
        assert_equal(model.cpu()(input_ids=ids).logits, tiny("llama")(input_ids=ids).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_survives_saving_and_loading(family: str, tmp_path: Path) -> None:
    model, ids = tiny(family), random_ids(1, 5)
    loaded, _ = load_model(save(model, tmp_path), device="cpu")
    with torch.no_grad():
        assert_equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits, family)


def test_the_tokenizer_alone_is_that_of_the_model(good: Path, tmp_path: Path) -> None:
    alone, beside = load_tokenizer(good), load_model(good).tokenizer
    assert alone.get_vocab() == beside.get_vocab()
    assert (alone.padding_side, alone.pad_token) == (beside.padding_side, beside.pad_token) == ("left", "</s>")
    with pytest.raises(BadInput, match=r"has no config\.json"):
        load_tokenizer(tmp_path)


def test_dtype_and_device_are_taken(good: Path) -> None:
    for dtype in ("bfloat16", torch.bfloat16):
        model, _ = load_model(good, device=torch.device("cpu"), dtype=dtype)
        assert (model.dtype, model.device.type) == (torch.bfloat16, "cpu")


def test_loading_leaves_the_settings_of_transformers_alone(good: Path) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_info()
    logging.enable_progress_bar()
    try:
        load_model(good)
        refusal("./none")
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.INFO, True)
    finally:
        logging.set_verbosity(before[0])
        if not before[1]:
            logging.disable_progress_bar()


def test_every_bundled_name_is_a_folder_with_a_config() -> None:
    for name in bundled_models():
        model, tokenizer = load_model(name, device="cpu")
        assert len(tokenizer) <= anatomy(model).d_vocab and provenance(model)["model"] == name


def test_provenance_names_what_was_loaded(good: Path) -> None:
    found = provenance(load_model(good, device="cpu", dtype="bfloat16").model)
    assert (found["model"], found["model_type"], found["dtype"]) == (str(good), "llama", "bfloat16")
    assert found["shape"] == "3 layers x 4 heads, d 48" and found["revision"] == ""


def test_an_unknown_name_is_answered_with_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chainwright.models.sources.bundled_models", lambda: ["arithmetic", "reasoner"])
    monkeypatch.setattr("chainwright.models.sources.bundled_adapters", lambda: ["smollm2-x"])
    known = "arithmetic, reasoner, smollm2, smollm2-x"
    assert refusal("reasonr") == f"Unknown model 'reasonr'; known: {known}. Did you mean 'reasoner'?"
    assert refusal("zzzzzz") == f"Unknown model 'zzzzzz'; known: {known}."


@pytest.mark.parametrize("name", ["./none", "/none/here", "a/b/c", "~/none-here", "owner/"])
def test_a_missing_folder_is_named(name: str) -> None:
    assert refusal(name).startswith(f"There is no folder {name}; give a bundled name, an existing folder, or a Hub id")


def test_a_hub_id_out_of_reach_is_one_sentence_about_it() -> None:
    message = refusal("nobody-at-all/nothing-here")
    assert message.startswith("Model 'nobody-at-all/nothing-here' could not be loaded: ")
    assert "give a folder or a Hub id that can be reached" in message


def test_a_file_is_no_folder(good: Path) -> None:
    path = good / "config.json"
    assert refusal(path) == f"{path} is a file; give the folder that holds config.json and the safetensors weights."


def test_a_folder_without_config(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"Folder {tmp_path} has no config.json, so it holds no Transformers checkpoint."


def test_a_folder_without_weights(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    assert refusal(copied) == f"Folder {copied} has a config.json but no safetensors weights."


class _Trap:
    """Fails the test when it is unpickled."""

    def __reduce__(self) -> tuple:
        return pytest.fail, ("a pickle was loaded",)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "weights.ckpt", "w.pkl"])
def test_pickled_weights_are_refused_unread(copied: Path, name: str) -> None:
    (copied / "model.safetensors").unlink()
    (copied / name).write_bytes(pickle.dumps(_Trap()))
    message = refusal(copied)
    assert message.startswith(f"Folder {copied} has its weights in a pickle format ({name}), which can run code")


def test_pickled_weights_beside_safetensors_are_not_read(copied: Path) -> None:
    (copied / "pytorch_model.bin").write_bytes(pickle.dumps(_Trap()))
    assert load_model(copied).model.config.model_type == "llama"


def test_safetensors_of_something_else_do_not_let_pickles_in(copied: Path) -> None:
    (copied / "model.safetensors").rename(copied / "model_of_something_else.safetensors")
    torch.save(tiny("llama").state_dict(), copied / "pytorch_model.bin")
    assert refusal(copied).startswith(f"Model '{copied}' could not be loaded: ")


def test_pickled_adapters_are_refused_unread(copied: Path) -> None:
    (copied / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "x"}))
    (copied / "adapter_model.bin").write_bytes(pickle.dumps(_Trap()))
    assert "adapter without adapter_model.safetensors; pickled ones are not loaded" in refusal(copied)


def test_an_adapter_alone_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "has no config.json" in refusal(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "text"])
def test_damaged_weights_are_refused(copied: Path, damage: str) -> None:
    path = copied / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:-100], "empty": b"", "garbage": b"\xff" * 500, "text": b"version https://"}[damage])
    message = refusal(copied)
    assert message.startswith(f"The safetensors weights of model '{copied}' are damaged: ")
    assert message.endswith("Fetch or save them again.")


def test_missing_weights_are_refused_and_not_made_up(copied: Path) -> None:
    path = copied / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.self_attn.o_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    assert refusal(copied) == (
        f"Model '{copied}' lacks 1 of the weights that its config.json requires, such as "
        "model.layers.1.self_attn.o_proj.weight; they would be random."
    )


def test_tied_weights_are_not_missing(tmp_path: Path) -> None:
    model, _ = load_model(save(tiny("llama", tie_word_embeddings=True), tmp_path))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_weights_of_another_shape_are_refused(copied: Path) -> None:
    change_config(copied, intermediate_size=80)
    assert f"Model '{copied}': 9 weights do not fit config.json in shape, such as model.layers.0.mlp" in refusal(copied)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not a valid JSON file"),
        ("{}", "model_type"),
        ('{"model_type": "zzz"}', "`zzz`"),
        ('{"model_type": "llama", "hidden_size": 50, "num_attention_heads": 4}', "not a multiple"),
        ('{"model_type": "llama", "num_hidden_layers": "three"}', "num_hidden_layers"),
    ],
)
def test_a_spoiled_config_is_refused(copied: Path, text: str, said: str) -> None:
    (copied / "config.json").write_text(text)
    message = refusal(copied)
    assert message.startswith(f"Model '{copied}' could not be loaded: ") and said in message


@pytest.mark.parametrize("text", [None, "{", '{"a": 1}'])
def test_a_missing_or_spoiled_tokenizer_is_refused(copied: Path, text: str | None) -> None:
    for path in copied.glob("tokenizer*"):
        path.unlink()
    if text is not None:
        (copied / "tokenizer.json").write_text(text)
    assert refusal(copied).startswith(f"Model '{copied}' has no readable tokenizer: ")


def test_code_that_comes_with_a_checkpoint_is_not_run_unless_asked(copied: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    code = f"from transformers import LlamaConfig, LlamaForCausalLM\nopen({str(ran)!r}, 'w').close()\n"
    code += "class MyConfig(LlamaConfig):\n    model_type = 'mine'\n"
    code += "class MyModel(LlamaForCausalLM):\n    config_class = MyConfig\n"
    (copied / "code_of_mine.py").write_text(code)
    change_config(copied, model_type="mine", auto_map={
        "AutoConfig": "code_of_mine.MyConfig", "AutoModelForCausalLM": "code_of_mine.MyModel",
    })  # fmt: skip
    assert refusal(copied) == (
        f"Model '{copied}' brings its own code; pass trust_remote_code=True (--trust-remote-code) to run it "
        "(docs/refused.md#remote-code)."
    )
    assert not ran.exists()


SMALL: dict[str, dict[str, object]] = {
    "bloom": dict(hidden_size=32, n_layer=2, n_head=2),
    "mpt": dict(d_model=32, n_layers=2, n_heads=2),
    "falcon": dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2),
    "stablelm": dict(FAMILIES["llama"], hidden_size=64),
    "bert": FAMILIES["llama"],
}


@pytest.mark.parametrize("kind", SMALL)
def test_types_that_cannot_be_edited_are_refused_by_name_at_load(kind: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model(kind, **{**SMALL[kind], "vocab_size": 61})
    save(AutoModelForCausalLM.from_config(config), tmp_path)
    with pytest.raises(UnsupportedModel, match=rf"\b{kind} model") as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "gpu"}, "Unknown device 'gpu'; give 'cpu', 'cuda', 'cuda:1' or 'mps'."),
        ({"device": "meta"}, "Device 'meta' holds no numbers to run a model on; use 'cpu' or 'cuda'."),
        ({"dtype": "float12"}, "string representation of a valid `torch.dtype`."),
    ],
)
def test_unknown_devices_and_number_types_are_refused(good: Path, options: dict, said: str) -> None:
    assert refusal(good, **options).endswith(said)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_where_there_is_none(good: Path) -> None:
    assert refusal(good, device="cuda").startswith("Device 'cuda' was requested, but PyTorch sees no CUDA device")


def test_the_fingerprint_tells_other_weights_apart() -> None:
    model = tiny("llama")
    before = provenance(model)["fingerprint"]
    assert provenance(tiny("llama"))["fingerprint"] == before
    with torch.no_grad():
        next(model.parameters()).flatten()[0].add_(0.5)
    assert provenance(model)["fingerprint"] != before


def test_a_registered_name_leads_to_its_model(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = Path(shutil.copytree(good, tmp_path / "mine"))
    monkeypatch.setattr(_registry, "_live", dict(_registry._live))
    monkeypatch.setattr(_registry, "_owners", dict(_registry._owners))
    register("model", "mine")(ModelSource(good))
    register("model", "wrong")(str(good))
    found = load_model("mine", device="cpu")
    assert provenance(found.model)["model"] == str(good)
    assert load_tokenizer("mine").get_vocab() == found.tokenizer.get_vocab()
    assert "mine" in known_models() and "mine" not in bundled_models()
    assert refusal("min").startswith("Unknown model 'min'; known: ") and "Did you mean 'mine'?" in refusal("min")
    assert refusal("wrong") == "What is registered as model 'wrong' is a str, not a ModelSource."
    register("model", "reasoner")(ModelSource(good))
    assert "is the name of a bundled one" in refusal("reasoner")
    assert rendering_for("auto", "mine") == "natural"
    (good / "recipe.json").write_text("{}")
    assert rendering_for("auto", "mine") == "short"


def test_a_number_type_that_is_emulated_is_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chainwright.models.load.multiplies_bfloat16", lambda device: False)
    with pytest.warns(SlowDtype, match="no instructions: .* load it with dtype='float32'"):
        load_model("compass", dtype="bfloat16")
    with warnings.catch_warnings():
        warnings.simplefilter("error", SlowDtype)
        load_model("compass", dtype="float32")
        monkeypatch.setattr("chainwright.models.load.multiplies_bfloat16", lambda device: True)
        load_model("compass", dtype="bfloat16")
