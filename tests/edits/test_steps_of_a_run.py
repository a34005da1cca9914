"""The short way in which a run takes in one more token per row, beside the long one that takes in any pass."""

from __future__ import annotations

import pytest
import torch

from chainwright.edits.run import Run, following
from chainwright.models.anatomy import anatomy
from families import left_padded, random_ids, tiny


def snapshots(monkeypatch: pytest.MonkeyPatch, model, ids, mask, *, is_short: bool, **options):
    """Return what the run held after each pass of two generations, and how many passes went the short way."""
    states, n_short, step = [], 0, Run._is_step

    def counted(self, *args):
        nonlocal n_short
        taken = is_short and step(self, *args)
        n_short += taken
        return taken

    monkeypatch.setattr(Run, "_is_step", counted)
    torch.manual_seed(0)
    with following(anatomy(model)) as run:

        def note(module, args, output):
            rows = [(list(row.ids), row.n_prompt, row.is_done, row.n_checked) for row in run.rows]
            now = run.latest
            counts = (run.n_slots, run.n_runs, run.n_passes, run.n_reopened, run.is_decoding, run.is_reordered)
            counted = None if run.counted is None else run.counted.tolist()
            states.append((rows, counts, counted, now.n_past, now.n_new, now.first, now.windows, now.n_confirmed))

        hook = model.register_forward_hook(note)
        for _ in range(2):
            out = model.generate(ids, attention_mask=mask, max_new_tokens=9, pad_token_id=0, **options)
        hook.remove()
    monkeypatch.undo()
    return states, n_short, out


@pytest.mark.parametrize("options", [{"do_sample": False}, {"do_sample": True}, {"num_beams": 2}], ids=str)
@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
@pytest.mark.parametrize("n_rows", [1, 3])
@torch.no_grad()
def test_both_ways_hold_the_same(family, n_rows, options, monkeypatch):
    model = tiny(family)
    rows = [random_ids(1, 4 + i, seed=i)[0] for i in range(n_rows)]
    ids, mask = left_padded(rows)
    options = {**options, "repetition_penalty": 5.0}  # so that no token comes twice
    ends = model.generate(ids, attention_mask=mask, max_new_tokens=9, pad_token_id=0, eos_token_id=None, **options)
    # the token that the first row writes sixth ends a row
    options = {**options, "eos_token_id": int(ends[0, ids.shape[1] + 5])}
    short, n_short, out = snapshots(monkeypatch, model, ids, mask, is_short=True, **options)
    long, n_none, want = snapshots(monkeypatch, model, ids, mask, is_short=False, **options)
    assert short == long and torch.equal(out, want)
    assert n_none == 0 and (n_short > 0 or "num_beams" in options)
    if family == "mistral":
        assert any(state[6] for state in short), "this family looks through windows"


@torch.no_grad()
def test_a_cache_that_was_cut_goes_the_long_way(monkeypatch):
    """The prompt, the first step and a cache that was cut are no plain steps; what a mask says of one token is."""
    model, ids = tiny("llama"), random_ids(2, 5)
    taken: list[bool] = []
    step = Run._is_step

    def noted(self, *args):
        taken.append(step(self, *args))
        return taken[-1]

    monkeypatch.setattr(Run, "_is_step", noted)
    with following(anatomy(model)) as run:
        cache = model(ids, use_cache=True).past_key_values
        one = torch.tensor([[7], [8]])
        for _ in range(2):
            model(one, past_key_values=cache, use_cache=True)
        assert taken == [False, False, True]  # the first step is what shows that the prompt is over
        assert [row.ids[5:] for row in run.rows] == [[7, 7], [8, 8]]
        mask = torch.ones(2, 8, dtype=torch.long)
        model(one, past_key_values=cache, use_cache=True, attention_mask=mask)
        assert taken[-1]
        mask = torch.cat([mask, torch.tensor([[1], [0]])], dim=1)
        model(one, past_key_values=cache, use_cache=True, attention_mask=mask)
        assert taken[-1]
        # the long way holds the same of a token that the mask hides
        held = run.rows, run.n_slots, run.latest, run.counted
        monkeypatch.setattr(Run, "_is_step", lambda *args: False)
        with following(anatomy(other := tiny("llama"))) as long:
            past = other(ids, use_cache=True, attention_mask=mask[:, :5]).past_key_values
            for length in (6, 7, 8, 9):
                other(one, past_key_values=past, use_cache=True, attention_mask=mask[:, :length])
        assert (long.rows, long.n_slots, long.latest, long.counted) == held
        monkeypatch.setattr(Run, "_is_step", noted)
        cache.crop(-3)
        model(one, past_key_values=cache, use_cache=True)
        assert not taken[-1]
