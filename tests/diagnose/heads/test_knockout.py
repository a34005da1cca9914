"""Knockout effects against the slow way: one full forward pass a head, on a copy of the model without its weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from chainwright._errors import BadInput, UnsupportedModel
from chainwright.diagnose import KnockoutEffects, knockout_effects, plan_knockout_effects
from chainwright.diagnose.heads._sweep.last_layer_query import LastQuery
from chainwright.diagnose.heads._sweep.same_layer import Sharing
from chainwright.edits import KnockOut, edit
from chainwright.models.anatomy import anatomy
from families import FAMILIES, left_padded, random_ids, tiny
from reference import assert_close, assert_equal, out_proj, without_heads

every_family = pytest.mark.parametrize("family", FAMILIES)
both_positions = pytest.mark.parametrize("positions", ["all", "last"])
LENGTHS = (11, 8, 1)
TOLERANCE = 1e-5  # of a probability, float32
HEADS = [(layer, head) for layer in range(3) for head in range(4)]
TOKENS = torch.tensor([5, 17, 40])
Changed = Callable[[tuple[int, int]], PreTrainedModel]


def rows_of_three() -> list[Tensor]:
    return [random_ids(1, n, seed=n)[0] for n in LENGTHS]


@torch.no_grad()
def prob(model: PreTrainedModel, row: Tensor, token: int) -> Tensor:
    return model(input_ids=row[None], use_cache=False).logits[0, -1].softmax(-1)[token]


@torch.no_grad()
def prob_last(model: PreTrainedModel, changed: PreTrainedModel, row: Tensor, token: int) -> Tensor:
    """Return the probability where only the last position went through the changed weights."""
    if len(row) == 1:
        return prob(changed, row, token)
    prefix = model(input_ids=row[None, :-1], use_cache=True).past_key_values
    return changed(input_ids=row[None, -1:], past_key_values=prefix).logits[0, -1].softmax(-1)[token]


@torch.no_grad()
def likeliest(model: PreTrainedModel, rows: list[Tensor]) -> Tensor:
    """Return the token that the model would write after each row: one whose probability is large."""
    return torch.stack([model(input_ids=row[None], use_cache=False).logits[0, -1].argmax() for row in rows])


def slow_effects(
    model: PreTrainedModel, changed: Changed, rows: list[Tensor], tokens: Tensor, positions: str
) -> Tensor:
    """Return `[N, L, H]`: rows one by one and without padding, one whole pass a head."""
    effect = torch.zeros(len(rows), 3, 4, dtype=model.dtype)
    for at in HEADS:
        one = changed(at)
        for i, row in enumerate(rows):
            token = int(tokens[i])
            without = prob(one, row, token) if positions == "all" else prob_last(model, one, row, token)
            effect[(i, *at)] = prob(model, row, token) - without
    return effect


def lacking(model: PreTrainedModel, family: str) -> Changed:
    return lambda at: without_heads(model, family, {at})


@every_family
@both_positions
def test_exact_equals_one_whole_pass_a_head(family: str, positions: str) -> None:
    model, rows = tiny(family), rows_of_three()
    (ids, mask), tokens = left_padded(rows), likeliest(model, rows)
    got = knockout_effects(model, ids, tokens, attention_mask=mask, positions=positions)
    want = slow_effects(model, lacking(model, family), rows, tokens, positions)
    assert_close(got.effect, want, family, TOLERANCE)
    alone = torch.stack([prob(model, row, int(token)) for row, token in zip(rows, tokens, strict=True)])
    assert_close(got.baseline, alone, f"{family} baseline", TOLERANCE)
    assert float(want.abs().max()) > 0.01, "the heads do nothing in this model"
    assert bool(got.is_exact.all()) and got.config == {"method": "exact", "positions": positions, "max_bytes": None}


@every_family
def test_at_the_last_position_every_family_shares_one_prefix(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = tiny(family), rows_of_three()
    (ids, mask), tokens = left_padded(rows), likeliest(model, rows)
    asked = {"attention_mask": mask, "positions": "last"}
    forwards = []
    model.register_forward_pre_hook(lambda *_: forwards.append(True))
    shared = knockout_effects(model, ids, tokens, **asked)
    assert len(forwards) <= 4 * len(rows), "more than a plain pass and a few unembeddings for each group of rows"
    monkeypatch.setattr("chainwright.diagnose.heads._sweep.last_position.rounding_tolerance", lambda parts: -1.0)
    decoded = knockout_effects(model, ids, tokens, **asked)
    assert_close(shared.effect, decoded.effect, family, TOLERANCE)
    want = slow_effects(model, lacking(model, family), rows, tokens, "last")
    assert_close(decoded.effect, want, f"{family} decoded", TOLERANCE)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt_oss", "deepseek_v3"])
@both_positions
def test_rows_of_many_lengths_are_put_back_in_their_places(family: str, positions: str) -> None:
    model, rows = tiny(family), [random_ids(1, n, seed=n)[0] for n in (3, 21, 20, 1, 19, 3, 12)]
    (ids, mask), tokens = left_padded(rows), likeliest(model, rows)
    got = knockout_effects(model, ids, tokens, attention_mask=mask, positions=positions)
    want = slow_effects(model, lacking(model, family), rows, tokens, positions)
    assert_close(got.effect, want, f"{family} {positions}", TOLERANCE)


@pytest.mark.parametrize(
    ("family", "n_readers"),
    [("llama", 2), ("phi3", 1), ("gpt2", 1), ("granite", 2), ("deepseek_v3", 2), ("gemma2", 0), ("gpt_neox", 0)],
)
def test_what_the_heads_of_a_layer_share_is_computed_once(
    family: str, n_readers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    FAMILIES.setdefault("granite", dict(FAMILIES["llama"], residual_multiplier=0.3))
    model, rows = tiny(family), [random_ids(1, 30, seed=n)[0] for n in range(2)]
    model = model if family == "deepseek_v3" else model.double()  # its experts know no float64
    ids, tokens = torch.stack(rows), likeliest(model, rows)
    used = []
    of_layer = Sharing.of_layer

    def counting(self: Sharing, *asked: Any) -> Any:
        shared = of_layer(self, *asked)
        used.append(len(shared.readers))
        return shared

    monkeypatch.setattr(Sharing, "of_layer", counting)
    got = knockout_effects(model, ids, tokens)
    assert used == [n_readers] * 2, "all layers but the last, which runs at one position"
    tolerance = 1e-9 if family in ("gpt2", "gpt_neox") else TOLERANCE  # the norms of the others round to float32
    assert_close(got.effect, slow_effects(model, lacking(model, family), rows, tokens, "all"), family, tolerance)
    monkeypatch.setattr("chainwright.diagnose.heads._sweep.same_layer._TOLERANCE", -1.0)
    used.clear()
    assert_close(knockout_effects(model, ids, tokens).effect, got.effect, "modules as they are", tolerance)
    assert used == [0] * 2


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("llama", ["q_proj"]),
        ("gemma2", ["q_proj"]),
        ("phi3", []),
        ("gpt2", []),
        ("deepseek_v3", ["q_a_proj", "q_b_proj"]),
    ],
)
def test_of_the_last_layer_queries_are_made_at_the_last_position_only(
    family: str, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = tiny(family), [random_ids(1, 12, seed=n)[0] for n in range(2)]
    found: list[LastQuery] = []
    tried = LastQuery._query_modules
    monkeypatch.setattr(LastQuery, "_query_modules", lambda self, *asked: found.append(self) or tried(self, *asked))
    got = knockout_effects(model, torch.stack(rows), TOKENS[:2])
    (last,) = found
    own = {module: name for name, module in last.layer.attention.named_modules()}
    assert sorted(own[module] for module in last.makes_queries) == names
    assert_close(got.effect, slow_effects(model, lacking(model, family), rows, TOKENS, "all"), family, TOLERANCE)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
@both_positions
def test_float64_agrees_to_ten_digits(family: str, positions: str) -> None:
    model, rows = tiny(family).double(), rows_of_three()
    (ids, mask), tokens = left_padded(rows), likeliest(model, rows)
    got = knockout_effects(model, ids, tokens, attention_mask=mask, positions=positions)
    assert got.effect.dtype == got.baseline.dtype == torch.float64
    assert_close(got.effect, slow_effects(model, lacking(model, family), rows, tokens, positions), family)


@pytest.mark.parametrize("n_tokens", [1, 2, 3])
def test_contexts_of_one_two_and_as_many_tokens_as_rows(n_tokens: int) -> None:
    model, ids = tiny("qwen3"), random_ids(3, n_tokens)
    tokens = likeliest(model, list(ids))
    for positions in ("all", "last"):
        got = knockout_effects(model, ids, tokens, positions=positions)
        want = slow_effects(model, lacking(model, "qwen3"), list(ids), tokens, positions)
        assert_close(got.effect, want, positions, TOLERANCE)


@both_positions
def test_how_the_work_is_cut_changes_nothing(positions: str) -> None:
    model, (ids, mask) = tiny("llama"), left_padded(rows_of_three())
    whole = knockout_effects(model, ids, TOKENS, attention_mask=mask, positions=positions)
    one_by_one = knockout_effects(model, ids, TOKENS, attention_mask=mask, positions=positions, max_bytes=1)
    assert_close(one_by_one.effect, whole.effect, positions, TOLERANCE)


@both_positions
def test_screened_is_exact_where_it_says_so_and_an_estimate_elsewhere(positions: str) -> None:
    model, (ids, mask) = tiny("llama"), left_padded(rows_of_three())
    asked = {"attention_mask": mask, "positions": positions}
    exact, rough = (knockout_effects(model, ids, TOKENS, method=m, **asked) for m in ("exact", "gradient"))
    got = knockout_effects(model, ids, TOKENS, method="screened", share=0.25, **asked)
    assert got.is_exact.flatten(1).sum(1).tolist() == [3, 3, 3]
    assert_close(got.effect[got.is_exact], exact.effect[got.is_exact], "measured", TOLERANCE)
    assert_equal(got.effect[~got.is_exact], rough.effect[~got.is_exact], "estimated")
    for row in range(3):
        kept, left = rough.effect[row][got.is_exact[row]], rough.effect[row][~got.is_exact[row]]
        assert float(kept.abs().min()) >= float(left.abs().max()), "other heads than the best-ranked were measured"
    assert got.config == {"method": "screened", "positions": positions, "max_bytes": None, "share": 0.25}
    assert not rough.is_exact.any()
    every = knockout_effects(model, ids, TOKENS, method="screened", share=1.0, **asked)
    assert bool(every.is_exact.all())
    assert int(knockout_effects(model, ids, TOKENS, method="screened", share=1e-9).is_exact.sum()) == 3


def gated_prob(model: PreTrainedModel, family: str, row: Tensor, token: int, gates: Tensor) -> Tensor:
    """Return p with each head's slice of the output projection multiplied by its gate `[L, H]`."""
    changed = {}
    for layer in range(3):
        projection = out_proj(model, family, layer)
        name = next(name for name, module in model.named_modules() if module is projection)
        weight = projection.weight if isinstance(projection, nn.Linear) else projection.weight.T  # (out, in)
        gated = weight * gates[layer].repeat_interleave(weight.shape[1] // 4)
        changed[f"{name}.weight"] = gated if isinstance(projection, nn.Linear) else gated.T
    output = torch.func.functional_call(model, changed, kwargs={"input_ids": row[None], "use_cache": False})
    return output.logits[0, -1].softmax(-1)[token]


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("llama", torch.float64), ("gpt2", torch.float64), ("gemma2", torch.float32), ("gpt_oss", torch.float32)],
)
def test_the_gradient_is_that_of_gates_on_the_projection_weights(family: str, dtype: torch.dtype) -> None:
    model, rows = tiny(family).to(dtype), rows_of_three()
    (ids, mask), tokens = left_padded(rows), likeliest(model, rows)
    got = knockout_effects(model, ids, tokens, attention_mask=mask, method="gradient")
    for i, row in enumerate(rows):
        gates = torch.ones(3, 4, dtype=dtype, requires_grad=True)
        (want,) = torch.autograd.grad(gated_prob(model, family, row, int(tokens[i]), gates), gates)
        assert float(want.abs().max()) > 1e-3, "no head has a slope in this model"
        assert_close(got.effect[i], want, f"{family} row {i}")


