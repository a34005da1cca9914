"""Step maps equal eager attention with retained gradients, on every family, and bad input is refused."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from chainwright._errors import BadInput, BadTrace
from chainwright._finding import Finding
from chainwright.diagnose import StepSaliency, plan_step_saliency, step_saliency
from chainwright.edits import KnockOut, edit
from chainwright.models.anatomy import anatomy
from chainwright.models.padding import position_ids
from chainwright.traces import Span, Trace
from families import FAMILIES, left_padded, random_ids, tiny
from reference import assert_close

every_family = pytest.mark.parametrize("family", FAMILIES)


def trace_of(n_tokens: int = 23, seed: int = 0) -> Trace:
    borders = [0, 5, 6, 10, 13, 17, n_tokens]
    steps = [Span(a, b) for a, b in pairwise(borders)]
    ids = random_ids(1, n_tokens, seed)[0]
    return Trace(ids, steps[0], Span(5, 17), Span(17, n_tokens), steps)


def eager_influence(model: PreTrainedModel, ids: Tensor, span: tuple[int, int]) -> Tensor:
    """Return `mean over heads |A dA|`, `[L, T, T]`, from weights that the model itself returns, gradients retained."""
    model.set_attn_implementation("eager")
    out = model(input_ids=ids[None], output_attentions=True, use_cache=False)
    for weights in out.attentions:
        weights.retain_grad()
    log_probs = out.logits[0, :-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
    (-log_probs[span[0] - 1 : span[1] - 1].mean()).backward()
    return torch.stack([(w * w.grad)[0].abs().mean(0) for w in out.attentions]).detach()


def step_means(influence: Tensor, steps: list[Span]) -> Tensor:
    return torch.stack(
        [torch.stack([influence[:, a:b, c:d].mean((1, 2)) for c, d in steps], dim=-1) for a, b in steps], dim=1
    )


def assert_relative(got: Tensor, want: Tensor, what: str, tolerance: float = 1e-3) -> None:
    """Compare entry by entry, relative to each entry; entries near zero relative to their layer's mean."""
    room = tolerance * (want.abs() + 1e-3 * want.abs().mean((1, 2), keepdim=True))
    off = (got.double() - want.double()).abs()
    assert bool((off <= room).all()), f"{what}: largest excess {float((off / room).max()):.3g} times the room"


@every_family
@pytest.mark.parametrize("target", ["sequence", "span"])
@pytest.mark.parametrize("block_bytes", [1, 2**11, 2**23])
def test_maps_equal_retained_gradients(family: str, target: str, block_bytes: int) -> None:
    model, trace = tiny(family), trace_of()
    span = (1, len(trace)) if target == "sequence" else tuple(trace.summary)
    want = step_means(eager_influence(tiny(family), trace.input_ids, span), trace.steps)
    found = step_saliency(model, trace, target=target, block_bytes=block_bytes)
    assert_relative(found.map, want, family)
    assert bool((found.map.triu(1) == 0).all())


@every_family
def test_a_list_of_traces_gives_what_each_gives_alone(family: str) -> None:
    model = tiny(family)
    traces = [trace_of(23), trace_of(31, 1), trace_of(19, 2)]
    alone = [step_saliency(model, trace) for trace in traces]
    together = step_saliency(model, traces)
    for got, want in zip(together, alone, strict=True):
        assert_relative(got.map, want.map, family)
        assert got.steps == want.steps and abs(got.loss - want.loss) < 1e-4


def test_a_padded_row_equals_eager_with_a_mask() -> None:
    rows = [trace_of(23), trace_of(31, 1)]
    ids, mask = left_padded([trace.input_ids for trace in rows])
    model = tiny("llama")
    model.set_attn_implementation("eager")
    out = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=position_ids(mask),
        output_attentions=True,
        use_cache=False,
    )
    for weights in out.attentions:
        weights.retain_grad()
    log_probs = out.logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    (-log_probs[0, 8:].mean() - log_probs[1].mean()).backward()
    influence = torch.stack([(w * w.grad)[0].abs().mean(0)[8:, 8:] for w in out.attentions])
    got = step_saliency(tiny("llama"), rows)[0]
    assert_relative(got.map, step_means(influence, rows[0].steps), "padded row")


