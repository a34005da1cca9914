"""The bridge: the projection, a case by hand, a reference that shifts scores, and runs of every kind."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chainwright._errors import BadInput, EditNeverFired
from chainwright.edits import Bridge, KnockOut, edit
from chainwright.edits._floor import EPSILON, bridge_factors, factors_of_one, put_under_one
from chainwright.models.anatomy import anatomy
from chainwright.models.attention_weights import attn_pattern
from chainwright.models.capture import capture
from chainwright.models.seam import AttentionCall, Handlers, attach
from chainwright.traces.live import LiveSteps
from families import FAMILIES, left_padded, random_ids, tiny
from reference import assert_close, assert_equal
from step_runs import Words, cached, response, rows_of, uncached

STEPS = LiveSteps(Words(), "think")
every_family = pytest.mark.parametrize("family", FAMILIES)


def wide(layers: tuple[int, ...] = (0, 1, 2), tau_max: float = 0.6, **options) -> Bridge:
    return Bridge(layers, STEPS, tau_max, **options)


masses = st.lists(st.floats(1e-9, 1.0), min_size=3, max_size=3).map(lambda m: [x / sum(m) for x in m])


@given(masses, st.floats(0, 0.999))
def test_the_projection_keeps_the_rest_and_reaches_the_floor(shares: list[float], tau: float) -> None:
    p_bridge, p_own, p_rest = (torch.tensor(x, dtype=torch.float64) for x in shares)
    found = bridge_factors(p_bridge, p_own, torch.tensor(tau, dtype=torch.float64))
    new_bridge, new_own = p_bridge * found.bridge, p_own * found.own
    assert float(new_bridge + new_own) == pytest.approx(float(1 - p_rest), abs=1e-12)
    floor = min(tau, float(p_bridge + p_own) - EPSILON)
    if bool(found.is_needed):
        assert float(new_bridge) == pytest.approx(floor, abs=1e-12) and float(new_own) > 0
        assert float(p_bridge) < floor
    else:
        assert float(found.bridge) == 1 and float(found.own) == 1
        assert float(p_bridge) >= floor or float(p_own) <= EPSILON
    alone = factors_of_one(float(p_bridge), float(p_own), tau)
    assert (alone is not None) == bool(found.is_needed)
    assert (alone or (1.0, 1.0)) == pytest.approx((float(found.bridge), float(found.own)), rel=1e-12)


@given(masses, st.floats(0.01, 0.9), st.floats(-0.4, 0.4))
def test_no_other_distribution_with_the_floor_is_nearer(shares: list[float], tau: float, move: float) -> None:
    p = torch.tensor(shares, dtype=torch.float64)
    found = bridge_factors(p[0], p[1], torch.tensor(tau, dtype=torch.float64))
    if not bool(found.is_needed):
        return
    best = torch.stack([p[0] * found.bridge, p[1] * found.own])
    other = best[0] + abs(move) * best[1]  # more than the floor, from the own segment

    def divergence(bridge, own):
        return bridge * (bridge / p[0]).log() + own * (own / p[1]).log()

    assert float(divergence(*best)) <= float(divergence(other, best.sum() - other)) + 1e-12


@pytest.mark.parametrize(
    ("p", "tau", "want"),
    [
        ((0.05, 0.95), 0.15, (3.0, 0.85 / 0.95)),
        ((0.10, 0.30), 0.15, (1.5, 0.25 / 0.30)),  # the rest keeps 0.6
        ((0.20, 0.80), 0.15, None),
        ((0.02, 0.05), 0.15, ((0.07 - EPSILON) / 0.02, EPSILON / 0.05)),  # more than there is to share
        ((0.10, 0.00), 0.15, None),
        ((0.00, 0.00), 0.15, None),
        ((0.00, 0.50), 0.15, None),
    ],
)
def test_factors_by_hand(p: tuple, tau: float, want: tuple | None) -> None:
    found = bridge_factors(*(torch.tensor(x, dtype=torch.float64) for x in p), torch.tensor(tau, dtype=torch.float64))
    assert bool(found.is_needed) == (want is not None)
    assert (float(found.bridge), float(found.own)) == pytest.approx(want or (1.0, 1.0))
    alone = factors_of_one(*p, tau)
    assert (alone is not None) == (want is not None) and (alone or (1.0, 1.0)) == pytest.approx(want or (1.0, 1.0))


def test_three_tokens_by_hand() -> None:
    """Question `<think>`, then two tokens; the last gives the question 1/10 and is to give it 0.5."""
    model = tiny("llama", num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, hidden_size=2)
    bridge = wide((0,), 0.5, n_question=(1,))
    from chainwright.edits.base import Touched

    touched = Touched()
    handlers = bridge.handlers(anatomy(model), touched)
    ids = torch.tensor([[6, 20, 21]])
    touched.run.before(model.base_model, (), {"input_ids": ids})
    scores = torch.tensor([0.0, math.log(3.0), math.log(6.0)])  # weights 1/10, 3/10, 6/10 of the last query
    q = torch.zeros(1, 1, 3, 2)
    q[0, 0, 2, 0] = 1
    k = torch.stack([scores, torch.zeros(3)], dim=-1)[None, None]
    v = torch.tensor([[[[1.0, 0.0], [0.0, 1.0], [0.0, 4.0]]]])
    call = AttentionCall(SimpleNamespace(is_causal=True), 0, q, k, v, None, {"scaling": 1.0})

    def attend(given: AttentionCall):
        return (attn_pattern(given) @ given.v).transpose(1, 2)

    z = handlers.by_layer[0][0](call, attend)[0, :, 0]
    want = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.5, 0.5 * (1 / 3 * 1 + 2 / 3 * 4)]])
    assert_close(z, want, "z")
    # the second token gives 1/2 already: the floor is min(sqrt(1/2), 0.5)
    assert touched.n_sites == 1


def shifting(model, rows, n_question, tau_max, by_head=None):
    """Return a reference that adds shifts to the scores, worked out row by row from the row's places.

    `by_head` has the largest floors of (layer, head); heads that it does not have are left alone.
    """
    _, mask = left_padded(rows)
    first = [int((row == 0).sum()) for row in mask]
    live = []
    for row, n in zip(rows, n_question, strict=True):
        one = STEPS.row(n)
        one.extend(row.tolist())
        live.append(one)

    def handler(call, attend):
        weights = attn_pattern(call)
        shift = torch.zeros_like(weights)
        for i, row in enumerate(live):
            for t, place in enumerate(row.places):
                if t < place.question_end:
                    continue
                bridge = (0, place.question_end) if place.thinking_end < 0 else (place.question_end, place.thinking_end)
                b, s = (slice(first[i] + x, first[i] + y) for x, y in (bridge, (bridge[1], t + 1)))
                for h in range(weights.shape[1]):
                    limit = tau_max if by_head is None else by_head.get((call.layer, h), 0.0)
                    tau = min(math.sqrt((bridge[1] - bridge[0]) / (t + 1 - bridge[0])), limit)
                    w = weights[i, h, first[i] + t]
                    p_b, p_s = float(w[b].sum()), float(w[s].sum())
                    floor = min(tau, p_b + p_s - 1e-6)
                    if 1e-30 < p_b < floor and p_s > 1e-6:
                        shift[i, h, first[i] + t, b] = math.log(floor / p_b)
                        shift[i, h, first[i] + t, s] = math.log((p_b + p_s - floor) / p_s)
        new = weights * shift.exp()
        z = new @ call.v.repeat_interleave(new.shape[1] // call.v.shape[1], dim=1)
        real = torch.tensor([[x >= f for x in range(z.shape[2])] for f in first])
        return torch.where(real[:, :, None, None], z.transpose(1, 2), attend(call))

    return Handlers({i: (handler,) for i in range(3)})


@every_family
def test_it_equals_shifted_scores(family: str) -> None:
    model = tiny(family)
    rows, n_question = rows_of()
    own = uncached(model, rows)
    with attach(model, shifting(model, rows, n_question, 0.6)):
        want = uncached(model, rows)
    with edit(model, wide(n_question=n_question)) as (touched,):
        got = uncached(model, rows)
    real = left_padded(rows)[1].bool()
    assert_close(got[real], want[real], family, 1e-4)
    assert touched.n_sites > 20
    assert float((got - own)[real].abs().max()) > 1e-2
    prompt = torch.zeros_like(real)
    for i, (row, n) in enumerate(zip(rows, n_question, strict=True)):
        prompt[i, real.shape[1] - len(row) : real.shape[1] - len(row) + n] = True
    assert_equal(got[prompt], own[prompt], "the question is never touched")
    assert_equal(uncached(model, rows), own, "afterwards")
    assert not model.base_model._forward_pre_hooks


@every_family
def test_single_heads_have_floors_of_their_own(family: str) -> None:
    model = tiny(family)
    rows, n_question = rows_of()
    by_head = {(0, 1): 0.7, (2, 0): 0.3, (2, 2): 0.6}
    heads = tuple((layer, head, floor) for (layer, head), floor in by_head.items())
    own = uncached(model, rows)
    with attach(model, shifting(model, rows, n_question, 0.0, by_head)):
        want = uncached(model, rows)
    with edit(model, Bridge((), STEPS, n_question=n_question, heads=heads)) as (touched,):
        got = uncached(model, rows)
    real = left_padded(rows)[1].bool()
    assert_close(got[real], want[real], family, 1e-4)
    assert touched.n_sites > 5 and float((got - own)[real].abs().max()) > 1e-3
    with edit(model, Bridge((), STEPS, heads=heads)):
        decoded = cached(model, rows, 14)[:, -14:]
    assert_close(decoded, got[:, -14:], f"{family}, decoded", 5e-4)


def test_floors_of_single_heads_that_cannot_be_are_refused() -> None:
    with pytest.raises(BadInput, match=r"floor of head L0H1 must be above 0 and below 1; got 1\.0"):
        Bridge((), STEPS, heads=((0, 1, 1.0),))
    with pytest.raises(BadInput, match="Head L0H1 has two floors"):
        Bridge((), STEPS, heads=((0, 1, 0.5), (0, 2, 0.5), (0, 1, 0.4)))
    with pytest.raises(BadInput, match=r"whole layers or on single heads; got layers \[0\]"):
        Bridge((0,), STEPS, heads=((0, 1, 0.5),))
    model = tiny("llama")
    with pytest.raises(BadInput, match="head"), edit(model, Bridge((), STEPS, heads=((0, 99, 0.5),))):
        uncached(model, rows_of()[0])


@every_family
@pytest.mark.parametrize(("kind", "chunk"), [("dynamic", 1), ("dynamic", 5), ("static", 1)])
def test_decoding_equals_one_pass(family: str, kind: str, chunk: int) -> None:
    model = tiny(family)
    rows, n_question = rows_of()
    with edit(model, wide(n_question=n_question)):
        want = uncached(model, rows)[:, -14:]
    with edit(model, wide()) as (touched,):
        got = cached(model, rows, 14, kind, chunk)[:, -14:]
    assert_close(got, want, f"{family} {kind}", 5e-4)
    assert touched.n_sites > 20


@every_family
@pytest.mark.parametrize("heads", [(), ((0, 1, 0.7), (2, 0, 0.3), (2, 2, 0.6))])
def test_a_row_that_is_decoded_alone_equals_one_pass(family: str, heads: tuple, monkeypatch) -> None:
    model, changed = tiny(family), []

    def counting(*args) -> int:
        changed.append(put_under_one(*args))
        return changed[-1]

    monkeypatch.setattr("chainwright.edits.bridge.put_under_one", counting)
    options = {"heads": heads} if heads else {}
    layers = () if heads else (0, 1, 2)
    for row, n_question in zip(*rows_of(), strict=True):
        with torch.no_grad(), edit(model, wide(layers, n_question=(n_question,), **options)) as (whole,):
            want = uncached(model, [row])[:, -14:]
        with torch.no_grad(), edit(model, wide(layers, **options)) as (touched,):
            got = cached(model, [row], 14)[:, -14:]
        assert_close(got, want, family, 5e-4)
        assert touched.n_sites == whole.n_sites > 0
    # softcaps, sinks and masks of windows take the way of batches
    assert bool(changed) == (family not in ("gemma2", "gpt_oss")), changed


def test_in_bfloat16_decoding_and_one_pass_differ_by_rounding_alone() -> None:
    model = tiny("llama").to(torch.bfloat16)
    rows, n_question = rows_of()
    plain = (cached(model, rows, 14) - uncached(model, rows))[:, -14:].abs().max()
    with edit(model, wide(n_question=n_question)):
        want = uncached(model, rows)[:, -14:]
    with edit(model, wide()) as (touched,):
        got = cached(model, rows, 14)[:, -14:]
    assert got.dtype == torch.bfloat16 and touched.n_sites > 20
    assert float((got - want).abs().max()) < max(0.1, 4 * float(plain))


def test_gradients_pass_through_a_decoded_token() -> None:
    model = tiny("llama")
    ids = rows_of((6,), 8)[0][0][None]
    with edit(model, wide()) as (touched,):
        cache = model(input_ids=ids[:, :6], use_cache=True).past_key_values
        for t in range(6, 14):
            logits = model(input_ids=ids[:, t : t + 1], past_key_values=cache, use_cache=True).logits
        logits.sum().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert touched.n_sites > 0 and grads and all(bool(g.isfinite().all()) for g in grads)


@every_family
def test_no_floor_changes_no_bit(family: str) -> None:
    model = tiny(family)
    rows, n_question = rows_of()
    own = uncached(model, rows)
    with edit(model, wide(tau_max=0.0, n_question=n_question), strict=False) as (touched,):
        assert_equal(uncached(model, rows), own)
    assert touched.n_sites == 0


def test_a_silenced_head_stays_silent_in_any_order() -> None:
    model = tiny("llama")
    rows, n_question = rows_of()
    bridge, silent = wide(n_question=n_question), KnockOut({(1, 0), (1, 3)})
    with edit(model, bridge, silent):
        want = uncached(model, rows)
    with edit(model, silent, bridge):
        assert_equal(uncached(model, rows), want)
    with edit(model, silent), edit(model, bridge):
        assert_equal(uncached(model, rows), want)
    one = wide(n_question=n_question[:1])
    with edit(model, silent), edit(model, one) as (touched,):
        heads = capture(model, rows[0][None]).z[1]
    assert touched.n_sites > 0
    assert heads[..., [0, 3], :].abs().max() == 0 and heads[..., [1, 2], :].abs().min(-1).values.max() > 0


def test_it_never_fires_on_a_question_alone() -> None:
    model, ids = tiny("llama"), random_ids(1, 8)
    with pytest.raises(EditNeverFired, match="Bridge"), edit(model, wide()):
        model(input_ids=ids)


def test_a_long_pass_is_cut_into_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("gpt_oss")
    rows, n_question = rows_of()
    with edit(model, wide(n_question=n_question)) as (touched,):
        want = uncached(model, rows)
    monkeypatch.setattr("chainwright.edits.bridge._WEIGHTS_AT_ONCE", 1000)
    with edit(model, wide(n_question=n_question)) as (again,):
        assert_close(uncached(model, rows), want, "stretches")
    assert again.n_sites == touched.n_sites


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt_oss"])
@pytest.mark.parametrize("way", ["greedy", "sample", "beam", "lookup", "uncached"])
def test_plain_generate_equals_a_pass_over_what_it_wrote(family: str, way: str) -> None:
    model = tiny(family)
    prompt = torch.cat([random_ids(1, 8, 3)[0].clamp(min=9), torch.tensor([6]), response(4, 1)])[None]
    prompt = prompt.repeat(2, 1) if way in ("greedy", "beam") else prompt
    options = {
        "greedy": {},
        "sample": {"do_sample": True, "top_k": 20, "temperature": 2.0},
        "beam": {"num_beams": 3},
        "lookup": {"prompt_lookup_num_tokens": 3},
        "uncached": {"use_cache": False},
    }[way]
    torch.manual_seed(0)
    with edit(model, wide(n_question=(9,))) as (touched,):
        out = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=12,
            eos_token_id=None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
            output_scores=True,
            **({"do_sample": False} | options),
        )
        ids = out.sequences
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[:, 12:-1]
    assert touched.n_sites > 0
    if way == "beam":
        # the score of each best sequence is that of its tokens under the edit
        chosen = logits.log_softmax(-1).gather(-1, ids[:, 13:, None])[..., 0].sum(1)
        assert_close(out.sequences_scores * 12, chosen, "beam scores", 1e-4)
        return
    if way != "sample":
        assert torch.equal(ids[:, 13:], logits.argmax(-1))
    if way != "lookup":
        assert_close(torch.stack(out.logits, dim=1), logits, way, 5e-4)


def test_what_cannot_be_followed_is_refused() -> None:
    model, ids = tiny("llama"), random_ids(1, 8)
    with torch.no_grad():
        cache = model(input_ids=ids, use_cache=True).past_key_values
    with edit(model, wide(), strict=False):
        with pytest.raises(BadInput, match="8 tokens that this edit has not seen"):
            model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True)
        with pytest.raises(BadInput, match="run on embeddings; pass input_ids"):
            model(inputs_embeds=model.get_input_embeddings()(ids))
        with pytest.raises(BadInput, match="padded on the left"):
            model(input_ids=ids, attention_mask=torch.tensor([[1] * 7 + [0]]))
    with edit(model, wide(n_question=(3, 4)), strict=False):
        with pytest.raises(BadInput, match="lengths of 2 questions were given, but the batch has 3 rows"):
            model(input_ids=random_ids(3, 8))
    with pytest.raises(BadInput, match="tau_max must be at least 0 and below 1; got 1"):
        wide(tau_max=1.0)
    with pytest.raises(BadInput, match="Layer 7 does not exist"), edit(model, wide((7,))):
        pass
