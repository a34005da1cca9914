"""Single steps over the cache of whole rows give what whole passes do, head by head and site by site."""

import pytest
import torch

from chainwright.edits import KnockOut, edit
from chainwright.models.anatomy import anatomy
from chainwright.repair.tcr import _teacher_forcing
from chainwright.repair.tcr._forced_last import kept_cache
from chainwright.repair.tcr._knockout_switch import Switch
from chainwright.repair.tcr._teacher_forcing import ForcedRows, Site
from families import FAMILIES, random_ids, tiny
from reference import assert_close

ROWS = [random_ids(1, n, seed=n)[0].tolist() for n in (9, 5, 2)]
SITES = [Site(0, 3), Site(0, 9), Site(1, 5), Site(2, 1), Site(1, 2)]
PAIRS = [(0, (0, 1)), (1, (2, 2)), (2, (1, 3)), (3, (0, 0)), (4, (1, 0)), (1, (0, 1)), (0, (2, 0))]


@pytest.mark.parametrize("scale", [0.0, 0.4])
@pytest.mark.parametrize("family", FAMILIES)
def test_steps_equal_whole_passes(family: str, scale: float) -> None:
    model = tiny(family)
    parts = anatomy(model)
    switch = Switch(parts)
    with switch.attached(), torch.no_grad():
        forced = ForcedRows(parts, switch, ROWS, [1, 1, 1], [0], positions="last")
        got = forced.without(SITES, PAIRS, "last", scale)
        again = forced.without(SITES, PAIRS[:3], "last", scale)  # the cache was only read
        seen = forced.seen(SITES)
    for (i, head), logits in zip(PAIRS, got, strict=True):
        ids = torch.tensor([ROWS[SITES[i].row][: SITES[i].n_before]])
        with edit(model, KnockOut({head}, "last", scale=scale)), torch.no_grad():
            want = model(input_ids=ids, use_cache=False).logits[0, -1]
        assert_close(logits, want, f"site {i}, head {head}", 2e-3)
    assert torch.equal(again, got[:3]) or float((again - got[:3]).abs().max()) < 1e-4
    for site, logits in zip(SITES, seen.logits, strict=True):
        with torch.no_grad():
            want = model(input_ids=torch.tensor([ROWS[site.row][: site.n_before]]), use_cache=False).logits[0, -1]
        assert_close(logits, want, f"nothing silenced, {site}", 2e-3)


def test_steps_are_taken_only_where_they_equal_whole_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    whole = _teacher_forcing.whole_prefix_logits
    monkeypatch.setattr(
        _teacher_forcing, "whole_prefix_logits", lambda *args: calls.append(len(args[2])) or whole(*args)
    )
    for family, n_whole in (("llama", 0), ("mistral", 1)):
        parts = anatomy(tiny(family))
        switch = Switch(parts)
        with switch.attached():
            forced = ForcedRows(parts, switch, ROWS, [1, 1, 1], [], positions="last")
            forced.without(SITES, PAIRS, "last", 0.0)
        assert len(calls) == n_whole, f"{family} has {'windows' if n_whole else 'none'}"
    model = tiny("llama")
    assert kept_cache(anatomy(model)) is not None
    with edit(model, KnockOut({(0, 0)}), strict=False):
        assert kept_cache(anatomy(model)) is None


def test_many_places_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from chainwright.repair.tcr import _forced_last

    parts = anatomy(tiny("llama"))
    switch = Switch(parts)
    with switch.attached():
        forced = ForcedRows(parts, switch, ROWS, [1, 1, 1], [], positions="last")
        want = forced.without(SITES, PAIRS, "last", 0.0)
        monkeypatch.setattr(_forced_last, "_BYTES_AT_ONCE", 1)
        assert_close(forced.without(SITES, PAIRS, "last", 0.0), want, "one at a time", 1e-4)
