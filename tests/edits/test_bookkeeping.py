"""Edits prove that they happened: they count what they touch, and leaving with nothing touched is an error."""

import pytest
import torch

from chainwright._errors import BadInput, ChainwrightError, EditNeverFired, unknown_name
from chainwright._registry import names
from chainwright.edits import AttendBack, BackHead, Bridge, Cut, CutAttention, KnockOut, Momentum, Touched, edit
from chainwright.models import anatomy, capture
from chainwright.models.seam import Handlers
from chainwright.traces import LiveSteps
from families import random_ids, tiny
from reference import assert_equal
from step_runs import Words


@torch.no_grad()
def test_sites_are_rows_times_heads_times_positions() -> None:
    model, heads = tiny("llama"), {(0, 1), (0, 2), (2, 3)}
    with edit(model, KnockOut(heads), KnockOut({(1, 0)}, "last"), KnockOut([{(1, 1)}, set()])) as (a, b, c):
        assert (a.n_sites, b.n_sites, c.n_sites) == (0, 0, 0)
        model(input_ids=random_ids(2, 5))
        assert (a.n_sites, b.n_sites, c.n_sites) == (2 * 3 * 5, 2 * 1 * 1, 1 * 1 * 5)
        model(input_ids=random_ids(2, 7))
        assert (a.n_sites, b.n_sites, c.n_sites) == (2 * 3 * 12, 2 * 1 * 2, 1 * 1 * 12)
    assert {layer: int(n) for layer, n in a.by_layer.items()} == {0: 2 * 2 * 12, 2: 2 * 1 * 12}


def test_every_edit_gives_handlers_of_one_type() -> None:
    model, steps = tiny("llama"), LiveSteps(Words())
    edits = {
        "knock-out": KnockOut({(0, 1)}),
        "bridge": Bridge((0,), steps),
        "momentum": Momentum((0,), steps),
        "cut-attention": CutAttention([Cut((3, 4), (0, 2))]),
        "attend-back": AttendBack([BackHead(48, 0, (1,))]),
    }
    assert set(names("edit")) <= set(edits)
    for made in edits.values():
        assert type(made.handlers(anatomy(model), Touched())) is Handlers


def test_sites_of_cached_generation_are_those_of_the_tokens_that_ran() -> None:
    model, ids = tiny("llama"), random_ids(2, 6)
    with edit(model, KnockOut({(0, 1)}), KnockOut({(1, 2)}, "last")) as (every, last):
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False, eos_token_id=None)
    # the prompt in one pass, then three of the four new tokens; the fourth is never run
    assert (every.n_sites, last.n_sites) == (2 * (6 + 3), 2 * (1 + 3))


@torch.no_grad()
def test_counters_start_anew_in_every_block() -> None:
    model, knock_out = tiny("llama"), KnockOut({(0, 1)})
    for _ in range(2):
        with edit(model, knock_out) as (touched,):
            model(input_ids=random_ids(1, 5))
        assert touched.n_sites == 5


def test_an_edit_that_never_fired_says_so() -> None:
    model = tiny("llama")
    with pytest.raises(EditNeverFired) as caught:
        with edit(model, KnockOut({(1, 2)})):
            pass
    assert str(caught.value) == (
        "KnockOut(heads={(1, 2)}, positions='all', scale=0.0) was attached but touched no (layer, head, position) "
        "site: no forward pass ran inside the block, or the edit selects nothing. Run the model inside the block, or "
        "pass strict=False."
    )
    assert isinstance(caught.value, ChainwrightError) and not model.base_model._forward_pre_hooks


@pytest.mark.parametrize("heads", [set(), [], [set(), set()]], ids=str)
def test_an_edit_that_selects_nothing_never_fires(heads: object) -> None:
    model = tiny("llama")
    with pytest.raises(EditNeverFired), edit(model, KnockOut(heads)):  # type: ignore[arg-type]
        model(input_ids=random_ids(2, 4))


def test_one_idle_edit_among_several_is_named() -> None:
    model = tiny("llama")
    with pytest.raises(EditNeverFired, match=r"KnockOut\(heads=\[\], positions='last', scale=0.0\)"):
        with edit(model, KnockOut({(0, 1)}), KnockOut([], "last")):
            model(input_ids=random_ids(1, 4))


def test_an_edit_of_another_model_never_fires() -> None:
    model, other = tiny("llama"), tiny("llama")
    with pytest.raises(EditNeverFired), edit(model, KnockOut({(0, 1)})):
        other(input_ids=random_ids(1, 4))


def test_not_strict_lets_it_pass() -> None:
    with edit(tiny("llama"), KnockOut({(1, 2)}), strict=False) as (touched,):
        pass
    assert touched.n_sites == 0


def test_an_exception_of_the_block_is_not_masked() -> None:
    model = tiny("llama")
    with pytest.raises(LookupError, match="the user's own"):
        with edit(model, KnockOut({(1, 2)})):
            raise LookupError("the user's own")
    assert not model.base_model._forward_pre_hooks


def test_no_edit_at_all_is_no_error() -> None:
    model, ids = tiny("llama"), random_ids(1, 4)
    with torch.no_grad():
        want = model(input_ids=ids).logits
        with edit(model) as counts:
            assert_equal(model(input_ids=ids).logits, want)
    assert counts == []


def test_reading_inside_an_edit_counts_as_a_pass() -> None:
    model = tiny("llama")
    with edit(model, KnockOut({(1, 2)})) as (touched,):
        capture(model, random_ids(2, 5))
    assert touched.n_sites == 10


def test_errors_are_of_one_family_and_bad_input_is_a_value_error() -> None:
    error = unknown_name("task", "Parrity", ["parity", "clf"])
    assert isinstance(error, BadInput) and isinstance(error, ValueError) and isinstance(error, ChainwrightError)
    assert str(error) == "Unknown task 'Parrity'; known: parity, clf. Did you mean 'parity'?"
    assert str(unknown_name("task", "zzz", ["parity"])) == "Unknown task 'zzz'; known: parity."
