"""A pass whose batch grows at the layers of the silenced heads gives what one full pass per head does."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from transformers import DynamicCache

from chainwright.edits import KnockOut, edit
from chainwright.edits._passes import Row
from chainwright.models.anatomy import anatomy
from chainwright.models.seam import Handlers, attach
from chainwright.repair.run import Cost
from chainwright.repair.tcr import _ablated_cache
from chainwright.repair.tcr._ablated_cache import Branches
from chainwright.repair.tcr._knockout_switch import Switch
from families import FAMILIES, left_padded, random_ids, tiny
from reference import assert_close

HEADS = [(2, 0), (0, 1), (1, 3), (0, 2), (2, 3)]
# families whose layers look through windows run without it
GROWING = [f for f in FAMILIES if "sliding_window" not in FAMILIES[f]]


def rows_of(contexts):
    """Return the rows of a run that hold these tokens; their serial numbers are their places."""
    return [Row(ids.tolist(), 1, serial=i) for i, ids in enumerate(contexts)]


def ask(branches, pairs, contexts, cache):
    """Return the logits of pairs after contexts, one per row."""
    rows = rows_of(contexts)
    return branches.logits(pairs, [rows[row].ids for row, _ in pairs], cache, rows)


@contextmanager
def branches_of(model, *, scale=0.0, max_bytes=2**30):
    parts = anatomy(model)
    switch = Switch(parts)
    with switch.attached():
        yield Branches(parts, switch, scale, max_bytes, Cost())


@torch.no_grad()
def without(model, ids, head, scale=0.0):
    with edit(model, KnockOut({head}, scale=scale)):
        return model(input_ids=ids[None], use_cache=False).logits[0, -1]


@torch.no_grad()
def cache_of(model, rows):
    """Return the keys and values of left-padded rows."""
    ids, mask = left_padded(rows)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
    return cache


def plain_passes(branches, monkeypatch):
    """Return a list that grows with every pass in which the batch does not."""
    seen, run = [], Branches._run

    def noted(self, jobs):
        if self is branches:
            seen.append(len(jobs))
        return run(self, jobs)

    monkeypatch.setattr(Branches, "_run", noted)
    return seen


@pytest.mark.parametrize("scale", [0.0, 0.5])
@pytest.mark.parametrize("family", GROWING)
def test_it_equals_a_full_pass_per_head_from_the_start_and_continued(family, scale, monkeypatch) -> None:
    model, rows = tiny(family), [random_ids(1, n, seed=n)[0] for n in (23, 31, 12)]
    with branches_of(model, scale=scale) as branches:
        plain = plain_passes(branches, monkeypatch)
        # the second time some heads know less than others, and one row is new
        asked_then, asked_now = {0: HEADS[:3], 1: HEADS[1:]}, dict.fromkeys(range(3), HEADS)
        for lengths, asked in (((9, 17, 3), asked_then), ((23, 31, 12), asked_now)):
            short = [row[:n] for row, n in zip(rows, lengths, strict=True)]
            pairs = [(row, head) for row, heads in asked.items() for head in heads]
            got = ask(branches, pairs, short, cache_of(model, short))
            want = torch.stack([without(model, short[row], head, scale) for row, head in pairs])
            assert_close(got, want, f"{family} at {lengths}", 2e-4)
        assert not plain, "each pass was a grown one"
        kept = {pair: sorted(branch.layers) for pair, branch in branches._kept.items()}
        assert kept[0, (2, 0)] == [] and kept[0, (1, 3)] == [2] and kept[1, (0, 1)] == [1, 2]


@pytest.mark.parametrize("family", GROWING)
def test_heads_of_the_last_layer_take_one_token_however_long_the_row(family) -> None:
    """What they write at earlier positions is read by nothing."""
    model, row = tiny(family), random_ids(1, 50, seed=5)[0]
    n_last = sum(layer == 2 for layer, _ in HEADS)
    with branches_of(model) as branches:
        ask(branches, [(0, (0, 0))], [row[:9]], cache_of(model, [row[:9]]))  # the trial that a model begins with
        before = branches.cost.n_extra_tokens
        got = ask(branches, [(0, head) for head in HEADS], [row], cache_of(model, [row]))
        want = torch.stack([without(model, row, head) for head in HEADS])
        assert_close(got, want, family, 2e-4)
        n_rows = len(HEADS) - n_last + 1  # with the row itself
        assert branches.cost.n_extra_tokens - before == 50 * n_rows + (n_last + 1)


def test_a_small_memory_gives_the_same() -> None:
    model, row = tiny("llama"), random_ids(1, 30, seed=3)[0]
    with branches_of(model, max_bytes=1) as branches:
        for n in (20, 30):
            pairs = [(0, head) for head in HEADS]
            got = ask(branches, pairs, [row[:n]], cache_of(model, [row[:n]]))
            assert_close(got, torch.stack([without(model, row[:n], head) for head in HEADS]), f"{n} tokens", 2e-4)
        assert branches.n_bytes <= 1, "only heads of the last layer, which need no memory, are kept"


def test_it_is_left_alone_where_something_else_is_attached(monkeypatch) -> None:
    """A branch of a grown pass has upper layers only, so a plain pass starts it again; that of a plain one serves."""
    model, row = tiny("llama"), random_ids(1, 20, seed=3)[0]
    pairs = [(0, head) for head in HEADS]

    def after(branches, n):
        return ask(branches, pairs, [row[:n]], cache_of(model, [row[:n]]))

    def want(n):
        return torch.stack([without(model, row[:n], head) for head in HEADS])

    with branches_of(model) as branches:
        plain = plain_passes(branches, monkeypatch)
        assert_close(after(branches, 6), want(6), "grown", 2e-4)
        with attach(model, Handlers({1: (lambda call, attend: attend(call),)})):
            got, n_extra = after(branches, 9), branches.cost.n_extra_tokens
        assert len(plain) == 1 and n_extra == 6 * 6 + 9 * 5
        assert_close(got, want(9), "plain", 2e-4)
        assert_close(after(branches, 20), want(20), "grown again", 2e-4)
        assert len(plain) == 1 and branches.cost.n_extra_tokens == n_extra + 11 * 6


def test_hooks_on_the_last_layer_see_every_position() -> None:
    model, row = tiny("llama"), random_ids(1, 9, seed=3)[0]
    lengths = []
    cache = cache_of(model, [row])
    with branches_of(model) as branches:
        last = model.model.layers[-1]
        hook = last.register_forward_hook(lambda module, args, output: lengths.append(args[0].shape[1]))
        got = ask(branches, [(0, (1, 1))], [row], cache)
        hook.remove()
    assert set(lengths[-1:]) == {9}
    assert_close(got[0], without(model, row, (1, 1)), "hooked", 2e-4)


def test_a_decoder_that_cannot_do_it_runs_plain_passes(monkeypatch) -> None:
    model, row = tiny("llama"), random_ids(1, 20, seed=3)[0]
    cache = cache_of(model, [row])

    with branches_of(model) as branches:
        plain = plain_passes(branches, monkeypatch)

        def refuse(self, *args):
            raise RuntimeError("shape")

        monkeypatch.setattr(Branches, "_grown", refuse)
        got = ask(branches, [(0, head) for head in HEADS], [row], cache)
        assert plain and _ablated_cache._GROWS[model.model] is False
    assert_close(got, torch.stack([without(model, row, head) for head in HEADS]), "plain", 2e-4)


@pytest.mark.parametrize("off", [0.0, 5.0])
def test_a_grown_pass_that_is_off_is_found_out(off, monkeypatch) -> None:
    model, row = tiny("llama"), random_ids(1, 20, seed=3)[0]
    grown = Branches._grown
    noise = torch.randn(61, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(Branches, "_grown", lambda *args: {p: x + off * noise for p, x in grown(*args).items()})
    with branches_of(model) as branches:
        got = ask(branches, [(0, (1, 1))], [row], cache_of(model, [row]))
    assert _ablated_cache._GROWS[model.model] is (off == 0.0)
    assert_close(got[0], without(model, row, (1, 1)), "logits", 2e-4)
