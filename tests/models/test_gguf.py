"""GGUF files: converted once into what Transformers makes of them, with the words, ends and positions of the file."""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from chainwright._errors import BadInput, PartlyRead
from chainwright.models import gguf, load_model, provenance
from chainwright.models.gguf_details import single_digits
from chainwright.models.gguf_header import read_header
from chainwright.models.load import empty_model, end_ids, load_as, load_tokenizer
from gguf_files import N_HEADS, SPECIAL, D, small_llama, vocabulary, write_gguf
from reference import assert_equal

pytest.importorskip("gguf")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHAINWRIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def n_conversions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by a name with every conversion."""
    done: list[str] = []
    convert = gguf._convert
    monkeypatch.setattr(
        gguf, "_convert", lambda header, folder: (done.append(header.path.name), convert(header, folder))
    )
    return done


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(20)[None]).logits


def refusal(path: Path) -> str:
    with pytest.raises(BadInput) as caught:
        load_model(path, device="cpu")
    message = str(caught.value)
    assert "\n" not in message and message.endswith("."), message
    return message


def folder_of(cache: Path) -> Path:
    (found,) = (path for path in (cache / "gguf").iterdir() if path.is_dir())
    return found


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_1"])
def test_a_cached_load_equals_a_direct_one(kind: str, tmp_path: Path, n_conversions: list[str]) -> None:
    path = write_gguf(tmp_path / "small.gguf", quantised=kind)
    direct = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    first, second = (load_model(path, device="cpu").model for _ in range(2))
    assert_equal(logits(first), logits(direct))
    assert_equal(logits(second), logits(direct))
    if kind == "F32":
        assert_equal(logits(first), logits(small_llama()))
    assert first.dtype == torch.float32 and n_conversions == ["small.gguf"]


def test_what_is_loaded_names_its_file_and_can_be_saved(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "small.gguf")
    model, tokenizer = load_model(path, device="cpu", dtype="bfloat16")
    found = provenance(model)
    assert found["model"] == str(path) and len(found["gguf_sha256"]) == 64 and found["dtype"] == "bfloat16"
    assert provenance(load_as(found, device="cpu").model) == found
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    assert torch.equal(logits(load_model(tmp_path / "saved", device="cpu").model), logits(model))
    assert load_file(tmp_path / "saved" / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16
    empty = empty_model(path)
    assert empty.device.type == "meta" and sum(p.numel() for p in empty.parameters()) == read_header(path).n_numbers


def test_the_tokenizer_is_that_of_the_metadata(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "small.gguf")
    model, tokenizer = load_model(path, device="cpu")
    assert (
        tokenizer.get_vocab() == {token: i for i, token in enumerate(vocabulary())} == load_tokenizer(path).get_vocab()
    )
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.padding_side) == (1, 2, "left")
    assert end_ids(model, tokenizer) == {2} and model.generation_config.eos_token_id == 2
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "12"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\n12<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(text).input_ids
    assert ids.count(1) == 2 and ids.count(2) == 1, "special tokens stay whole, and none is put before the text"


@pytest.mark.parametrize(
    ("rules", "pieces"),
    [("smollm", ["ĠĠ", "1", "2", "Ġth", "e"]), ("gpt-2", ["Ġ", "Ġ", "12", "Ġth", "e"])],
)
def test_words_are_split_as_the_file_says(rules: str, pieces: list[str], tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "small.gguf", metadata={"tokenizer.ggml.pre": rules})
    tokenizer = load_tokenizer(path)
    assert tokenizer.tokenize("  12 the") == pieces
    assert tokenizer.decode(tokenizer("  12 the").input_ids) == "  12 the"


def test_single_digits_are_split_off_before_the_spaces() -> None:
    found = [piece for piece, _ in single_digits().pre_tokenize_str("a 12  ½ it's\n\n 3")]
    assert found == ["a", "Ġ", "1", "2", "ĠĠ", "Â½", "Ġit", "'s", "ĊĊĠ", "3"]


@pytest.mark.parametrize(("flag", "first"), [(None, "▁hi"), (True, "▁hi"), (False, "hi")])
def test_a_sentencepiece_vocabulary_puts_a_space_first_as_the_file_says(
    flag: bool | None, first: str, tmp_path: Path
) -> None:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "h", "i", "▁h", "▁hi", "hi"]
    metadata = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-1.0, -2.0, -3.0, -0.9, -0.5, -0.8], "tokenizer.ggml.merges": None,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * 6, "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": flag, "llama.vocab_size": len(tokens),
        "tokenizer.ggml.padding_token_id": None,
    }  # fmt: skip
    model = small_llama(vocab_size=len(tokens))
    tokenizer = load_tokenizer(write_gguf(tmp_path / "small.gguf", model, metadata=metadata, template=None))
    ids = tokenizer("hi hié").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", first, "▁hi", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hi hié"
    assert tokenizer.pad_token_id is not None and tokenizer.eos_token_id == 2


def test_unknown_rules_of_splitting_are_a_warning_each_time(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "small.gguf", metadata={"tokenizer.ggml.pre": "no-such-rules"})
    for _ in range(2):
        with pytest.warns(PartlyRead, match="by the rules 'no-such-rules', which are not known here"):
            load_tokenizer(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_tokenizer(write_gguf(tmp_path / "known.gguf"))


@pytest.mark.parametrize(
    ("metadata", "ends"),
    [
        ({"tokenizer.ggml.eos_token_id": 0}, [0, 2]),  # the end of text is stated, the end of a turn is in the template
        ({"tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.eot_token_id": 1}, [0, 1, 2]),
        ({"tokenizer.ggml.eos_token_id": 0, "tokenizer.chat_template": None}, 0),
        ({"tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.token_type": [1] * len(vocabulary())}, 0),
    ],
)
def test_a_response_ends_where_a_turn_ends(metadata: dict, ends: object, tmp_path: Path) -> None:
    model, tokenizer = load_model(write_gguf(tmp_path / "small.gguf", metadata=metadata), device="cpu")
    assert model.generation_config.eos_token_id == ends
    assert end_ids(model, tokenizer) == set(ends if isinstance(ends, list) else [ends])


def test_llama3_scales_its_positions(tmp_path: Path) -> None:
    """llama.cpp writes the scaling as one factor per frequency; the reference is Transformers' own Llama 3 scaling."""
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    theta = 500000.0
    wanted = small_llama(rope_parameters={"rope_type": "llama3", "rope_theta": theta, **scaling})
    plain = small_llama(rope_parameters={"rope_type": "default", "rope_theta": theta})
    factors = (plain.model.rotary_emb.inv_freq / wanted.model.rotary_emb.inv_freq).numpy()
    assert factors.min() == 1.0 and factors.max() == pytest.approx(8.0)
    metadata = {"llama.rope.freq_base": theta}
    path = write_gguf(tmp_path / "a.gguf", wanted, metadata=metadata, tensors={"rope_freqs.weight": factors})
    model = load_model(path, device="cpu").model
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, wanted.model.rotary_emb.inv_freq)
    torch.testing.assert_close(logits(model), logits(wanted))
    assert not torch.allclose(logits(model), logits(plain), atol=1e-4)
    own = write_gguf(tmp_path / "b.gguf", metadata=metadata, tensors={"rope_freqs.weight": factors * 1.5})
    assert "scales its rotary positions by factors of its own" in refusal(own)


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_stated_scaling_of_positions_is_taken(kind: str, tmp_path: Path) -> None:
    scaling = {"rope_type": kind, "factor": 4.0, "original_max_position_embeddings": 32}
    wanted = small_llama(rope_parameters={"rope_theta": 10000.0, **scaling})
    stated = {"llama.rope.scaling.type": kind, "llama.rope.scaling.factor": 4.0}
    stated["llama.rope.scaling.original_context_length"] = 32
    model = load_model(write_gguf(tmp_path / "a.gguf", wanted, metadata=stated), device="cpu").model
    torch.testing.assert_close(logits(model), logits(wanted))
    assert not torch.allclose(logits(model), logits(small_llama()), atol=1e-4)


