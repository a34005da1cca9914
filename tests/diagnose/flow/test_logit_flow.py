"""Logit flow against plain references, family by family, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from chainwright import BadInput, Finding, UnsupportedModel, logit_flow
from chainwright.diagnose import LogitFlow
from chainwright.diagnose.flow._read_pass import linear_norm, read_pass, with_hidden
from chainwright.diagnose.flow._trace_back import Neuron, Tracer
from chainwright.edits import AttendBack, BackHead, edit
from chainwright.models._probe import given_tensor
from chainwright.models.anatomy import anatomy
from chainwright.models.seam import STATE_KEY, Handlers, attach
from chainwright.models.writers import attn_writes, feed_forwards, mlp_writes
from families import FAMILIES, random_ids, tiny
from reference import assert_close, attention, block, out_proj

_TOKEN, _OTHER, _T = 7, 9, 8
_ROOM = 2e-6  # the RMS norms of Transformers work in float32 also in a float64 model
_MLPS = {"gpt2": "mlp.c_proj", "gpt_neox": "mlp.dense_4h_to_h"}


def plain_model(family: str):
    """Return a float64 model whose experts run one by one, as grouped products need float32."""
    model = tiny(family)
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")
    return model.double()


class Taken:
    """Tensors that plain hooks took in one pass, at the last position."""

    def __init__(self, model, family: str, ids: torch.Tensor):
        self.pre, self.post, self.z, self.act = [], [], [], []
        hooks = []
        for i in range(3):
            here = block(model, family, i)
            hooks.append(here.register_forward_pre_hook(self._given(self.pre), with_kwargs=True))
            hooks.append(here.register_forward_hook(lambda m, a, o: self.post.append(_first(o)[0, -1].clone())))
            hooks.append(out_proj(model, family, i).register_forward_pre_hook(self._given(self.z), with_kwargs=True))
            down = self._down(model, family, i)
            if down is not None:
                hooks.append(down.register_forward_pre_hook(self._given(self.act), with_kwargs=True))
        self.logits = model(ids, use_cache=False).logits[0, -1]
        for hook in hooks:
            hook.remove()

    @staticmethod
    def _down(model, family, i):
        name = _MLPS.get(family, "mlp.down_proj")
        return dict(block(model, family, i).named_modules()).get(name)

    @staticmethod
    def _given(into):
        def hook(module, args, kwargs):
            into.append((args[0] if args else kwargs["hidden_states"])[0, -1].clone())

        return hook


def _first(output):
    return output[0] if isinstance(output, tuple) else output


def lens(model, v: torch.Tensor, token: int = _TOKEN) -> torch.Tensor:
    """Return log-probabilities of a token for residual vectors `[R, D]`, with the model's own names."""
    base = model.base_model
    norm = next(m for n, m in base.named_children() if n in ("norm", "ln_f", "final_layer_norm"))
    logits = model.get_output_embeddings()(norm(v))
    cap = getattr(model.config, "final_logit_softcapping", None)
    logits = cap * torch.tanh(logits / cap) if cap else logits
    return logits.log_softmax(-1)[..., token]


