"""The seam on CUDA: the same numbers as on the CPU, also in bfloat16 and with compiled static-cache decoding."""

from __future__ import annotations

import copy

import pytest
import torch

from chainwright import KnockOut, capture, edit, knockout_effects
from families import FAMILIES, left_padded, random_ids, tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TOLERANCE = 2e-4  # float32 with other kernels than the CPU's
LENGTHS = (9, 14, 6)


@pytest.fixture(autouse=True)
def _full_precision() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    return left_padded([random_ids(1, n, n)[0] for n in LENGTHS])


@pytest.mark.parametrize("family", FAMILIES)
def test_attached_but_idle_changes_no_bit(family: str) -> None:
    model = tiny(family).cuda()
    ids, mask = (x.cuda() for x in _batch())
    with torch.no_grad():
        plain = model(ids, attention_mask=mask).logits
        with edit(model, KnockOut(set()), strict=False):
            idle = model(ids, attention_mask=mask).logits
    assert torch.equal(plain, idle), f"max difference {(plain - idle).abs().max()}"


@pytest.mark.parametrize("positions", ["all", "last"])
@pytest.mark.parametrize("family", FAMILIES)
def test_effects_and_heads_equal_those_of_the_cpu(family: str, positions: str) -> None:
    model = tiny(family)
    ids, mask = _batch()
    tokens = torch.tensor([5, 9, 20])
    on_cpu = knockout_effects(model, ids, tokens, attention_mask=mask, positions=positions)
    z_cpu = capture(model, ids, attention_mask=mask).z
    on_gpu = copy.deepcopy(model).cuda()
    found = knockout_effects(on_gpu, ids.cuda(), tokens, attention_mask=mask.cuda(), positions=positions)
    apart = (found.effect - on_cpu.effect).abs()
    assert apart.max() < TOLERANCE, f"max {apart.max()}, mean {apart.mean()}"
    seen = mask.bool()[None, :, :, None, None].expand_as(z_cpu)
    z_apart = (capture(on_gpu, ids.cuda(), attention_mask=mask.cuda()).z.cpu() - z_cpu)[seen].abs()
    assert z_apart.max() < 10 * TOLERANCE, f"max {z_apart.max()}, mean {z_apart.mean()}"


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_under_a_knockout_equals_that_of_the_cpu(family: str) -> None:
    model = tiny(family)
    ids, mask = _batch()
    options = {"max_new_tokens": 8, "do_sample": False}
    heads = [{(0, 1)}, {(1, 2), (2, 0)}, set()]
    with edit(model, KnockOut(heads)):
        on_cpu = model.generate(ids, attention_mask=mask, **options)
    on_gpu = copy.deepcopy(model).cuda()
    with edit(on_gpu, KnockOut(heads)) as (touched,):
        found = on_gpu.generate(ids.cuda(), attention_mask=mask.cuda(), **options)
    assert torch.equal(found.cpu(), on_cpu)
    assert touched.n_sites > 0


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_compiled_static_cache_decoding_equals_dynamic(family: str) -> None:
    model = tiny(family).cuda()
    ids = random_ids(2, 9).cuda()
    mask = torch.ones_like(ids)
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False}
    with edit(model, KnockOut({(1, 2)})) as (touched,):
        dynamic = model.generate(ids, **options)
        n_sites = touched.n_sites
        static = model.generate(ids, cache_implementation="static", **options)
    assert torch.equal(dynamic, static)
    assert touched.n_sites == 2 * n_sites


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_knockouts_do_what_a_zeroed_weight_does(family: str) -> None:
    from chainwright.models import anatomy

    model = tiny(family).to("cuda", torch.bfloat16)
    ids = random_ids(2, 12).cuda()
    with torch.no_grad(), edit(model, KnockOut({(1, 2)})):
        found = model(ids).logits.float()
    parts = anatomy(model)
    weight = parts.layers[1].out_proj.weight
    at = slice(2 * parts.d_head, 3 * parts.d_head)
    with torch.no_grad():
        (weight[at] if family == "gpt2" else weight[:, at]).zero_()
        expected = model(ids).logits.float()
    apart = (found - expected).abs()
    assert apart.max() < 0.1, f"max {apart.max()}, mean {apart.mean()}"


@pytest.mark.parametrize("positions", ["all", "last"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gpt_oss", "deepseek_v3"])
def test_sweeps_in_bfloat16_follow_whole_passes(family: str, positions: str) -> None:
    model = tiny(family).to("cuda", torch.bfloat16)
    ids, tokens = random_ids(3, 24).cuda(), torch.tensor([5, 9, 20])
    found = knockout_effects(model, ids, tokens, positions=positions)
    with torch.no_grad(), edit(model, KnockOut({(1, 2)}, positions=positions)):
        probs = model(ids, use_cache=False).logits[:, -1].float().softmax(-1).cpu()
    without = probs.gather(-1, tokens[:, None])[:, 0]
    apart = (found.baseline - found.effect[:, 1, 2] - without).abs()
    assert apart.max() < 0.1, f"max {apart.max()}, mean {apart.mean()}"


@pytest.mark.parametrize("method", ["gradient", "screened"])
def test_estimates_on_cuda_are_those_of_the_cpu(method: str) -> None:
    model = tiny("llama")
    ids, mask = _batch()
    asked = {"method": method, "share": 0.25}
    on_cpu = knockout_effects(model, ids, torch.tensor([5, 9, 20]), attention_mask=mask, **asked)
    on_gpu = copy.deepcopy(model).cuda()
    found = knockout_effects(on_gpu, ids.cuda(), torch.tensor([5, 9, 20]), attention_mask=mask.cuda(), **asked)
    apart = (found.effect - on_cpu.effect).abs()
    assert apart.max() < TOLERANCE, f"max {apart.max()}, mean {apart.mean()}"