def test_scaling_that_is_not_known_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", metadata={"llama.rope.scaling.type": "longrope"})
    assert "scales its rotary positions by longrope, which is not read here" in refusal(path)


def test_weights_without_a_place_are_a_warning(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", tensors={"blk.0.attn_q.bias": np.ones(D, dtype=np.float32)})
    with pytest.warns(PartlyRead, match="the others are not read"):
        load_model(path, device="cpu")


def test_a_folder_with_one_file(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = write_gguf(folder / "small.Q8_0.gguf", quantised="Q8_0")
    (folder / "config.json").write_text("{}")  # as in repositories of GGUF files
    model = load_model(folder, device="cpu").model
    assert_equal(logits(model), logits(load_model(path, device="cpu").model))
    assert provenance(model)["model"] == str(folder)
    write_gguf(folder / "small.Q4_1.gguf", quantised="Q4_1")
    assert "holds 2 GGUF files (small.Q4_1.gguf, small.Q8_0.gguf); give one of the files." in refusal(folder)
    small_llama().save_pretrained(folder)
    load_tokenizer(path).save_pretrained(folder)
    assert_equal(logits(load_model(folder, device="cpu").model), logits(small_llama()))


@pytest.mark.parametrize("damage", ["cut", "byte", "gone", "note", "empty"])
def test_a_damaged_cache_is_made_again(damage: str, tmp_path: Path, cache: Path, n_conversions: list[str]) -> None:
    path = write_gguf(tmp_path / "small.gguf")
    wanted = logits(load_model(path, device="cpu").model)
    weights = folder_of(cache) / "model.safetensors"
    whole = weights.read_bytes()
    if damage == "cut":
        weights.write_bytes(whole[:-50])
    elif damage == "byte":
        weights.write_bytes(whole[:-3] + b"\x7f" + whole[-2:])
    elif damage == "gone":
        (folder_of(cache) / "tokenizer.json").unlink()
    elif damage == "note":
        (folder_of(cache) / "converted.json").write_text("{")
    else:
        (folder_of(cache) / "config.json").write_text("")
    assert_equal(logits(load_model(path, device="cpu").model), wanted)
    assert len(n_conversions) == 2 and weights.read_bytes() == whole


def test_a_cache_that_was_copied_is_still_good(tmp_path: Path, cache: Path, n_conversions: list[str]) -> None:
    path = write_gguf(tmp_path / "small.gguf")
    load_model(path, device="cpu")
    os.utime(folder_of(cache) / "model.safetensors", (1, 1))
    load_model(path, device="cpu")
    assert len(n_conversions) == 1


def test_another_version_converts_again(
    tmp_path: Path, cache: Path, n_conversions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path / "small.gguf")
    load_model(path, device="cpu")
    monkeypatch.setattr(gguf, "_SCHEME", 99)
    load_model(path, device="cpu")
    assert len(n_conversions) == 2 and len([p for p in (cache / "gguf").iterdir() if p.is_dir()]) == 2


def test_another_file_under_the_same_name_is_another_model(tmp_path: Path, n_conversions: list[str]) -> None:
    path = write_gguf(tmp_path / "small.gguf")
    first = logits(load_model(path, device="cpu").model)
    write_gguf(path, small_llama(seed=1))
    second = logits(load_model(path, device="cpu").model)
    assert not torch.equal(first, second) and torch.equal(second, logits(small_llama(seed=1)))
    assert len(n_conversions) == 2


def test_two_that_load_at_once_convert_once(tmp_path: Path, n_conversions: list[str]) -> None:
    path, found = write_gguf(tmp_path / "small.gguf"), []
    threads = [threading.Thread(target=lambda: found.append(gguf.converted(path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1 and len(found) == 3 and len(n_conversions) == 1


def test_no_room_for_the_cache(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "small.gguf")
    monkeypatch.setattr("chainwright.models.cache.shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    message = refusal(path)
    assert "The converted model of small.gguf needs" in message and "or set CHAINWRIGHT_CACHE" in message
    monkeypatch.undo()
    monkeypatch.setenv("CHAINWRIGHT_CACHE", str(cache))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    message = refusal(path)
    assert "No space left on device" in message and "CHAINWRIGHT_CACHE" in message
    assert not any(path.is_dir() for path in (cache / "gguf").iterdir()), "nothing half-made is left"


def test_a_cache_that_cannot_be_written(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write everywhere, so the system's refusal is played."""
    path = write_gguf(tmp_path / "small.gguf")
    made = load_model(path, device="cpu").model

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("chainwright.models.gguf.FileLock", refuse)
    monkeypatch.setattr("chainwright.models.cache.write_json", refuse_json)
    assert_equal(logits(load_model(path, device="cpu").model), logits(made))
    other = write_gguf(tmp_path / "other.gguf", small_llama(seed=2))
    message = refusal(other)
    assert "Permission denied" in message and "CHAINWRIGHT_CACHE" in message


def refuse_json(path: Path, value: object) -> None:
    raise BadInput(f"Cannot write {path}.")


def test_a_cache_that_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "small.gguf")
    monkeypatch.setenv("CHAINWRIGHT_CACHE", str(path))
    assert refusal(path) == f"CHAINWRIGHT_CACHE is {path}, which is a file; set it to a folder."


@pytest.mark.parametrize(
    ("architecture", "why"),
    [
        ("clip", "architecture 'clip', which Transformers"),
        ("rwkv7", "architecture 'rwkv7', which Transformers"),
        ("no-such", "architecture 'no-such', which Transformers"),
    ],
)
def test_architectures_that_transformers_cannot_read_are_named(architecture: str, why: str, tmp_path: Path) -> None:
    message = refusal(write_gguf(tmp_path / "a.gguf", architecture=architecture))
    assert why in message and message.endswith("give the model as safetensors.")


def test_files_that_are_cut_off_or_damaged(tmp_path: Path, cache: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf")
    whole = path.read_bytes()
    for length in (*range(0, 24, 5), 24, 30, 100, 1000, 3000, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:length])
        message = refusal(path)
        assert any(part in message for part in ("cut off", "is no GGUF file", "within its head")), (length, message)
    for i in (4, 8, 9, 16, 24, 40):
        path.write_bytes(whole[:i] + b"\xff" * 6 + whole[i + 6 :])
        refusal(path)
    path.write_bytes(whole[:-64] + b"\xff" * 64)
    assert "holds numbers that are not finite" in refusal(path)
    assert not (cache / "gguf").exists() or not any(p.is_dir() for p in (cache / "gguf").iterdir())


def test_files_that_are_no_models(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    for content in (b"", b"version https://git-lfs", b"<html>Not found</html>", b"GGML" + bytes(100)):
        path.write_bytes(content)
        assert refusal(path).startswith(f"{path} is no GGUF file")
    path.mkdir() if not path.exists() else path.unlink()
    assert refusal(tmp_path / "none.gguf") == f"There is no file {tmp_path / 'none.gguf'}."
    assert "is one of 3 parts of a model" in refusal(write_gguf(path, metadata={"split.count": 3}))
    assert "version 1;" in refusal(_with_version(path, 1)) and "big-endian" in refusal(_with_version(path, 3 << 24))
    assert "does not name its architecture" in refusal(_without_architecture(path))


def _with_version(path: Path, version: int) -> Path:
    write_gguf(path)
    path.write_bytes(path.read_bytes()[:4] + version.to_bytes(4, "little") + path.read_bytes()[8:])
    return path


def _without_architecture(path: Path) -> Path:
    write_gguf(path)
    path.write_bytes(path.read_bytes().replace(b"general.architecture", b"general.architectura", 1))
    return path


def test_weights_that_are_missing_or_of_another_shape(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", metadata={"llama.block_count": 3})
    assert "lacks 9 weights of a llama model" in refusal(path) and "model.layers.2" in refusal(path)
    path = write_gguf(tmp_path / "b.gguf", metadata={"llama.feed_forward_length": 128})
    assert "or has them in another shape" in refusal(path)


def test_a_vocabulary_without_a_known_kind(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", metadata={"tokenizer.ggml.model": "no-such"})
    assert "no-such" in refusal(path)
    path = write_gguf(tmp_path / "b.gguf", metadata={"tokenizer.ggml.tokens": None, "tokenizer.ggml.merges": None})
    assert refusal(path).startswith(f"{path} (architecture llama) could not be read: ")


def test_the_reader_is_named_if_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "a.gguf")

    def only_others(name: str, version: Callable[[str], str] = gguf.version) -> str:
        if name == "gguf":
            raise gguf.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(gguf, "version", only_others)
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert refusal(path) == "Reading a GGUF file needs the package gguf; run pip install 'chainwright[gguf]'."


def test_a_revision_belongs_to_the_hub(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="A revision belongs to a Hub id"):
        load_model(write_gguf(tmp_path / "a.gguf"), revision="main")


def test_the_header_lists_what_was_written(tmp_path: Path) -> None:
    header = read_header(write_gguf(tmp_path / "a.gguf", quantised="Q8_0"))
    assert header.architecture == "llama" and header.token("eos") == 2 and header.token("eot") is None
    assert header.metadata["tokenizer.ggml.tokens"][:3] == SPECIAL and header.metadata["llama.rope.freq_base"] == 10000
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    assert shapes["token_embd.weight"] == (len(vocabulary()), D) and shapes["blk.1.attn_k.weight"] == (
        D * 2 // N_HEADS,
        D,
    )
