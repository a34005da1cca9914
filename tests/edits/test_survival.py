"""Edits survive what people do with models: compilation, checkpointing, adapters, other number types, streaming."""

import copy
import io
import pickle
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from chainwright._errors import BadInput
from chainwright.edits import KnockOut, edit
from chainwright.models import anatomy, capture
from chainwright.models.residual import head_writes
from families import FAMILIES, random_ids, tiny
from reference import assert_close, assert_equal, without_heads

HEADS = {(0, 1), (2, 2)}
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("in_place", [False, True])
@torch.no_grad()
def test_a_compiled_model_follows_every_change_of_edits(family: str, in_place: bool, fresh_dynamo: None) -> None:
    model, ids = tiny(family, num_hidden_layers=3), random_ids(1, 6)
    wants = {heads: without_heads(model, family, heads)(input_ids=ids).logits for heads in ((), (*HEADS,), ((1, 0),))}
    if in_place:
        model.compile(backend="eager")
    compiled = model if in_place else torch.compile(model, backend="eager")

    def check(heads: tuple) -> None:
        assert_close(compiled(input_ids=ids).logits, wants[heads], f"{family} without {heads}")

    check(())  # compiled before anything is attached
    with edit(compiled, KnockOut(HEADS)) as (touched,):
        check((*HEADS,))
        check((*HEADS,))
        assert touched.n_sites == 2 * 2 * 6
    check(())
    with edit(compiled, KnockOut({(1, 0)})) as (touched,):
        check(((1, 0),))
    assert touched.n_sites == 6
    with edit(compiled, KnockOut(HEADS)):
        check((*HEADS,))
    check(())


def loss_gradients(model: PreTrainedModel, ids: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(input_ids=ids, use_cache=False).logits.log_softmax(-1)[..., 5].sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@every_family
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_gradients_equal_plain_ones(family: str, use_reentrant: bool) -> None:
    model, ids = tiny(family).train(), random_ids(2, 9)
    drops = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    for drop in drops:
        drop.p = 0.0
    own = loss_gradients(without_heads(model, family, ()), ids)
    with edit(model, KnockOut(HEADS)):
        want = loss_gradients(model, ids)
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    with edit(model, KnockOut(HEADS)) as (touched,):
        got = loss_gradients(model, ids)
    assert touched.n_sites == 2 * (2 * 2 * 9), "once forward, once again in backward"
    assert got.keys() == want.keys()
    for name, grad in want.items():
        assert_close(got[name], grad, f"{family} {name}")
    assert any(not torch.allclose(own[name], want[name], atol=1e-3) for name in want)


def test_checkpointed_backward_outside_the_block_is_no_silent_mistake() -> None:
    model, ids = tiny("llama").train(), random_ids(1, 6)
    model.activation_checkpointing_enable({"use_reentrant": False})
    with edit(model, KnockOut(HEADS)):
        loss = model(input_ids=ids, use_cache=False).logits.sum()
    with pytest.raises(CheckpointError):
        loss.backward()


def adapted(model: PreTrainedModel, family: str = "llama") -> nn.Module:
    """Return the model with LoRA on its output projections, far from idle."""
    torch.manual_seed(3)
    target = "c_proj" if family == "gpt2" else "o_proj"
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=[target], init_lora_weights=False, lora_alpha=8))
    return wrapped.eval()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("measured_before", [False, True])
@torch.no_grad()
def test_a_wrapped_model_is_edited_through_its_adapters(family: str, measured_before: bool) -> None:
    model, ids = tiny(family), random_ids(1, 6)
    if measured_before:
        with edit(model, KnockOut(HEADS)):
            model(input_ids=ids)
    wrapped = adapted(model, family)
    own = wrapped(input_ids=ids).logits
    with edit(wrapped, KnockOut(HEADS)) as (touched,):
        got = wrapped(input_ids=ids).logits
    assert touched.n_sites == 12 and not torch.equal(got, own)
    assert_equal(wrapped(input_ids=ids).logits, own, "after leaving")
    merged = wrapped.merge_and_unload()
    assert_close(got, without_heads(merged, family, HEADS)(input_ids=ids).logits, "merged", tolerance=1e-4)
    with edit(merged, KnockOut(HEADS)):
        assert_close(merged(input_ids=ids).logits, got, "the merged model, edited", tolerance=1e-4)


@pytest.mark.parametrize("measured_before", [False, True])
@torch.no_grad()
def test_head_writes_go_through_the_adapter(measured_before: bool) -> None:
    model, ids = tiny("llama"), random_ids(1, 6)
    if measured_before:
        anatomy(model)
    wrapped = adapted(model)
    got = capture(wrapped, ids, residual=True)
    assert got.resid_pre is not None and got.resid_mid is not None
    for i, layer in enumerate(anatomy(wrapped).layers):
        assert "lora" in type(layer.out_proj).__module__
        written = head_writes(layer, got.z[i, 0]).sum(1)
        assert_close(written, (got.resid_mid - got.resid_pre)[i, 0], f"layer {i}")


