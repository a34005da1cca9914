"""Head roles of models too large to measure every head: what is measured, what is estimated, and what is said of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from chainwright.diagnose import HeadRoles, RolesConfig, SlotContexts, head_roles, knockout_effects, plan_head_roles
from chainwright.diagnose.heads import role_sweep
from chainwright.diagnose.heads._sweep.screening import highest_ranked
from chainwright.edits import KnockOut, edit
from chainwright.models.anatomy import anatomy
from families import left_padded, random_ids, tiny
from reference import assert_close, assert_equal

TOLERANCE = 1e-5


@torch.no_grad()
def sets_of(model: Any) -> tuple[SlotContexts, SlotContexts]:
    """Right and wrong contexts by fiat: the likeliest token is right in the first set, and another in the second."""
    sets = []
    for seeds, shift in (((0, 1, 2), 0), ((3, 4), 1)):
        rows = [random_ids(1, 8 + seed, seed=seed)[0] for seed in seeds]
        likeliest = torch.stack([model(input_ids=row[None]).logits[0, -1].argmax() for row in rows])
        sets.append(SlotContexts(*left_padded(rows), likeliest, (likeliest + shift) % 61))
    return sets[0], sets[1]


def estimate(model: Any, contexts: SlotContexts, tokens: Tensor) -> Tensor:
    """Return the mean loss: measured at the last position, first-order before it, within the probability's bounds."""
    asked = {"input_ids": contexts.input_ids, "token_ids": tokens, "attention_mask": contexts.attention_mask}
    last = knockout_effects(model, **asked, positions="last")
    slope = knockout_effects(model, **asked, method="gradient").effect
    slope_last = knockout_effects(model, **asked, method="gradient", positions="last").effect
    p = last.baseline[:, None, None]
    return (p - (p - last.effect - slope + slope_last).clamp(0, 1)).mean(0)


def test_measured_heads_are_exact_and_the_others_as_estimated() -> None:
    model = tiny("llama")
    right, wrong = sets_of(model)
    config = RolesConfig(measured=0.3)
    exact, got = (head_roles(model, right, wrong, config=config.replace(method=m)) for m in ("exact", "screened"))
    measured = got.is_measured
    assert measured is not None and int(measured.sum()) == 4  # 0.3 of 12
    assert exact.is_measured is not None and bool(exact.is_measured.all())
    for name in ("effect_correct", "effect_erroneous", "rectification", "corrected", "kept"):
        ours, want = getattr(got, name), getattr(exact, name)
        assert_close(ours[measured], want[measured], name, TOLERANCE)
    for name, contexts, tokens, sign in (
        ("effect_correct", right, right.predicted_ids, 1),
        ("effect_erroneous", wrong, wrong.predicted_ids, 1),
        ("rectification", wrong, wrong.right_ids, -1),
    ):
        want = sign * estimate(model, contexts, tokens)
        assert_close(getattr(got, name)[~measured], want[~measured], name, TOLERANCE)
    assert bool((got.corrected[~measured] == 0).all()) and bool((got.kept[~measured] == 1).all())


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox", "deepseek_v3"])
@pytest.mark.parametrize("is_edited", [False, True])
def test_what_heads_write_is_read_in_the_pass_of_the_estimates(family: str, is_edited: bool) -> None:
    model = tiny(family)
    right, wrong = sets_of(model)
    edits = [KnockOut({(1, 2)}, scale=0.3)] if is_edited else []
    with edit(model, *edits):
        exact, got = (head_roles(model, right, wrong, config=RolesConfig(method=m)) for m in ("exact", "screened"))
    for name in ("writing_correct", "writing_erroneous"):
        assert_close(getattr(got, name), getattr(exact, name), name, TOLERANCE)


def test_heads_are_measured_by_the_larger_of_both_estimates_in_any_of_the_three_means() -> None:
    model = tiny("llama")
    right, wrong = sets_of(model)
    got = head_roles(model, right, wrong, config=RolesConfig(method="screened", measured=0.5))

    def size(contexts: SlotContexts, tokens: Tensor) -> Tensor:
        asked = {"attention_mask": contexts.attention_mask}
        last = knockout_effects(model, contexts.input_ids, tokens, positions="last", **asked).effect
        slope = knockout_effects(model, contexts.input_ids, tokens, method="gradient", **asked).effect
        return torch.maximum(last.abs(), slope.abs()).mean(0)

    orders = [
        size(contexts, tokens).flatten().argsort(descending=True).tolist()
        for contexts, tokens in (
            (right, right.right_ids),
            (wrong, wrong.predicted_ids),
            (wrong, wrong.right_ids),
        )
    ]
    want: list[int] = []
    for turn in zip(*orders, strict=True):
        for head in turn:
            want += [head] if head not in want else []
    assert got.is_measured is not None
    assert set(got.is_measured.flatten().nonzero()[:, 0].tolist()) == set(want[:6])


def test_criteria_take_turns() -> None:
    sizes = torch.tensor([[[5.0, 4.0, 3.0, 2.0]], [[0.0, 1.0, 2.0, 3.0]]])
    for n, want in ((1, [0]), (2, [0, 3]), (3, [0, 1, 3]), (4, [0, 1, 2, 3])):
        assert highest_ranked(sizes, n)[0].nonzero()[:, 0].tolist() == want


def test_all_heads_measured_is_the_exact_form() -> None:
    model = tiny("mistral")
    right, wrong = sets_of(model)
    exact = head_roles(model, right, wrong)
    got = head_roles(model, right, wrong, config=RolesConfig(method="screened", measured=1.0))
    for name, values in exact.maps.items():
        assert_close(got.maps[name], values, name, TOLERANCE)
    assert got.members == exact.members
    assert exact.config["method"] == "exact" and exact.config["products"] == "model"
    assert "estimated" not in exact.summary() + got.summary()


