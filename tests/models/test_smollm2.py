"""The pretrained model itself, where it was fetched (`make test-real`)."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from chainwright import generate
from chainwright.models import anatomy, load_model, provenance
from chainwright.models.fetch import PACKAGES, local_file
from chainwright.models.load import LoadedModel, end_ids
from chainwright.tasks import sample

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(local_file("smollm2") is None, reason="smollm2 was not fetched; run make smollm2"),
]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model("smollm2", device="cpu")


def test_it_is_what_the_package_holds(loaded: LoadedModel) -> None:
    found, parts = provenance(loaded.model), anatomy(loaded.model)
    assert found["model"] == "smollm2" and found["gguf_sha256"] == PACKAGES["smollm2"].sha256
    assert (parts.n_layers, parts.n_heads, parts.n_kv_heads, parts.d_model, parts.d_vocab) == (30, 9, 3, 576, 49152)
    assert found["dtype"] == "float32" and end_ids(*loaded) == {2}


def test_its_logits_are_those_of_a_direct_load(loaded: LoadedModel) -> None:
    path = local_file("smollm2")
    assert path is not None
    direct = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    ids = loaded.tokenizer("Two hops: the capital of the country where the Colosseum is", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(loaded.model(input_ids=ids).logits, direct(input_ids=ids).logits)


def test_it_reads_words_and_turns_as_it_was_trained_to(loaded: LoadedModel) -> None:
    tokenizer = loaded.tokenizer
    assert tokenizer.tokenize("x = 12,  34") == ["x", "Ġ=", "Ġ", "1", "2", ",", "ĠĠ", "3", "4"]
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == tokenizer.eos_token_id == 2
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        best = int(loaded.model(input_ids=ids).logits[0, -1].argmax())
    assert tokenizer.decode([best]) == " Paris"


def test_its_responses_end(loaded: LoadedModel) -> None:
    (trace,) = generate(*loaded, ["What is the capital of France?"], max_new_tokens=40)
    assert trace.response.strip() == "The capital of France is Paris." and int(trace.response_ids[-1]) == 2


def test_it_is_asked_the_tasks_in_english(loaded: LoadedModel) -> None:
    (problem,) = sample("parity", 2, 1, 0, rendering="natural")
    (trace,) = generate(*loaded, [problem], max_new_tokens=20)
    assert trace.info["rendering"] == "natural" and trace.info["chat_template"]
    assert trace.problem is not None and trace.problem.prompt == problem.prompt