def scaled(model: PreTrainedModel, at: tuple[int, int], factor: float) -> PreTrainedModel:
    changed = without_heads(model, "gpt2", {at})
    with torch.no_grad():
        own, other = out_proj(model, "gpt2", at[0]).weight, out_proj(changed, "gpt2", at[0]).weight
        other.add_(factor * (own - other))
    return changed


@both_positions
def test_the_gradient_equals_finite_differences(positions: str) -> None:
    # GPT-2: the norms of the others round to float32
    model, rows, step = tiny("gpt2").double(), rows_of_three(), 1e-4
    (ids, mask), tokens = left_padded(rows), likeliest(model, rows)
    got = knockout_effects(model, ids, tokens, attention_mask=mask, positions=positions, method="gradient")
    less = slow_effects(model, lambda at: scaled(model, at, 1 - step), rows, tokens, positions)
    more = slow_effects(model, lambda at: scaled(model, at, 1 + step), rows, tokens, positions)
    assert_close(got.effect, (less - more) / (2 * step), positions, 1e-9)


def test_what_was_asked_wrongly_is_said() -> None:
    model, ids = tiny("llama"), random_ids(3, 5)
    mask = torch.ones_like(ids)
    wrong = [
        ({"method": "fast"}, "method must be one of exact, gradient, screened; got 'fast'"),
        ({"positions": "first"}, "positions must be 'all' or 'last'; got 'first'"),
        ({"share": 0.0}, "share must be above 0 and at most 1; got 0.0"),
        ({"share": 1.5}, "share must be above 0 and at most 1; got 1.5"),
        ({"max_bytes": 0}, "max_bytes must be at least 1, or None; got 0"),
        ({"token_ids": torch.tensor([5, 61, 3])}, "token_ids must be between 0 and 60; got 61"),
        ({"token_ids": torch.tensor([5, -1, 3])}, "token_ids must be between 0 and 60; got -1"),
        ({"token_ids": TOKENS[:2]}, r"one id for each of 3 rows.*got shape \[2\]"),
        ({"token_ids": TOKENS.float()}, "torch.float32"),
        ({"input_ids": ids[0]}, r"shape \[N, T\]"),
        ({"input_ids": ids[:, :0]}, "T > 0"),
        ({"input_ids": ids[:0], "token_ids": TOKENS[:0]}, "0 rows \\(at least one row"),
        ({"input_ids": ids + 60}, "input_ids must be between 0 and 60"),
        ({"attention_mask": mask[:, :4]}, "attention_mask must have the shape"),
        ({"attention_mask": mask.index_fill(1, torch.tensor([4]), 0)}, "padded on the left"),
        ({"attention_mask": mask.index_fill(1, torch.tensor([2]), 0)}, "padded on the left"),
    ]
    for change, says in wrong:
        with pytest.raises(BadInput, match=says):
            knockout_effects(model, **({"input_ids": ids, "token_ids": TOKENS} | change))


