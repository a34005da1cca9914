"""Models whose weights accelerate keeps elsewhere: on the disk, on the CPU, or on several devices."""

from __future__ import annotations

from pathlib import Path

import accelerate
import pytest
import torch
from test_load import word_tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from chainwright import KnockOut, StepFlow, edit
from chainwright.decode.run import generate
from chainwright.diagnose import knockout_effects, logit_flow, logit_lens, step_saliency
from chainwright.models import anatomy, capture, provenance
from chainwright.models.fingerprint import fingerprint
from chainwright.models.placement import device_of, input_device
from chainwright.scoring import score
from chainwright.traces import Trace
from families import random_ids, tiny
from reference import assert_close

FAMILIES = ("llama", "gpt2", "gpt_oss", "gemma3_text")  # gpt2 and gemma3 share embedding and unembedding
WAYS = ("cpu", "disk", "some layers", "loaded")


def offloaded(model: PreTrainedModel, way: str, folder: Path) -> PreTrainedModel:
    """Return a model that is offloaded in one of the ways that people use."""
    if way == "cpu":
        return accelerate.cpu_offload(model, torch.device("cpu"), offload_buffers=True)
    if way == "disk":
        return accelerate.disk_offload(model, folder / "weights", torch.device("cpu"))
    blocks = [name for name, module in model.named_modules() if module in {b.block for b in anatomy(model).layers}]
    outside = [
        name
        for name, module in model.named_modules()
        if not name.startswith(tuple(blocks)) and (*module.parameters(recurse=False), *module.buffers(recurse=False))
    ]
    places: dict[str, str] = {name: "cpu" for name in outside}
    places |= {name: "disk" if i == 1 else "cpu" for i, name in enumerate(blocks)}
    if way == "some layers":
        return accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=folder / "weights")
    model.save_pretrained(folder / "model")
    return AutoModelForCausalLM.from_pretrained(
        folder / "model", device_map=places, offload_folder=folder / "weights"
    ).eval()


def trace(n_tokens: int = 12) -> Trace:
    return Trace.from_ids(word_tokenizer(), 11 + random_ids(1, n_tokens)[0] % 49, 3)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_offloaded_model_has_the_fingerprint_of_the_plain_one_and_no_other(
    family: str, way: str, tmp_path: Path
) -> None:
    plain, other = fingerprint(tiny(family)), fingerprint(tiny(family, seed=5))
    assert plain != other
    assert fingerprint(offloaded(tiny(family), way, tmp_path / "a")) == plain
    assert fingerprint(offloaded(tiny(family, seed=5), way, tmp_path / "b")) == other
    near = tiny(family)
    with torch.no_grad():
        anatomy(near).layers[1].out_proj.weight[0, 0] += 0.01
    assert fingerprint(offloaded(near, way, tmp_path / "c")) not in (plain, other)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_edits_and_scores_of_an_offloaded_model_are_those_of_the_plain_one(
    family: str, way: str, tmp_path: Path
) -> None:
    plain, model, ids = tiny(family), offloaded(tiny(family), way, tmp_path), random_ids(2, 9)
    assert input_device(model) == device_of(anatomy(model).layers[1].block) == torch.device("cpu")
    heads = KnockOut([{(1, 2)}, {(0, 1), (2, 0)}], positions="last")
    with torch.no_grad(), edit(plain, heads), edit(model, heads) as (touched,):
        assert_close(model(input_ids=ids).logits, plain(input_ids=ids).logits, family)
    assert touched.n_sites == 3
    assert_close(score(model, trace()).logprob[1:], score(plain, trace()).logprob[1:], family)
    got, want = (capture(each, ids, attention=True, residual=True) for each in (model, plain))
    assert got.attention is not None and want.attention is not None
    assert_close(got.z, want.z), assert_close(got.attention, want.attention)
    assert {**provenance(model)} == {**provenance(model), "fingerprint": fingerprint(plain)}


@pytest.mark.parametrize("way", WAYS)
def test_sweeps_lenses_and_repairs_run_on_an_offloaded_model(way: str, tmp_path: Path) -> None:
    plain, model, ids = tiny("llama"), offloaded(tiny("llama"), way, tmp_path), random_ids(2, 9)
    tokens = torch.tensor([5, 6])
    for method in ("exact", "gradient"):
        got, want = (knockout_effects(each, ids, tokens, method=method) for each in (model, plain))
        assert_close(got.effect, want.effect, method)
    assert_close(*(logit_lens(each, ids, tokens).logprob for each in (model, plain)))
    assert_close(*(step_saliency(each, trace()).map for each in (model, plain)))
    written = [
        generate(
            each,
            word_tokenizer(),
            ["w3 w4"],
            repair=StepFlow(tokenizer=word_tokenizer()),
            max_new_tokens=8,
            progress=False,
        )[0].input_ids
        for each in (model, plain)
    ]
    assert torch.equal(*written)
    logit_flow(model, ids[:1], 7)
