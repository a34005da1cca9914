"""With the seam attached and nothing to do, every family behaves bit for bit as without it."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from chainwright._errors import UnsupportedModel
from chainwright.edits import KnockOut, edit
from chainwright.models.padding import position_ids
from chainwright.models.seam import Attend, AttentionCall, Handlers, attach, causal_lm, seam_name, suspended
from families import FAMILIES, left_padded, random_ids, tiny
from reference import assert_equal

every_family = pytest.mark.parametrize("family", FAMILIES)
IDLE = KnockOut(set())


def batch_of_three() -> tuple[torch.Tensor, torch.Tensor]:
    """Return left-padded rows of 11, 8 and 3 tokens; the sliding families see 6."""
    return left_padded([random_ids(1, n, seed=n)[0] for n in (11, 8, 3)])


def state(model: PreTrainedModel) -> list[object]:
    """Return everything of a model that a context must put back, by identity where it has one."""
    found: list[object] = [torch.is_grad_enabled(), model.config._attn_implementation]
    for module in model.modules():
        config = getattr(module, "config", None)
        hooks = [len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks)]
        found.append((module.training, id(config), getattr(config, "_attn_implementation", None), *hooks))
    return found


@every_family
@pytest.mark.parametrize("how", ["attach", "edit"])
@torch.no_grad()
def test_idle_logits_are_the_models_own(family: str, how: str) -> None:
    model, ids = tiny(family), random_ids(2, 11)
    want = model(input_ids=ids, use_cache=False).logits
    with attach(model, Handlers({})) if how == "attach" else edit(model, IDLE, strict=False):
        got = model(input_ids=ids, use_cache=False).logits
    assert_equal(got, want, family)


@every_family
@torch.no_grad()
def test_idle_logits_of_a_left_padded_batch_are_the_models_own(family: str) -> None:
    model, (ids, mask) = tiny(family), batch_of_three()
    inputs = dict(input_ids=ids, attention_mask=mask, position_ids=position_ids(mask))
    want = model(**inputs).logits
    with edit(model, IDLE, strict=False):
        got = model(**inputs).logits
    assert_equal(got[mask.bool()], want[mask.bool()], family)


@every_family
@pytest.mark.parametrize("cache", [None, "static"])
def test_idle_generation_is_the_models_own(family: str, cache: str | None) -> None:
    model, (ids, mask) = tiny(family), batch_of_three()
    asked = dict(attention_mask=mask, max_new_tokens=7, do_sample=False, cache_implementation=cache)
    asked |= dict(return_dict_in_generate=True, output_logits=True, eos_token_id=None)
    want = model.generate(ids, **asked)
    with edit(model, IDLE, strict=False):
        got = model.generate(ids, **asked)
    assert_equal(got.sequences, want.sequences, family)
    assert_equal(torch.stack(got.logits), torch.stack(want.logits), family)


@every_family
@torch.no_grad()
def test_every_layer_is_reached_once_a_pass(family: str) -> None:
    model, reached = tiny(family), []

    def note(call, attend):
        reached.append(call.layer)
        return attend(call)

    with attach(model, Handlers({i: (note,) for i in range(3)})):
        model(input_ids=random_ids(1, 5))
    assert reached == [0, 1, 2]


class Doubling:
    """A handler that doubles z unless it is idle, and counts how often it ran."""

    def __init__(self) -> None:
        self.idle, self.n_calls = True, 0

    def is_idle(self) -> bool:
        return self.idle

    def __call__(self, call: AttentionCall, attend: Attend) -> torch.Tensor:
        self.n_calls += 1
        return 2 * attend(call)


@every_family
@torch.no_grad()
def test_a_handler_that_says_it_is_idle_is_skipped_in_that_pass_alone(family: str) -> None:
    model, ids, handler = tiny(family), random_ids(2, 11), Doubling()
    plain = model(ids).logits
    with attach(model, Handlers({0: (handler,)}, reads_state=True)):
        assert_equal(model(ids).logits, plain)
        assert handler.n_calls == 0
        handler.idle = False
        assert not torch.equal(model(ids).logits, plain)
        assert handler.n_calls == 1
        handler.idle = True
        assert_equal(model(ids).logits, plain)


def test_a_handler_inside_an_idle_one_still_runs() -> None:
    model, ids, idle, acting = tiny("llama"), random_ids(2, 11), Doubling(), Doubling()
    acting.idle = False
    with torch.no_grad(), attach(model, Handlers({0: (acting, idle)}, reads_state=True)):
        model(ids)
    assert (acting.n_calls, idle.n_calls) == (1, 0)


@every_family
@pytest.mark.parametrize("raising", [False, True])
def test_everything_is_as_before_on_leaving(family: str, raising: bool) -> None:
    model = tiny(family).train()
    model.base_model.eval()
    with edit(model, IDLE, strict=False):  # the anatomy is measured once
        pass
    before, kept_config = state(model), copy.deepcopy(model.config)
    try:
        with edit(model, KnockOut({(0, 0)})):
            assert state(model) != before, "the context changed nothing"
            model(input_ids=random_ids(1, 4))
            if raising:
                raise LookupError("in the block")
    except LookupError as error:
        assert raising and str(error) == "in the block"
    assert state(model) == before
    assert model.config.to_dict() == kept_config.to_dict()


def test_two_models_from_one_config_object_do_not_touch_each_other() -> None:
    config = AutoConfig.for_model("llama", **FAMILIES["llama"])
    torch.manual_seed(0)
    first, second = (AutoModelForCausalLM.from_config(config).eval() for _ in range(2))
    assert first.config is second.config
    ids = random_ids(1, 6)
    with torch.no_grad():
        want = second(input_ids=ids).logits
        with edit(first, KnockOut({(0, 1)})):
            first(input_ids=ids)
            assert second.config._attn_implementation == "sdpa"
            assert_equal(second(input_ids=ids).logits, want, "the other model, inside")
            with edit(second, KnockOut({(0, 1)})):
                assert not torch.equal(second(input_ids=ids).logits, want)
            assert_equal(second(input_ids=ids).logits, want, "the other model, after its own edit")
        assert_equal(second(input_ids=ids).logits, want, "the other model, after")
    assert first.config is second.config is config and config._attn_implementation == "sdpa"


@torch.no_grad()
def test_contexts_left_in_the_wrong_order_stay_in_force_and_clean_up() -> None:
    model, ids = tiny("llama"), random_ids(1, 6)
    own = model(input_ids=ids).logits
    with edit(model, KnockOut({(1, 2)})):
        want = model(input_ids=ids).logits
    outer, inner = edit(model, KnockOut({(0, 1)})), edit(model, KnockOut({(1, 2)}))
    before = state(model)
    outer.__enter__()
    inner.__enter__()
    model(input_ids=ids)
    outer.__exit__(None, None, None)
    assert_equal(model(input_ids=ids).logits, want, "the inner edit alone")
    inner.__exit__(None, None, None)
    assert state(model) == before
    assert_equal(model(input_ids=ids).logits, own, "after both")


@torch.no_grad()
def test_a_context_in_an_abandoned_generator_is_closed_with_it() -> None:
    model, ids = tiny("llama"), random_ids(1, 6)

    def stepwise():
        with edit(model, KnockOut({(0, 1)}), strict=False):
            yield model(input_ids=ids).logits
            yield model(input_ids=ids).logits

    own, steps = model(input_ids=ids).logits, stepwise()
    assert not torch.equal(next(steps), own)
    steps.close()
    assert_equal(model(input_ids=ids).logits, own)
    assert not model.base_model._forward_pre_hooks


@torch.no_grad()
def test_suspended_hides_edits_and_brings_them_back() -> None:
    model, ids = tiny("llama"), random_ids(1, 6)
    own = model(input_ids=ids).logits
    with edit(model, KnockOut({(0, 1)})) as (touched,):
        edited = model(input_ids=ids).logits
        n_sites = touched.n_sites
        with suspended(model):
            assert_equal(model(input_ids=ids).logits, own, "suspended")
            with attach(model, Handlers({})):
                pass
        assert touched.n_sites == n_sites
        assert_equal(model(input_ids=ids).logits, edited, "resumed")


def test_flash_and_custom_implementations_are_read_through_what_the_model_supports() -> None:
    plain, sinks = tiny("llama"), tiny("gpt_oss")
    assert (seam_name(plain), seam_name(sinks)) == ("chainwright_sdpa", "chainwright_eager")
    plain.set_attn_implementation("eager")
    assert seam_name(plain) == "chainwright_eager"
    plain.config._attn_implementation_internal = "flash_attention_2"
    assert seam_name(plain) == "chainwright_sdpa"


def test_what_is_no_transformers_model_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"Linear is not a Transformers model .*load_model"):
        causal_lm(nn.Linear(2, 2))


def test_a_subclass_made_elsewhere_still_finds_the_functions_of_its_model() -> None:
    model, ids = tiny("gemma2"), random_ids(1, 8)
    with torch.no_grad():
        want = model(input_ids=ids).logits
        for layer in model.model.layers:
            layer.self_attn.__class__ = type("Elsewhere", (type(layer.self_attn),), {"__module__": __name__})
        with edit(model, IDLE, strict=False):
            assert_equal(model(input_ids=ids).logits, want)


def test_configs_with_a_shared_part_stay_shared_inside() -> None:
    config = LlamaConfig(**FAMILIES["llama"])
    model = AutoModelForCausalLM.from_config(config).eval()
    with attach(model, Handlers({})):
        assert model.config is model.model.config is model.model.layers[0].self_attn.config
        assert model.config is not config and model.config._attn_implementation == "chainwright_sdpa"