@every_family
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_training_model_with_checkpointing_gives_the_same_map_and_stays_as_it_is(
    family: str, use_reentrant: bool
) -> None:
    trace = trace_of()
    want = step_saliency(tiny(family), trace)
    model = tiny(family).train()
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    frozen = next(model.parameters()).requires_grad_(False)
    asking = {name for name, p in model.named_parameters() if p.requires_grad}
    config = model.config
    got = step_saliency(model, trace)
    assert_relative(got.map, want.map, family)
    assert model.training and all(module.training for module in model.modules())
    assert {name for name, p in model.named_parameters() if p.requires_grad} == asking and not frozen.requires_grad
    assert model.config is config and not model.base_model._forward_pre_hooks
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("family", ["llama", "gpt_oss", "gemma2", "deepseek_v3"])
def test_bfloat16_is_summed_in_float32(family: str) -> None:
    trace = trace_of()
    want = step_saliency(tiny(family), trace).map
    got = step_saliency(tiny(family).bfloat16(), trace).map
    assert got.dtype == torch.float32
    off = (got - want).abs().sum() / want.sum()
    assert float(off) < 0.35, f"{family}: {float(off):.3g}"
    ranks = [
        torch.corrcoef(torch.stack([g[g > 0].log(), w[g > 0].log()]))[0, 1] for g, w in zip(got, want, strict=True)
    ]
    assert min(map(float, ranks)) > 0.9


def test_float64_agrees_to_its_own_precision() -> None:
    model, trace = tiny("qwen3").double(), trace_of()
    want = step_means(eager_influence(tiny("qwen3").double(), trace.input_ids, (1, len(trace))), trace.steps)
    assert_relative(step_saliency(model, trace).map, want.float(), "float64", 1e-6)


def test_the_map_of_an_edited_model_is_shown() -> None:
    model, trace = tiny("llama"), trace_of()
    own = step_saliency(model, trace).map
    with edit(model, KnockOut({(1, h) for h in range(3)}), KnockOut({(0, 2)})):
        found = step_saliency(model, trace).map
    proj = [anatomy(model).layers[i].out_proj for i in range(2)]
    with torch.no_grad():
        proj[1].weight.view(48, 4, 12)[:, :3] = 0
        proj[0].weight.view(48, 4, 12)[:, 2] = 0
    assert_relative(found, step_saliency(model, trace).map, "edited")
    assert float((found - own).abs().max()) > 1e-3 * float(own.max())


def test_a_pair_of_ids_and_steps_is_a_trace_without_a_summary() -> None:
    model, trace = tiny("llama"), trace_of()
    want = step_saliency(model, trace)
    for ids in (trace.input_ids, trace.input_ids[None], trace.input_ids.tolist()):
        got = step_saliency(model, (ids, trace.steps))
        assert torch.equal(got.map, want.map)
        assert got.segments == ["question"] + 5 * ["thinking"]
    assert bool(got.measures.decay.isnan().all()) and not bool(got.measures.lock_in.isnan().any())
    assert want.segments == ["question", *4 * ["thinking"], "summary"]


def test_causal_pairs_differ_on_the_diagonal_only() -> None:
    model, trace = tiny("llama"), trace_of()
    every, causal = (step_saliency(model, trace, pairs=pairs) for pairs in ("all", "causal"))
    n = torch.tensor(every.sizes)
    ratio = causal.map / every.map
    assert_close(ratio.diagonal(dim1=1, dim2=2), (2 * n / (n + 1)).expand(3, -1).float(), "diagonal")
    assert torch.equal(causal.map.tril(-1), every.map.tril(-1))
    assert_close(every.measures.thinking_intensity, causal.measures.thinking_intensity, "intensity", 1e-6)


