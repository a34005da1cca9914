"""Rows that enter and leave a batch between tokens write what each writes alone, whatever acts in the others."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from chainwright.decode.ending import Endings
from chainwright.decode.run import in_order
from chainwright.integrations.server.caches import join, select
from chainwright.integrations.server.choice import Choice, Failure, Wanted
from chainwright.integrations.server.lane import Lane
from chainwright.models.anatomy import anatomy
from chainwright.repair import Repair
from families import left_padded, random_ids, tiny
from reference import assert_close, assert_equal
from repair_runs import back_attention, stepflow, tcr
from step_runs import Words

LENGTHS = (5, 11, 3, 8, 14, 4)
N_NEW = (9, 4, 14, 6, 3, 11)
FAMILIES = ("llama", "gpt2", "mistral", "gemma3_text", "deepseek_v3")


def prompts() -> list[list[int]]:
    return [[*random_ids(1, n, seed=n)[0].clamp(min=9).tolist(), 6] for n in LENGTHS]


def choice(ids: Sequence[int], n_new: int, repairs: tuple[str, ...] = ()) -> Choice:
    wanted = Wanted(ids, repairs=repairs, max_new_tokens=n_new)
    return Choice(wanted, Endings.of(Words(), (), None, None), frozenset(), lambda one: None, timeout=60, streams=False)


def come_and_go(lane: Lane, choices: Sequence[Choice]) -> None:
    """Have the first two enter together, and the others one by one after every second token."""
    waiting = list(choices)
    lane.coming, waiting = waiting[:2], waiting[2:]
    n = 0
    while lane.n_rows or waiting:
        if waiting and n % 2:
            lane.coming.append(waiting.pop(0))
        with torch.no_grad():
            lane.advance()
        n += 1
    lane.pause()


@torch.no_grad()
def alone(model: PreTrainedModel, ids: list[int], n_new: int, repairs: Sequence[Repair]) -> list[int]:
    """Return what `generate` writes for one prompt."""
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    with ExitStack() as stack:
        for repair in in_order(list(repairs)):
            stack.enter_context(repair.attached(model))
        out = model.generate(torch.tensor([ids]), max_new_tokens=n_new, do_sample=False)
    return out[0, len(ids) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_without_repairs(family: str) -> None:
    model = tiny(family)
    choices = [choice(ids, n) for ids, n in zip(prompts(), N_NEW, strict=True)]
    lane = Lane(anatomy(model), {})
    come_and_go(lane, choices)
    assert lane.n_joined >= 3  # of the four that came later
    for one, ids, n in zip(choices, prompts(), N_NEW, strict=True):
        assert one.ids[len(ids) :] == alone(model, ids, n, []), f"{len(ids)} tokens"
        assert one.finish == "length"


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_with_different_repairs_in_each_row(family: str) -> None:
    model = tiny(family)
    repairs = {"flow": stepflow(), "tcr": tcr(model), "last": tcr(model, positions="last")}
    rows = [(), ("tcr",), ("flow",), ("last",), ("flow", "tcr"), ("flow", "last")]
    plain = [alone(model, ids, n, []) for ids, n in zip(prompts(), N_NEW, strict=True)]
    n_changed = 0
    for turn in range(2):  # each prompt with two of them
        asked = rows[turn * 2 :] + rows[: turn * 2]
        choices = [choice(ids, n, own) for ids, n, own in zip(prompts(), N_NEW, asked, strict=True)]
        lane = Lane(anatomy(model), repairs)
        come_and_go(lane, choices)
        for one, ids, n, own, without in zip(choices, prompts(), N_NEW, asked, plain, strict=True):
            assert one.ids[len(ids) :] == alone(model, ids, n, [repairs[name] for name in own]), own
            n_changed += one.ids[len(ids) :] != without
            assert (one.n_flagged > 0) <= (len(own) > 0)
        # the momentum keeps values of its own on layers with a window, so there rows enter together
        assert (lane.n_joined > 0) == (family != "mistral")
    assert n_changed > 0
    assert not model._forward_hooks and not anatomy(model).decoder._forward_pre_hooks


def test_back_attention_has_a_lane_of_its_own_in_which_rows_come_and_go() -> None:
    model = tiny("llama")
    repair = back_attention(model)
    assert not repair.acts_by_row
    choices = [choice(ids, n, ("back",)) for ids, n in zip(prompts(), N_NEW, strict=True)]
    lane = Lane(anatomy(model), {"back": repair})
    come_and_go(lane, choices)
    assert lane.n_joined >= 3
    for one, ids, n in zip(choices, prompts(), N_NEW, strict=True):
        assert one.ids[len(ids) :] == alone(model, ids, n, [repair])
        assert one.n_extra_tokens == len(ids) + n - 1  # each token is read twice; the last one is not read


def test_a_pause_between_tokens_changes_nothing() -> None:
    model = tiny("llama")
    repairs = {"flow": stepflow(), "tcr": tcr(model)}
    choices = [choice(ids, 12, own) for ids, own in zip(prompts(), [(), ("tcr",), ("flow", "tcr")], strict=False)]
    lane = Lane(anatomy(model), repairs)
    lane.coming = list(choices)
    while lane.n_rows:
        lane.resume()
        with torch.no_grad():
            lane.advance()
        lane.pause()
    for one in choices:
        ids = list(one.wanted.ids)
        assert one.ids[len(ids) :] == alone(model, ids, 12, [repairs[name] for name in one.wanted.repairs])


def test_a_row_that_is_cancelled_leaves_and_the_others_do_not_notice() -> None:
    model = tiny("llama")
    choices = [choice(ids, 12, ("tcr",)) for ids in prompts()[:3]]
    repairs = {"tcr": tcr(model)}
    lane = Lane(anatomy(model), repairs)
    lane.coming = list(choices)
    with torch.no_grad():
        lane.advance()
        choices[1].cancelled.set()
        while lane.n_rows:
            lane.advance()
    assert (choices[1].finish, len(choices[1].written)) == ("cancelled", 2)
    for one in (choices[0], choices[2]):
        ids = list(one.wanted.ids)
        assert one.ids[len(ids) :] == alone(model, ids, 12, [repairs["tcr"]])


class Falls(Exception):
    pass


def test_prompts_that_cannot_be_read_do_not_end_the_rows_that_are_decoded(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny("llama")
    repairs = {"flow": stepflow(), "tcr": tcr(model)}
    choices = [choice(ids, 10, ("flow", "tcr")) for ids in prompts()[:3]]
    lane = Lane(anatomy(model), repairs)
    lane.coming = choices[:2]
    real = model.forward

    def falls(*args: object, **kwargs: object) -> object:
        raise Falls("out of luck.")

    with torch.no_grad():
        lane.advance()
        lane.coming.append(choices[2])
        model.forward = falls  # type: ignore[method-assign]
        try:
            with pytest.raises(Falls):  # the newcomer's pass fails, then the step
                lane.advance()
        finally:
            model.forward = real  # type: ignore[method-assign]
        assert choices[2].failure == Failure(
            500, "Decoding failed (Falls: out of luck); the server continues with other requests."
        )
        while lane.n_rows:
            lane.advance()
    assert lane.n_failed == 1
    for one in choices[:2]:
        ids = list(one.wanted.ids)
        assert one.ids[len(ids) :] == alone(model, ids, 10, list(repairs.values()))


# keys and values


def filled(rows: list[Tensor], model: PreTrainedModel) -> DynamicCache:
    ids, mask = left_padded(rows)
    cache = DynamicCache(config=model.config)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
    return cache


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text"])
@pytest.mark.parametrize("lengths", [((9, 4), (3, 6)), ((3, 2), (12,)), ((7,), (7,)), ((30, 9), (5, 20))])
def test_joined_and_selected_rows_hold_what_one_batch_of_them_does(
    family: str, lengths: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    model = tiny(family)
    parts = [[random_ids(1, n, seed=n)[0] for n in group] for group in lengths]
    cache, rows = filled(parts[0], model), [*parts[0], *parts[1]]
    join(cache, filled(parts[1], model))
    _assert_same(cache, filled(rows, model), rows)
    kept = list(range(1, len(rows)))
    select(cache, kept, max(map(len, rows)) - max(len(rows[i]) for i in kept))
    _assert_same(cache, filled(rows[1:], model), rows[1:])


def _assert_same(got: DynamicCache, want: DynamicCache, rows: list[Tensor]) -> None:
    assert got.get_seq_length() == want.get_seq_length()
    for layer, due in zip(got.layers, want.layers, strict=True):
        assert layer.keys.shape == due.keys.shape and layer.get_mask_sizes(1) == due.get_mask_sizes(1)
        for i, row in enumerate(rows):
            n = min(len(row), due.keys.shape[2])
            assert_close(layer.keys[i, :, -n:], due.keys[i, :, -n:], "keys", 1e-4)
            assert_close(layer.values[i, :, -n:], due.values[i, :, -n:], "values", 1e-4)


def test_a_selection_of_all_rows_is_the_same() -> None:
    model = tiny("llama")
    rows = [random_ids(1, n, seed=n)[0] for n in (4, 6)]
    cache, due = filled(rows, model), filled(rows, model)
    select(cache, [0, 1], 0)
    for layer, same in zip(cache.layers, due.layers, strict=True):
        assert_equal(layer.keys, same.keys)
