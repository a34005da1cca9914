"""The decoder is found by what it does, and what stands around it either gives the same logits or is refused."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from test_load import save, word_tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from chainwright import KnockOut, edit
from chainwright._errors import BadInput, UnsupportedModel
from chainwright.decode.run import generate
from chainwright.models import anatomy, capture, load_model
from chainwright.models.decoder import decoder
from chainwright.scoring import score, score_all
from chainwright.traces import Trace
from families import _COMMON, _GQA, random_ids, tiny
from reference import assert_close, greedy

_TEXT = dict(_COMMON, **_GQA)
_VISION = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
)
_SECTIONS = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
_QWEN_VISION = dict(
    depth=2, hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=48, patch_size=14,
    num_position_embeddings=16, deepstack_visual_indexes=[0],
)  # fmt: skip
SEEING: dict[str, dict[str, Any]] = {
    "mistral3": dict(
        text_config=dict(_TEXT, model_type="mistral"), vision_feature_layer=-1, image_token_index=7,
        vision_config=dict(_VISION, model_type="pixtral", head_dim=16),
    ),
    "llava": dict(
        text_config=dict(_TEXT, model_type="llama"), image_token_index=7,
        vision_config=dict(_VISION, model_type="clip_vision_model"),
    ),
    "qwen3_vl": dict(
        text_config=dict(_TEXT, rope_parameters=_SECTIONS), vision_config=_QWEN_VISION, image_token_id=7,
        video_token_id=8, vision_start_token_id=9, vision_end_token_id=10,
    ),
}  # fmt: skip
VIRTUAL = {
    "PROMPT_TUNING": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "PREFIX_TUNING": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "P_TUNING": peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=16),
    "MULTITASK_PROMPT_TUNING": peft.MultitaskPromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, num_tasks=2
    ),
}


def llama4() -> PreTrainedModel:
    return tiny(
        "llama4_text",
        **_TEXT,
        intermediate_size_mlp=64,
        num_local_experts=2,
        num_experts_per_tok=1,
        attention_chunk_size=8,
        attn_temperature_tuning=False,
    )


def opt() -> PreTrainedModel:
    return tiny("opt", **_COMMON, ffn_dim=32, word_embed_proj_dim=48)


def seeing(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind, **SEEING[kind])).eval()


def traces(*lengths: int) -> list[Trace]:
    return [Trace.from_ids(word_tokenizer(), 11 + random_ids(1, n)[0] % 49, 3) for n in lengths]


@torch.no_grad()
def without_head(model: PreTrainedModel, projection: nn.Module, head: int, ids: Tensor) -> Tensor:
    """Return the logits with one head's part of the projection's input at zero, by a hook of its own."""

    def cut(module: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
        z = args[0].clone()
        size = z.shape[-1] // model.config.get_text_config().num_attention_heads
        z[..., head * size : (head + 1) * size] = 0
        return z

    handle = projection.register_forward_pre_hook(cut)
    logits: Tensor = model(input_ids=ids).logits
    handle.remove()
    return logits


def check_measures_as_it_runs(model: PreTrainedModel) -> None:
    for trace, scores in zip(rows := traces(12, 7), score_all(model, rows), strict=True):
        with torch.no_grad():
            log_probs = model(input_ids=trace.input_ids[None]).logits[0].log_softmax(-1)
        own = log_probs[:-1].gather(-1, trace.input_ids[1:, None])[:, 0]
        assert_close(scores.logprob[1:], own, "log-probabilities", tolerance=1e-4)
    ids, parts = traces(12)[0].input_ids[None], anatomy(model)
    with edit(model, KnockOut({(1, 2)})), torch.no_grad():
        got = model(input_ids=ids).logits
        cached = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False, eos_token_id=None)[0, -6:]
        assert cached.tolist() == greedy(model, ids, 6).tolist()
    assert_close(got, without_head(model, parts.layers[1].out_proj, 2, ids))
    assert (got - model(input_ids=ids).logits).abs().max() > 1e-4


def test_llama_4_whose_base_model_is_the_model_itself() -> None:
    model = llama4()
    assert model.base_model is model and decoder(model) is model.model
    check_measures_as_it_runs(model)


def test_opt_which_calls_the_module_inside_its_base_model() -> None:
    model = opt()
    assert decoder(model) is model.model.decoder
    check_measures_as_it_runs(model)


@pytest.mark.parametrize("kind", list(SEEING))
def test_a_vision_language_checkpoint_loads_as_a_text_model(kind: str, tmp_path: Path) -> None:
    plain = seeing(kind)
    loaded = load_model(save(plain, tmp_path))
    ids = traces(12)[0].input_ids[None]
    assert_close(loaded.model(input_ids=ids).logits, plain(input_ids=ids).logits)
    check_measures_as_it_runs(loaded.model)
    assert len(generate(loaded.model, loaded.tokenizer, ["w3 w4"], max_new_tokens=3, progress=False)[0]) > 2


@pytest.mark.parametrize("kind", list(VIRTUAL))
def test_virtual_tokens_are_refused_by_name_wherever_the_base_model_would_be_measured(kind: str) -> None:
    wrapped = peft.get_peft_model(tiny("llama"), VIRTUAL[kind])
    calls = [
        lambda: score(wrapped, traces(8)[0]),
        lambda: capture(wrapped, random_ids(1, 5)),
        lambda: edit(wrapped, KnockOut({(0, 0)})).__enter__(),
        lambda: generate(wrapped, word_tokenizer(), ["w3"], progress=False),
    ]
    for call in calls:
        with pytest.raises(UnsupportedModel, match=rf"^Adapter 'default' of kind {kind} adds virtual tokens") as caught:
            call()
        assert "\n" not in str(caught.value)
    score(wrapped.get_base_model(), traces(8)[0])


def test_the_adapter_that_is_active_now_decides() -> None:
    wrapped = peft.get_peft_model(tiny("llama"), peft.LoraConfig(task_type="CAUSAL_LM", r=2))
    anatomy(wrapped)
    activated = peft.LoraConfig(task_type="CAUSAL_LM", r=2, alora_invocation_tokens=[4])
    wrapped.add_adapter("late", activated)
    anatomy(wrapped)
    wrapped.set_adapter("late")
    with pytest.raises(UnsupportedModel, match=r"^Adapter 'late' is an activated LoRA"):
        anatomy(wrapped)
    wrapped.set_adapter("default")
    anatomy(wrapped)


class _Louder(nn.Module):
    """A wrapper of an unknown kind: it changes the logits outside of the model that it holds."""

    def __init__(self, model: PreTrainedModel, factor: float):
        super().__init__()
        self.held, self.factor, self.n_calls = model, factor, 0

    def get_base_model(self) -> PreTrainedModel:
        return self.held

    def forward(self, **options: Any) -> Any:
        self.n_calls += 1
        output = self.held(**options)
        output.logits = self.factor * output.logits
        return output


def test_a_wrapper_that_changes_the_logits_is_refused_and_another_one_is_checked_once() -> None:
    with pytest.raises(UnsupportedModel, match=r"^_Louder and the LlamaForCausalLM inside it give different logits"):
        anatomy(_Louder(tiny("llama"), 1.5))
    same = _Louder(tiny("llama"), 1.0)
    for _ in range(3):
        anatomy(same)
    assert same.n_calls == 1


def test_the_decoder_is_found_once_and_again_when_it_was_exchanged() -> None:
    model = tiny("llama")
    first = decoder(model)
    n_calls: list[int] = []
    model.register_forward_hook(lambda *_: n_calls.append(1))
    assert decoder(model) is first and not n_calls
    model.model = tiny("llama", seed=3).model
    assert decoder(model) is model.model is not first and n_calls


def test_a_model_is_not_kept_alive_by_what_is_known_of_it() -> None:
    model = tiny("llama")
    anatomy(model)
    watched = weakref.ref(model)
    del model
    gc.collect()
    assert watched() is None


def test_a_model_that_does_not_run_on_tokens_alone_is_refused_in_one_sentence() -> None:
    model = tiny("llama")
    model.model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(UnsupportedModel, match=r"does not run on token ids alone \(ZeroDivisionError: division by"):
        anatomy(model)


@pytest.mark.parametrize("version", ["5.25.0.dev0", "5.25.0", "6.0"])
def test_a_transformers_that_was_not_tested_is_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # the module that `decoder` holds: a test before may have imported Transformers anew
    monkeypatch.setattr(decoder.__globals__["transformers"], "__version__", version)
    model = tiny("llama")
    with pytest.raises(BadInput, match=f"Transformers {version} is installed"), edit(model, KnockOut({(0, 0)})):
        pass