def columns(module: nn.Module) -> torch.Tensor:
    """Return a projection's weight as `[in, out]`."""
    return module.weight.T if isinstance(module, nn.Linear) else module.weight


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_sums_with_the_frozen_norm(family):
    model, ids = plain_model(family), random_ids(1, _T)
    flow = logit_flow(model, ids, _TOKEN, norm="frozen", n_neurons=4, n_traced=0)
    want = model(ids).logits[0, -1].log_softmax(-1)[_TOKEN]
    assert abs(flow.logprob - float(want)) < 1e-9
    total = flow.embedding + float((flow.attention + flow.mlp + flow.between).sum())
    assert abs(total - flow.logprob) < 1e-4
    assert float(flow.between.abs().max()) == 0


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_layers_and_heads_against_plain_hooks(family):
    model, ids = plain_model(family), random_ids(1, _T)
    flow = logit_flow(model, ids, _TOKEN, n_neurons=4, n_traced=0)
    seen = Taken(model, family, ids)
    whole = lens(model, torch.stack(seen.post)) - lens(model, torch.stack(seen.pre))
    assert_close(flow.attention + flow.mlp, whole, "layers", 1e-8)
    if "gemma" in family:  # a norm stands behind the projection
        return
    for i in range(3):
        z, weight = seen.z[i].view(4, -1), columns(out_proj(model, family, i)).view(4, -1, 48)
        writes = torch.einsum("hd,hdm->hm", z, weight)
        want = lens(model, seen.pre[i] + writes) - lens(model, seen.pre[i])
        assert_close(flow.head[i], want, f"heads of layer {i}", 1e-8)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_attention_neurons_and_positions_add_up_to_heads(family):
    """Each entry of z with its column, and each source position, written out for one layer."""
    model, ids = plain_model(family), random_ids(1, _T)
    flow = logit_flow(model, ids, _TOKEN, n_neurons=10_000, n_traced=0)
    seen, parts = Taken(model, family, ids), anatomy(model)
    layer, z = 1, seen.z[1]
    alone = torch.diag(z)
    projected = parts.layers[layer].out_proj(alone) - parts.layers[layer].out_proj(torch.zeros_like(alone))
    rows = (flow.neurons[:, 1] == layer) & (flow.neurons[:, 2] == 0)
    at = flow.neurons[rows, 3] * (len(z) // 4) + flow.neurons[rows, 4]
    assert sorted(at.tolist()) == list(range(len(z)))
    assert_close(flow.coefficient[rows], z[at], "coefficients", 1e-10)
    if "gemma" not in family:
        want = lens(model, seen.pre[layer] + projected) - lens(model, seen.pre[layer])
        assert_close(flow.importance[rows], want[at], "attention neurons", 1e-8)
    assert flow.head_position.shape == (3, 4, _T)
    # one position alone gives the whole head where a head looks at one position only: the first token's own pass
    first = logit_flow(model, ids[:, :1], _TOKEN, n_neurons=4, n_traced=0)
    assert_close(first.head_position[..., 0], first.head, "a head of one position", 1e-8)


@pytest.mark.parametrize(
    "family", [f for f in FAMILIES if f not in ("gpt_oss", "deepseek_v3", "gemma2", "gemma3_text")]
)
@torch.no_grad()
def test_ffn_neurons_against_plain_hooks(family):
    model, ids = plain_model(family), random_ids(1, _T)
    flow = logit_flow(model, ids, _TOKEN, n_neurons=10_000, n_traced=0)
    seen = Taken(model, family, ids)
    for i in range(3):
        down = Taken._down(model, family, i)
        writes = seen.act[i][:, None] * columns(down)
        bias = 0 if getattr(down, "bias", None) is None else down.bias
        mid = seen.post[i] - seen.act[i] @ columns(down) - bias
        want = lens(model, mid + writes) - lens(model, mid)
        rows = (flow.neurons[:, 1] == i) & (flow.neurons[:, 2] == 1)
        assert int(rows.sum()) == len(want)
        assert_close(flow.importance[rows], want[flow.neurons[rows, 4]], f"neurons of layer {i}", _ROOM)


@pytest.mark.parametrize("family", ["gpt_oss", "deepseek_v3"])
@torch.no_grad()
def test_routed_experts_against_their_weights(family):
    """Each routed expert's neurons, computed from router and expert weights."""
    model, ids = plain_model(family), random_ids(1, _T)
    flow = logit_flow(model, ids, _TOKEN, n_neurons=10_000, n_traced=0)
    mlp = block(model, family, 2).mlp
    given = []
    hook = mlp.register_forward_pre_hook(lambda m, a: given.append(a[0][0, -1].clone()))
    seen = Taken(model, family, ids)
    hook.remove()
    x = given[0]
    router = mlp.router if family == "gpt_oss" else mlp.gate
    _, weights, chosen = router(x[None] if family == "gpt_oss" else x[None, None])
    want = {}
    for weight, expert in zip(weights.flatten(), chosen.flatten().tolist(), strict=True):
        if family == "gpt_oss":
            up = x @ mlp.experts.gate_up_proj[expert] + mlp.experts.gate_up_proj_bias[expert]
            activation, down = mlp.experts._apply_gate(up), mlp.experts.down_proj[expert]
        else:
            gate, up = (mlp.experts.gate_up_proj[expert] @ x).chunk(2)
            activation, down = mlp.experts.act_fn(gate) * up, mlp.experts.down_proj[expert].T
        want[f"experts.down_proj[{expert}]"] = weight * activation[:, None] * down
    total = seen.post[2] - first_mid(model, family, ids)
    mid = seen.post[2] - total
    for name, writes in want.items():
        group = flow.groups[2].index(name)
        rows = (flow.neurons[:, 1] == 2) & (flow.neurons[:, 2] == 1) & (flow.neurons[:, 3] == group)
        gains = lens(model, mid + writes) - lens(model, mid)
        assert_close(flow.importance[rows], gains[flow.neurons[rows, 4]], name, _ROOM)


def first_mid(model, family, ids):
    """Return the stream between attention and MLP of the last layer, at the last position."""
    taken = []
    norm = block(model, family, 2).post_attention_layernorm
    hook = norm.register_forward_pre_hook(lambda m, a: taken.append(a[0][0, -1].clone()))
    model(ids, use_cache=False)
    hook.remove()
    return taken[0]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_what_switches_an_attention_neuron_on_adds_up(family):
    """All credit of traced attention neurons goes to cells, embeddings and biases: none is made or lost."""
    model, ids = plain_model(family), random_ids(1, _T)
    parts = anatomy(model)
    with attach(model, Handlers({})):
        ffs = feed_forwards(parts)
        reads = read_pass(parts, ffs, ids)
        tracer = Tracer(parts, ffs, reads, 4, 4)
        neurons = [(Neuron(_T - 1, 2, 0, 1, 3), 1.0)]
        pulls = tracer._pulls(neurons)
        cells = tracer._cells(pulls)
    coefficient = float(reads[2].z[-1, 1, 3])
    # changing what a cell writes by a share of itself changes the value coefficient by that share of its credit
    from_embedding = float((pulls[0, 0] * reads[0].pre).sum())
    given = float(cells.sum()) + from_embedding
    biasless = given * coefficient
    assert abs(biasless - _linear_part(parts, ffs, reads, coefficient)) < 1e-6 * max(1.0, abs(coefficient))


def _linear_part(parts, ffs, reads, coefficient):
    """Return the neuron's coefficient without what the norm's and the projection's biases put into it."""
    layer, read = parts.layers[2], reads[2]
    rows = read.pattern(_T - 1)[1].to(read.z.dtype)
    linear = linear_norm(ffs[2].attn_norm, read.pre, read.pre)
    with attach(parts.model, Handlers({})):
        values = [_values(layer, read, given)[1][:, 3] for given in (linear, torch.zeros_like(linear))]
    return float(rows @ (values[0] - values[1]))


def _values(layer, read, given):
    seen = []

    def take(call, attend):
        seen.append(call.v)
        return attend(call)

    def put(module, args, kwargs):
        return with_hidden(args, kwargs, given.view_as(given_tensor(args, kwargs)))

    hook = layer.attention.register_forward_pre_hook(put, with_kwargs=True)
    layer.block(*read.args, **{**read.kwargs, STATE_KEY: Handlers({int(layer.attention.layer_idx): (take,)})})
    hook.remove()
    return seen[0][0].repeat_interleave(read.z.shape[1] // seen[0].shape[1], dim=0)


@torch.no_grad()
def test_flow_steps_and_query_neurons():
    model, ids = tiny("llama"), random_ids(1, _T)
    flow = logit_flow(model, ids, _TOKEN, n_traced=6, depth=2, n_cells=3)
    assert flow.flow.shape == (3, _T, 3, 2)
    # value neurons stand at the last position, in the layers where they are
    assert float(flow.flow[0, :-1].abs().max()) == 0
    traced = torch.cat([flow.importance[flow.neurons[:, 2] == kind][:6] for kind in (0, 1)])
    assert_close(flow.flow[0].sum(), traced[traced > 0].sum(), "value neurons")
    # no query component comes from layer 2's own MLP at step 1, or is above what it switches on
    assert float(flow.flow[1, :, 2, 1].abs().max()) == 0
    assert len(flow.query_neurons) and (flow.query_credit > 0).all()
    assert flow.to_frame().num_rows == len(flow.neurons) + len(flow.query_neurons)
    assert "Log-probability" in flow.summary()


@torch.no_grad()
def test_contrast_is_the_difference_of_two_lenses():
    model, ids = tiny("llama").double(), random_ids(1, _T)
    flow = logit_flow(model, ids, _TOKEN, conflict_id=_OTHER, n_traced=0)
    assert flow.contrast.shape == (_T, 7)
    logits = model(ids).logits[0]
    assert_close(flow.contrast[:, -1], logits[:, _TOKEN] - logits[:, _OTHER], "contrast", 1e-8)


@pytest.mark.parametrize("source", [0, 1])
@torch.no_grad()
def test_reads_the_second_pass_of_back_attention(source):
    model, ids = tiny("llama").double(), random_ids(1, _T)
    torch.manual_seed(0)
    head = BackHead(48, source, (2, 3), d_back=8).double()
    nn.init.normal_(head.o.weight)
    plain = logit_flow(model, ids, _TOKEN, norm="frozen", n_traced=0, conflict_id=_OTHER)
    with edit(model, AttendBack([head])):
        flow = logit_flow(model, ids, _TOKEN, norm="frozen", n_traced=4, conflict_id=_OTHER)
        want = model(ids).logits[0, -1].log_softmax(-1)[_TOKEN]
    assert abs(flow.logprob - float(want)) < 1e-9
    others = [i for i in range(3) if i != source]
    assert float(flow.between[source].abs()) > 0.01 and float(flow.between[others].abs().max()) == 0
    total = flow.embedding + float((flow.attention + flow.mlp + flow.between).sum())
    assert abs(total - flow.logprob) < 1e-9
    assert_close(flow.contrast[:, 0], plain.contrast[:, 0], "the embedding is the model's own", 1e-12)
    assert "added before it" in [row["component"] for row in flow.components(40)]


@torch.no_grad()
def test_memory_does_not_depend_on_how_many_rows_at_once():
    model, ids = tiny("qwen3").double(), random_ids(1, _T)
    few, many = (logit_flow(model, ids, _TOKEN, max_rows=n, n_neurons=15) for n in (3, 10_000))
    assert_close(few.importance, many.importance, "importance", 1e-10)
    assert torch.equal(few.neurons, many.neurons)


@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
@torch.no_grad()
def test_a_span_adds_up_its_tokens(family):
    """Each token behind those before it; with experts the groups of FFN neurons keep their names."""
    model, ids = plain_model(family), random_ids(1, _T)[0]
    options = {"n_neurons": 4, "n_traced": 4, "norm": "frozen"}
    whole = logit_flow(model, ids, [_TOKEN, _OTHER], span="sum", **options)
    first = logit_flow(model, ids, _TOKEN, **options)
    second = logit_flow(model, torch.cat([ids, torch.tensor([_TOKEN])]), _OTHER, **options)
    assert whole.target_ids == [_TOKEN, _OTHER] and len(whole.input_ids) == _T + 1
    assert abs(whole.logprob - first.logprob - second.logprob) < 1e-9
    for name in ("attention", "mlp", "head"):
        assert_close(getattr(whole, name), getattr(first, name) + getattr(second, name), name, 1e-9)
    assert_close(whole.head_position[..., :_T], first.head_position + second.head_position[..., :_T], "positions", 1e-9)
    assert_close(whole.flow[:, :_T], first.flow + second.flow[:, :_T], "flow", 1e-5)
    assert_close(whole.flow[:, _T], second.flow[:, _T], "flow at the last position", 1e-5)
    named = {
        (f.groups[layer][group], unit, round(float(v), 9))
        for f in (first, second)
        for (_, layer, kind, group, unit), v in zip(f.neurons.tolist(), f.importance, strict=True)
        if kind
    }
    found = {
        (whole.groups[layer][group], unit, round(float(v), 9))
        for (_, layer, kind, group, unit), v in zip(whole.neurons.tolist(), whole.importance, strict=True)
        if kind
    }
    assert found == named
    assert logit_flow(model, ids, [_TOKEN, _OTHER], span="first", **options).logprob == first.logprob


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox"])
@torch.no_grad()
def test_words_are_what_a_write_alone_makes_likeliest(family):
    model, ids = plain_model(family), random_ids(1, _T)
    flow = logit_flow(model, ids, _TOKEN, n_neurons=4, n_traced=0, n_words=5)
    assert flow.head_words.shape == (3, 4, 5) and flow.cell_words.shape == (_T, 3, 2, 3)
    parts = anatomy(model)
    with attach(model, Handlers({})):
        reads = read_pass(parts, feed_forwards(parts), ids)
    norm = parts.final_norm
    for layer, read in enumerate(reads):
        for kind, written in enumerate((read.mid - read.pre, read.post - read.mid)):
            want = model.get_output_embeddings()(norm(written)).topk(3).indices
            assert torch.equal(flow.cell_words[:, layer, kind], want)
    best = flow.components(4)
    assert [row["nats"] for row in best] == sorted((row["nats"] for row in best), reverse=True)
    assert max(float(flow.head.max()), float(flow.mlp.max())) == best[0]["nats"]
    assert logit_flow(model, ids, _TOKEN, n_neurons=4, n_traced=0, n_words=0).cell_words.numel() == 0


@torch.no_grad()
def test_saves_and_loads(tmp_path):
    flow = logit_flow(tiny("gpt2"), random_ids(1, _T), _TOKEN, conflict_id=_OTHER, n_neurons=5)
    flow.save(tmp_path / "flow")
    again = Finding.load(tmp_path / "flow")
    assert isinstance(again, LogitFlow) and torch.equal(again.flow, flow.flow) and again.groups == flow.groups


def test_what_cannot_be_followed_is_refused():
    model, ids = tiny("llama"), random_ids(1, _T)
    with pytest.raises(BadInput, match=r"2 tokens, \[7, 8\]; pass span='first'"):
        logit_flow(model, ids, [7, 8])
    with pytest.raises(BadInput, match="conflicting answer of several tokens"):
        logit_flow(model, ids, 7, conflict_id=[8, 9])
    with pytest.raises(BadInput, match="span must be 'first', 'sum' or None"):
        logit_flow(model, ids, [7, 8], span="all")
    with pytest.raises(BadInput, match="must be a token id"):
        logit_flow(model, ids, [])
    with pytest.raises(BadInput, match="at least one token"):
        logit_flow(model, ids[:, :0], 7)
    with pytest.raises(BadInput, match="no conflicting token"):
        logit_flow(model, ids, 7, n_neurons=2, n_traced=0).plot("contrast")
    with pytest.raises(BadInput, match="between 0 and 60"):
        logit_flow(model, ids, 61)
    with pytest.raises(BadInput, match="between 0 and 60"):
        logit_flow(model, ids, 7, conflict_id=-1)
    with pytest.raises(BadInput, match="one context"):
        logit_flow(model, random_ids(2, _T), 7)
    with pytest.raises(BadInput, match="n_neurons must be at least 1"):
        logit_flow(model, ids, 7, n_neurons=0)
    with pytest.raises(BadInput, match="'final' or 'frozen'"):
        logit_flow(model, ids, 7, norm="none")  # type: ignore[arg-type]


def test_an_mlp_whose_weights_are_hidden_is_refused():
    model = tiny("llama")

    class Hidden(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = [inner]
            self.made = nn.Parameter(torch.zeros(2, 2))

        def forward(self, x):
            return self.inner[0](x)

    model.model.layers[1].mlp = Hidden(model.model.layers[1].mlp)
    with pytest.raises(UnsupportedModel, match="could not be separated"):
        logit_flow(model, random_ids(1, _T), _TOKEN)


def test_attention_module_is_where_the_reference_looks():
    model = tiny("llama")
    assert anatomy(model).layers[1].attention is attention(model, "llama", 1)


_SIZES = dict(num_hidden_layers=3, hidden_size=48, intermediate_size=64, num_attention_heads=4, vocab_size=61)
_MORE = {
    "olmo2": dict(_SIZES, num_key_value_heads=2, pad_token_id=0),
    "mixtral": dict(_SIZES, num_key_value_heads=2, head_dim=16, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": dict(
        _SIZES, num_key_value_heads=2, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
        decoder_sparse_step=1, mlp_only_layers=[1],
    ),
    "granite": dict(_SIZES, num_key_value_heads=2, residual_multiplier=0.3, logits_scaling=2.0),
}  # fmt: skip
_WITHOUT_BIAS = ["llama", "qwen2", "qwen3", "phi3", "mistral", "gemma2", "gemma3_text", "deepseek_v3", *_MORE]


def any_model(family: str):
    """Return a float64 model of a family of the seam's or of those that only this file knows."""
    if family in FAMILIES:
        return plain_model(family)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **_MORE[family])).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() >= 2:
                weight.normal_(0, 1.2 / weight.shape[-1] ** 0.5)
            else:
                weight.mul_(1 + 0.3 * torch.randn_like(weight))  # norms that are not all ones
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")
    return model.double()


@pytest.mark.parametrize("family", _MORE)
@torch.no_grad()
def test_sums_with_norms_behind_and_experts(family):
    model, ids = any_model(family), random_ids(1, _T)
    flow = logit_flow(model, ids, _TOKEN, norm="frozen", n_neurons=4, n_traced=4)
    want = model(ids).logits[0, -1].log_softmax(-1)[_TOKEN]
    total = flow.embedding + float((flow.attention + flow.mlp + flow.between).sum())
    assert abs(flow.logprob - float(want)) < 1e-9 and abs(total - flow.logprob) < 1e-4


@pytest.mark.parametrize("family", _WITHOUT_BIAS)
@torch.no_grad()
def test_neurons_add_up_to_what_their_half_writes(family):
    """All attention neurons to the attention, all neurons of all experts that ran to the MLP, norms behind included."""
    model, ids = any_model(family), random_ids(1, _T)
    parts = anatomy(model)
    with attach(model, Handlers({})):
        ffs = feed_forwards(parts)
        reads = read_pass(parts, ffs, ids)
        tracer = Tracer(parts, ffs, reads, 4, 4)
        for i, read in enumerate(reads):
            every = torch.arange(read.z[-1].numel())
            written = attn_writes(parts.layers[i], read.z[-1], every).sum(0)
            assert_close(written, (read.mid - read.pre)[-1], f"attention of layer {i}", _ROOM)
            run = tracer.neurons_at(i, _T - 1)
            written = sum(mlp_writes(ffs[i], g, run.out, torch.arange(len(g.activation))).sum(0) for g in run.groups)
            assert_close(written, (read.post - read.mid)[-1], f"MLP of layer {i}", _ROOM)
            if family in ("mixtral", "qwen3_moe"):
                assert len(run.groups) == (1 if (family, i) == ("qwen3_moe", 1) else 2), "a group for each expert"