@pytest.mark.parametrize("method", ["exact", "gradient"])
@both_positions
def test_training_mode_is_kept_and_dropout_does_not_count(method: str, positions: str) -> None:
    model, ids = tiny("gpt2"), random_ids(3, 7)
    asked = {"method": method, "positions": positions}
    want = knockout_effects(model, ids, TOKENS, **asked)
    model.train()
    model.transformer.h[1].eval()
    modes = [module.training for module in model.modules()]
    got = knockout_effects(model, ids, TOKENS.to(torch.int32), **asked)
    assert [module.training for module in model.modules()] == modes
    assert_equal(got.effect, want.effect, method)
    assert all(weight.grad is None for weight in model.parameters())


OUTER = [{(1, 0)}, {(0, 2), (2, 1)}, set()]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_oss"])
@both_positions
@pytest.mark.parametrize("method", ["exact", "screened"])
def test_outer_edits_with_a_set_for_each_row_stay_in_force(family: str, positions: str, method: str) -> None:
    model, rows, tokens = tiny(family), rows_of_three(), torch.tensor([5, 17, 40])
    ids, mask = left_padded(rows)
    with edit(model, KnockOut(OUTER)) as (touched,):
        got = knockout_effects(model, ids, tokens, attention_mask=mask, positions=positions, method=method)
    assert touched.n_sites > 0 and not model.base_model._forward_pre_hooks
    for i, row in enumerate(rows):
        edited, token = without_heads(model, family, OUTER[i]), int(tokens[i])
        for at in HEADS:
            if not got.is_exact[(i, *at)]:
                continue
            one = without_heads(edited, family, {at})
            without = prob(one, row, token) if positions == "all" else prob_last(edited, one, row, token)
            want = prob(edited, row, token) - without
            assert_close(got.effect[(i, *at)], want, f"{family} row {i} head {at}", TOLERANCE)