def test_adapters_can_be_trained_under_an_edit() -> None:
    wrapped, ids = adapted(tiny("llama")).train(), random_ids(1, 6)
    with edit(wrapped, KnockOut({(2, 1)})):
        wrapped(input_ids=ids).logits.sum().backward()
    down = wrapped.base_model.model.model.layers[2].self_attn.o_proj.lora_A["default"].weight.grad
    assert float(down[:, 12:24].abs().max()) == 0.0 and float(down[:, :12].abs().max()) > 0


@every_family
@torch.no_grad()
def test_a_bfloat16_model_is_edited_the_same(family: str) -> None:
    model, ids = tiny(family).to(torch.bfloat16), random_ids(2, 9)
    own = model(input_ids=ids).logits
    want = without_heads(model, family, HEADS)(input_ids=ids).logits
    with edit(model, KnockOut(HEADS)):
        got = model(input_ids=ids).logits
    assert got.dtype == torch.bfloat16
    assert_close(got, want, family)
    assert float((got - own).abs().max()) > 0.1


class _Kept(BaseStreamer):
    def __init__(self) -> None:
        self.ids: list[int] = []
        self.out = io.StringIO()

    def put(self, value: Tensor) -> None:
        self.ids += value.flatten().tolist()

    def end(self) -> None:
        self.out.write("end")


def test_generation_with_a_streamer_is_edited() -> None:
    model, ids, streamer = tiny("llama"), random_ids(1, 6), _Kept()
    with edit(model, KnockOut(HEADS)) as (touched,):
        got = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False,
                             eos_token_id=None, streamer=streamer)  # fmt: skip
    assert streamer.ids == got[0].tolist() and streamer.out.getvalue() == "end"
    want = without_heads(model, "llama", HEADS).generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, eos_token_id=None
    )
    assert got.tolist() == want.tolist() and touched.n_sites == 2 * (6 + 4)


def test_attention_dropout_in_training_is_the_models_own() -> None:
    model, ids = tiny("llama", attention_dropout=0.4).train(), random_ids(1, 9)

    def run() -> Tensor:
        torch.manual_seed(0)
        return model(input_ids=ids).logits.detach()

    want, evaluated = run(), model.eval()(input_ids=ids).logits
    model.train()
    with edit(model, KnockOut(set()), strict=False):
        assert_equal(run(), want)
    assert not torch.allclose(want, evaluated)
    with edit(model, KnockOut(HEADS)):
        got = run()
    model = without_heads(model, "llama", HEADS)
    assert_close(got, run())


def test_inference_mode_inside_and_around() -> None:
    model, ids = tiny("llama"), random_ids(1, 6)
    want = without_heads(model, "llama", HEADS)(input_ids=ids).logits.detach()
    with edit(model, KnockOut(HEADS)) as (touched,), torch.inference_mode():
        assert_close(model(input_ids=ids).logits.clone(), want)
    assert touched.n_sites == 12
    with torch.inference_mode(), edit(model, KnockOut(HEADS)) as (touched,):
        assert_close(model(input_ids=ids).logits.clone(), want)
    assert touched.n_sites == 12


def test_a_model_is_not_copied_with_an_edit_in_it() -> None:
    model = tiny("llama")
    with edit(model, KnockOut(HEADS), strict=False):
        for copied in (copy.deepcopy, pickle.dumps):
            with pytest.raises(BadInput, match="cannot be copied or pickled while it is being edited"):
                copied(model)
    assert copy.deepcopy(model).config._attn_implementation == "sdpa"


def test_a_model_saved_inside_an_edit_is_the_plain_one(tmp_path: Path) -> None:
    model, ids = tiny("llama"), random_ids(1, 6)
    with edit(model, KnockOut(HEADS), strict=False):
        model.save_pretrained(tmp_path)
    assert "chainwright" not in (tmp_path / "config.json").read_text()
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert_equal(again(input_ids=ids).logits, model(input_ids=ids).logits)


@torch.no_grad()
def test_more_edits_than_the_compiler_keeps_versions_of_are_all_followed(fresh_dynamo: None) -> None:
    model, ids = tiny("llama", num_hidden_layers=1), random_ids(1, 4)
    compiled = torch.compile(model, backend="eager")
    for heads in [{(0, head)} for head in range(4)] + [{(0, a), (0, b)} for a in range(4) for b in range(a)]:
        with edit(compiled, KnockOut(heads)) as (touched,):
            got = compiled(input_ids=ids).logits
        assert_close(got, without_heads(model, "llama", heads)(input_ids=ids).logits, str(heads))
        assert touched.n_sites == 4 * len(heads)


def test_backward_outside_the_block_works_without_checkpointing() -> None:
    model, ids = tiny("llama"), random_ids(1, 6)
    with edit(model, KnockOut(HEADS)):
        want = loss_gradients(model, ids)
    model.zero_grad()
    with edit(model, KnockOut(HEADS)):
        loss = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)[..., 5].sum()
    loss.backward()
    for name, p in model.named_parameters():
        assert_equal(p.grad, want[name], name)