def test_the_shortest_traces_have_a_map() -> None:
    model = tiny("llama")
    one = step_saliency(model, (torch.tensor([5, 6]), [(0, 2)]))
    assert one.map.shape == (3, 1, 1) and bool((one.map > 0).all())
    assert bool(one.measures.lock_in.isnan().all())
    assert one.summary() == f"1 steps, 2 tokens, 3 layers, loss {one.loss:.3f} nats."
    single = step_saliency(model, (torch.arange(4, 12), [(i, i + 1) for i in range(8)]))
    assert single.map.shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ((torch.tensor([5]), [(0, 1)]), {}, "a single token, so no token is predicted"),
        ((torch.tensor([5, 6, 7]), [(0, 1), (2, 3)]), {}, r"step 1 must begin at token 1"),
        ((torch.tensor([5, 6, 7]), [(0, 2)]), {}, r"the last step must end at T = 3"),
        ((torch.tensor([5, 6, 7]), []), {}, "steps is empty"),
        ((torch.tensor([5, 99]), [(0, 2)]), {}, "token id 99, but the model's vocabulary has 61"),
        ((torch.full((300,), 5), [(0, 300)]), {}, "300 tokens, but the model has positions for 256"),
        ((torch.tensor([5, 6]), [(0, 2)]), {"target": "answer"}, "target must be 'sequence' or 'span'; got 'answer'"),
        ((torch.tensor([5, 6]), [(0, 2)]), {"pairs": "some"}, "pairs must be"),
        ((torch.tensor([5, 6]), [(0, 2)]), {"target": "span"}, "no summary, so target='span' needs a span"),
        ((torch.tensor([5, 6]), [(0, 2)]), {"target": "span", "span": (1, 3)}, "inside the trace's 2 tokens"),
        ((torch.tensor([5, 6]), [(0, 2)]), {"target": "span", "span": (0, 1)}, "which nothing predicts"),
        ((torch.tensor([5, 6]), [(0, 2)]), {"span": (0, 1)}, "pass target='span'"),
        ("text", {}, "Pass a trace as a Trace"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(given: object, options: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        step_saliency(tiny("llama"), given, **options)  # type: ignore[call-overload]
    assert issubclass(BadTrace, BadInput)


def test_an_edit_that_replaces_attention_is_refused() -> None:
    from chainwright._errors import UnsupportedModel
    from chainwright.models.seam import Handlers, attach

    model = tiny("llama")

    def silent(call, attend):
        return torch.zeros_like(call.q).transpose(1, 2)

    with attach(model, Handlers({1: (silent,)})), pytest.raises(UnsupportedModel, match="the attention of layer 1"):
        step_saliency(model, trace_of())


def test_layers_that_cannot_be_run_alone_are_refused() -> None:
    from chainwright._errors import UnsupportedModel

    model, calls = tiny("llama"), []
    anatomy(model)

    def drifting(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        calls.append(1)
        return output * (1 + 0.1 * len(calls))

    model.model.layers[1].mlp.register_forward_hook(drifting)
    with pytest.raises(UnsupportedModel, match="Layer 1 of this llama model, rerun by itself, is off by a share of"):
        step_saliency(model, trace_of())


def test_a_finding_comes_back_from_its_folder(tmp_path) -> None:
    found = step_saliency(tiny("llama"), trace_of(), target="span")
    again = Finding.load(found.save(tmp_path / "map"))
    assert isinstance(again, StepSaliency) and torch.equal(again.map, found.map) and again.steps == found.steps
    assert again.config == {"target": "span", "pairs": "all", "span": [17, 23]}
    frame = found.to_frame()
    assert frame.num_rows == 3 * 21
    row = frame.to_pylist()[21 + 4]
    assert row["saliency"] == pytest.approx(float(found.map[row["layer"], row["step"], row["from_step"]]))
    assert found.step_of(9) == 2
    with pytest.raises(BadInput, match="Token 23 is in no step; the trace has tokens 0 to 22"):
        found.step_of(23)


def test_the_plan_grows_linearly_in_memory_and_needs_no_run() -> None:
    model = tiny("llama", max_position_embeddings=8192)
    ids = random_ids(1, 8000)[0]
    short, long = (plan_step_saliency(model, (ids[:n], [(0, n)])) for n in (4000, 8000))
    assert 1.5 < long.mebibytes / short.mebibytes < 2.2 and long.seconds > short.seconds > 0
    assert str(long).startswith("1 trace of up to 8000 tokens in 1 steps: about ")


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_a_plan_needs_no_weights(family: str) -> None:
    model, trace = tiny(family), trace_of()
    with torch.device("meta"):
        empty = type(model)(model.config)
    want, got = plan_step_saliency(model, trace), plan_step_saliency(empty, trace, device="cpu")
    assert got[:3] == want[:3] and got.mebibytes == pytest.approx(want.mebibytes, rel=0.1) and got.seconds > 0
    with pytest.raises(BadTrace, match="300 tokens, but the model has positions for 256"):
        plan_step_saliency(empty, (torch.full((300,), 5), [(0, 300)]))


def test_a_plan_for_a_large_model_takes_no_memory() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        large = LlamaForCausalLM(LlamaConfig(max_position_embeddings=32768, dtype="bfloat16"))
    found = plan_step_saliency(large, (torch.full((16384,), 5), [(0, 100), (100, 16384)]), device="cpu")
    assert found.n_tokens == 16384 and 4_000 < found.mebibytes < 40_000