def test_outer_edits_at_the_last_position_stay_in_force() -> None:
    model, ids = tiny("llama"), random_ids(2, 7)
    with edit(model, KnockOut({(0, 1)}, positions="last")):
        got = knockout_effects(model, ids, TOKENS[:2], positions="last")
    changed = without_heads(model, "llama", {(0, 1)})
    for i, row in enumerate(ids):
        both = without_heads(model, "llama", {(0, 1), (2, 3)})
        own, without = (prob_last(model, one, row, int(TOKENS[i])) for one in (changed, both))
        assert_close(got.effect[i, 2, 3], own - without, f"row {i}", TOLERANCE)
        assert_close(got.effect[i, 0, 1], torch.tensor(0.0), "a head that is out already", TOLERANCE)


def test_gradients_see_outer_edits() -> None:
    model, ids = tiny("llama").double(), random_ids(1, 7)
    with edit(model, KnockOut({(1, 0)})):
        got = knockout_effects(model, ids, TOKENS[:1], method="gradient")
    gates = torch.ones(3, 4, dtype=torch.float64, requires_grad=True)
    changed = without_heads(model, "llama", {(1, 0)})
    (want,) = torch.autograd.grad(gated_prob(changed, "llama", ids[0], int(TOKENS[0]), gates), gates)
    assert_close(got.effect[0], want)