def test_a_head_that_was_not_measured_gets_no_role() -> None:
    model = tiny("llama")
    config = RolesConfig(method="screened", measured=0.1, share=1.0, basic_below=10.0)
    got = head_roles(model, *sets_of(model), config=config)
    assert got.is_measured is not None and int(got.is_measured.sum()) == 1
    (only,) = got.is_measured.nonzero().tolist()
    assert got.basic == [only] and got.best_head == tuple(only)
    assert got.correct_processing == got.erroneous_processing == []
    assert "11 of 12 heads were estimated, not measured." in got.summary()


def test_large_models_are_screened_and_the_config_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = tiny("llama")
    right, wrong = sets_of(model)
    monkeypatch.setattr(role_sweep, "LARGE", 1)
    for native in (True, False):
        monkeypatch.setattr(role_sweep, "can_halve", lambda parts, native=native: native)
        got = head_roles(model, right, wrong)
        want = {"method": "screened", "measured": 0.25, "products": "bfloat16" if native else "model"}
        assert {name: got.config[name] for name in want} == want
    with edit(model, KnockOut({(1, 0)})):
        assert head_roles(model, right, wrong).config["method"] == "exact", "edits may treat rows differently"
    last = head_roles(model, right, wrong, config=RolesConfig(positions="last"))
    assert (last.config["method"], last.config["products"]) == ("exact", "model")
    got.save(tmp_path / "roles")
    loaded = HeadRoles.load(tmp_path / "roles")
    assert loaded.is_measured is not None and got.is_measured is not None
    assert_equal(loaded.is_measured, got.is_measured)
    assert loaded.config == got.config


def test_products_in_bfloat16_leave_the_roles_as_they_are() -> None:
    model = tiny("llama")
    right, wrong = sets_of(model)
    exact, got = (head_roles(model, right, wrong, config=RolesConfig(products=p)) for p in ("model", "bfloat16"))
    assert got.config["products"] == "bfloat16" and not torch.equal(got.effect_correct, exact.effect_correct)
    assert_close(got.effect_correct, exact.effect_correct, "effect", 0.02 * float(exact.effect_correct.abs().max()))


def test_progress_counts_every_knockout() -> None:
    model, seen = tiny("llama"), list[tuple[int, int]]()
    right, wrong = sets_of(model)
    head_roles(model, right, wrong, tick=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (60, 60) and [n for n, _ in seen] == sorted(n for n, _ in seen)


def test_a_plan_of_roles_counts_what_runs() -> None:
    model = tiny("llama")
    right, wrong = sets_of(model)
    exact = plan_head_roles(model, right, wrong)
    assert exact.n_variants == 60 and exact.seconds > 0 and exact.bytes > 0
    screened = plan_head_roles(model, right, wrong, config=RolesConfig(method="screened", measured=0.25))
    assert screened.n_variants == 15
    # five contexts of 8 to 12 tokens: 4 heads x (1 layer after the first + 0.7 of the own and the last for two) / 3
    assert exact.plain_passes == pytest.approx(2 + 4 * (1 + 2 * 0.7) / 3 * 50 / 49, rel=0.05)
    last = plan_head_roles(model, right, wrong, config=RolesConfig(positions="last"))
    assert last.plain_passes == pytest.approx(2 + 5 * 12 / 2 / 49, rel=0.05)


def test_a_plan_counts_what_contexts_begin_with_once() -> None:
    model, start = tiny("llama"), random_ids(1, 20, seed=9)[0]
    rows = [torch.cat([start, random_ids(1, 10, seed=seed)[0]]) for seed in range(4)]
    alike = SlotContexts(torch.stack(rows[:2]), torch.ones(2, 30), torch.tensor([5, 5]), torch.tensor([5, 5]))
    other = SlotContexts(torch.stack(rows[2:]), torch.ones(2, 30), torch.tensor([5, 5]), torch.tensor([6, 6]))
    shared = plan_head_roles(model, alike, other).plain_passes
    apart = [random_ids(1, 30, seed=seed)[0] for seed in range(4)]
    alone = SlotContexts(torch.stack(apart[:2]), torch.ones(2, 30), torch.tensor([5, 5]), torch.tensor([5, 5]))
    alone_too = SlotContexts(torch.stack(apart[2:]), torch.ones(2, 30), torch.tensor([5, 5]), torch.tensor([6, 6]))
    whole = plan_head_roles(model, alone, alone_too).plain_passes
    assert (shared - 2) / (whole - 2) == pytest.approx((20 + 4 * 10) / (4 * 30))


def test_slopes_before_and_at_the_last_position_add_up() -> None:
    from chainwright.diagnose.heads._sweep.gradient import split_slopes

    model = tiny("qwen3")
    right, _ = sets_of(model)
    contexts = role_sweep.tracked(anatomy(model), right)
    plain, slopes = split_slopes(anatomy(model), contexts)
    assert slopes.shape == (3, 3, 4, 2, 2) and plain.logits.argmax(-1).tolist() == right.predicted_ids.tolist()
    asked = {"attention_mask": right.attention_mask, "method": "gradient"}
    every = knockout_effects(model, right.input_ids, right.predicted_ids, **asked).effect
    last = knockout_effects(model, right.input_ids, right.predicted_ids, positions="last", **asked).effect
    assert_close(slopes[:, :, :, 0].sum(-1), every, "all positions", TOLERANCE)
    assert_close(slopes[:, :, :, 0, 1], last, "last", TOLERANCE)