def test_a_model_that_is_more_than_its_layers_is_refused_and_not_misread() -> None:
    model, inside = tiny("llama"), []
    anatomy(model)
    model.model.register_forward_pre_hook(lambda *_: inside.append(True))
    model.model.register_forward_hook(lambda *_: inside.clear())
    model.model.layers[1].register_forward_hook(lambda module, args, out: out + 1.0 if inside else out)
    with pytest.raises(UnsupportedModel, match=r"called one by one, move .* of the probability"):
        knockout_effects(model, random_ids(2, 5), TOKENS[:2])


def test_table_and_summary() -> None:
    effect = torch.zeros(2, 3, 4)
    effect[:, 2, 1], effect[0, 0, 3] = 0.5, 0.25
    found = KnockoutEffects(baseline=torch.tensor([0.9, 0.7]), effect=effect, is_exact=effect > 0)
    summary = found.summary()
    assert summary.startswith("Mean probability 0.800; largest mean loss when silenced: L2H1 +0.500, L0H3 +0.125")
    table = found.to_frame().to_pylist()
    assert len(table) == 24
    want = {"row": 1, "layer": 2, "head": 1, "effect": 0.5, "is_exact": True}
    assert {k: v for k, v in table[12 + 9].items() if k != "baseline"} == want
    assert table[21]["baseline"] == pytest.approx(0.7)


@both_positions
def test_bfloat16_follows_its_own_whole_passes(positions: str) -> None:
    model, (ids, mask) = tiny("llama"), left_padded(rows_of_three())
    tokens = likeliest(model, rows_of_three())
    full = knockout_effects(model, ids, tokens, attention_mask=mask, positions=positions)
    half = knockout_effects(model.to(torch.bfloat16), ids, tokens, attention_mask=mask, positions=positions)
    assert half.effect.dtype == torch.float32
    assert_close(half.effect, full.effect, positions, 0.1)  # bfloat16 has three digits


def test_the_sweep_leaves_the_model_as_it_was() -> None:
    model, ids = tiny("llama"), random_ids(2, 7)
    own = model.model.layers[0].self_attn.forward
    model.model.layers[1].self_attn.forward = own_forward = model.model.layers[1].self_attn.forward
    knockout_effects(model, ids, TOKENS[:2])
    assert "forward" not in model.model.layers[0].self_attn.__dict__
    assert model.model.layers[0].self_attn.forward == own
    assert model.model.layers[1].self_attn.__dict__["forward"] is own_forward
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_hook_of_someone_else_on_the_last_layer_is_obeyed() -> None:
    model, ids = tiny("llama"), random_ids(2, 7)
    tokens = likeliest(model, list(ids))

    def by_position(module: nn.Module, args: tuple[Tensor], out: Tensor) -> Tensor:
        return out * torch.arange(out.shape[1])[None, :, None]

    model.model.layers[2].mlp.register_forward_hook(by_position)
    got = knockout_effects(model, ids, tokens)
    for at in [(0, 1), (2, 3)]:
        with edit(model, KnockOut({at})):
            want = torch.stack([prob(model, row, int(token)) for row, token in zip(ids, tokens, strict=True)])
        assert_close(got.baseline - got.effect[(slice(None), *at)], want, str(at), TOLERANCE)


@pytest.mark.parametrize("family", ["llama", "gpt_oss", "deepseek_v3", "gpt2"])
@both_positions
def test_bfloat16_effects_are_those_of_bfloat16_passes(family: str, positions: str) -> None:
    model, rows = tiny(family).to(torch.bfloat16), [random_ids(1, n, seed=n)[0] for n in (24, 23, 9)]
    (ids, mask), tokens = left_padded(rows), likeliest(model, rows)
    got = knockout_effects(model, ids, tokens, attention_mask=mask, positions=positions)
    want = slow_effects(model, lacking(model, family), rows, tokens, positions)
    off = (got.effect - want.float()).abs()
    # three digits, through three layers and, in the mixtures of experts, a choice that may tip
    assert float(off.mean()) <= 0.02 and float(off.max()) <= 0.3, f"mean {off.mean():.3g}, max {off.max():.3g}"


def test_interrupted_it_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = tiny("llama"), random_ids(3, 30)
    before = {name: weight.requires_grad for name, weight in model.named_parameters()}
    for module in (model.model.layers[0].mlp, model.model.layers[2].mlp.down_proj):
        handle = module.register_forward_hook(Interrupting(4))
        for options in ({}, {"positions": "last"}, {"method": "screened"}):
            with pytest.raises(KeyboardInterrupt):
                for _ in range(4):
                    knockout_effects(model, ids, TOKENS, **options)
        handle.remove()
        assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in model.modules())
    assert {name: weight.requires_grad for name, weight in model.named_parameters()} == before


class Interrupting:
    """A hook that interrupts on every nth call."""

    def __init__(self, n: int):
        self.n, self.calls = n, 0

    def __call__(self, *_: Any) -> None:
        self.calls += 1
        if self.calls % self.n == 0:
            raise KeyboardInterrupt


def test_progress_is_shown_and_changes_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    model, ids = tiny("llama"), random_ids(3, 6)
    want = knockout_effects(model, ids, TOKENS)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes anything for a terminal
    got = knockout_effects(model, ids, TOKENS, progress=True)
    assert "knockouts" in capsys.readouterr().err
    assert_equal(got.effect, want.effect)


@pytest.mark.parametrize(
    ("options", "n_variants"),
    [({}, 36), ({"positions": "last"}, 36), ({"method": "gradient"}, 0), ({"method": "screened", "share": 0.25}, 9)],
)
def test_a_plan_says_what_a_sweep_takes(options: dict[str, Any], n_variants: int) -> None:
    plan = plan_knockout_effects(tiny("llama"), [11, 8, 1], **options)
    assert plan.n_variants == n_variants and plan.n_groups == 3
    assert plan.seconds > 0 and plan.bytes > 0 and 1 <= plan.plain_passes < 12
    assert plan.summary().startswith(f"{n_variants} knockouts in 3 groups of rows: ")
    small = plan_knockout_effects(tiny("llama"), [11, 11, 11], max_bytes=1, **options)
    assert small.n_groups == 3 and small.bytes <= plan.bytes


def test_a_plan_for_nothing_is_refused() -> None:
    with pytest.raises(BadInput, match="lengths must be positive integers, one per context"):
        plan_knockout_effects(tiny("llama"), [])
    with pytest.raises(BadInput, match="share must be above 0"):
        plan_knockout_effects(tiny("llama"), [3], method="screened", share=2.0)


def test_the_memory_bound_stands_in_the_result() -> None:
    got = knockout_effects(tiny("llama"), random_ids(3, 6), TOKENS, max_bytes=2**20)
    assert got.config["max_bytes"] == 2**20
