"""Figures of ways of decoding: what is drawn where, with which intervals, for two ways and for eleven."""

from typing import Any

import pytest

from chainwright import figures
from chainwright._stats import wilson


def row(name: str, exact: float, gain: float = 0.0, **more: Any) -> dict[str, Any]:
    gains = {"gain": gain, "gain_low": gain - 0.1, "gain_high": gain + 0.2}
    gains |= {f"exact_{key}": value for key, value in gains.items()}
    rest = {"task": "all", "hops": None, "n": 20, "n_fixed": 3, "n_broken": 1}
    return {"name": name, "exact": exact, "accuracy": exact, **gains, **rest, **more}


def test_ways_have_shares_with_wilson_and_gains_with_their_own_intervals() -> None:
    fig = figures.ways_compared([row("none", 0.5), row("<b>mine</b>", 0.75, 0.25)], "none")
    shares, gains = fig.data[:2]
    assert list(shares.x) == [0.5, 0.75] and list(gains.x) == [0.25]
    assert shares.error_x.array[0] == pytest.approx(wilson(10, 20).high - 0.5)
    assert gains.error_x.arrayminus[0] == pytest.approx(0.1) and gains.error_x.array[0] == pytest.approx(0.2)
    assert list(fig.layout.yaxis.ticktext) == ["none", "&lt;b&gt;mine&lt;/b&gt;"]
    assert gains.xaxis == "x2" and [round(y) for y in gains.y] == [1], "the baseline gains nothing over itself"
    assert "3 fixed, 1 broken" in gains.text[0]


@pytest.mark.parametrize("is_narrow", [False, True])
@pytest.mark.parametrize("n", [2, 11])
def test_each_way_has_a_line_of_its_own_however_many_there_are(n: int, is_narrow: bool) -> None:
    fig = figures.ways_compared([row(f"way {i}", 0.5, 0.01 * i) for i in range(n)], "way 0", is_narrow=is_narrow)
    assert len(fig.layout.yaxis.ticktext) == n and len(fig.data[0].x) == n and len(fig.data[1].x) == n - 1
    drawn = fig.layout.height - fig.layout.margin.t - fig.layout.margin.b
    assert drawn / n / (2 if is_narrow else 1) >= 30
    apart = [fig.layout.yaxis.domain, fig.layout.yaxis2.domain] if is_narrow else None
    assert apart is None or apart[1][1] < apart[0][0]
    assert fig.layout.yaxis2.showticklabels is is_narrow


def test_gains_of_nothing_have_an_axis_that_can_be_read() -> None:
    same = {key: 0.0 for key in ("gain", "gain_low", "gain_high", "exact_gain", "exact_gain_low", "exact_gain_high")}
    low, high = figures.ways_compared([row("none", 0.5), {**row("a", 0.5), **same}], "none").layout.xaxis2.range
    assert -0.06 < low < -0.05 and 0.05 < high < 0.06
    low, high = figures.ways_compared([row("none", 0.5), row("a", 0.5, 0.5)], "none").layout.xaxis2.range
    assert low < -0.05 and high > 0.7, "the whole interval is on it"


def cells(names: list[str], tasks: tuple[str, ...] = ("clf", "parity")) -> list[dict[str, Any]]:
    return [row(name, 1 / hops, task=task, hops=hops) for task in tasks for hops in (2, 4) for name in names]


def test_hop_curves_have_a_panel_a_task_and_a_line_a_way() -> None:
    fig = figures.hop_curves(cells(["none", "a"]), "none")
    assert [a.text for a in fig.layout.annotations] == ["CLF", "Parity-NL"]
    assert [(t.name, list(t.y)) for t in fig.data] == [("none", [0.5, 0.25]), ("a", [0.5, 0.25])] * 2
    assert fig.data[0].x[0] < 2 < fig.data[1].x[0] or fig.data[0].x[0] < fig.data[1].x[0], "set apart"
    assert fig.data[0].error_y.array[1] == pytest.approx(wilson(5, 20).high - 0.25)
    assert [t.showlegend for t in fig.data] == [True, True, False, False]


def test_of_many_ways_the_later_ones_wait_in_the_legend_and_none_looks_like_another() -> None:
    names = [f"way {i}" for i in range(11)]
    fig = figures.hop_curves(cells(names, ("clf",)), "way 0")
    assert [t.visible for t in fig.data] == [True] * figures.SHOWN + ["legendonly"] * (11 - figures.SHOWN)
    assert len({(t.line.color, t.line.dash, t.marker.symbol) for t in fig.data}) == 11
    few = figures.hop_curves(cells(names[:3], ("clf",)), "way 0")
    assert fig.layout.margin.t > few.layout.margin.t, "the longer legend has room"


def test_thresholds_are_drawn_as_flags_and_as_gain() -> None:
    rows = [{"tau": t, "precision": 0.2, "recall": 0.8, "flagged": 0.01, "gain": t, "low": 0.0, "high": 1.0}
            for t in (0.1, 0.5)]  # fmt: skip
    fig = figures.threshold_curves(rows)
    assert [t.name for t in fig.data] == ["precision", "recall", "flagged tokens", "gain"]
    assert list(fig.data[3].y) == [0.1, 0.5] and list(fig.data[3].error_y.arrayminus) == [0.1, 0.5]
    assert figures.threshold_curves(rows, columns=1).layout.height > fig.layout.height


def test_each_decision_at_the_flags_has_a_gain_of_its_own() -> None:
    rows = [{"tau": t, "decision": how, "precision": 0.2, "recall": 0.8, "flagged": 0.01, "gain": gain, "low": 0.0,
             "high": 1.0} for t in (0.1, 0.5) for how, gain in (("vote", t), ("verifier", 0.5))]  # fmt: skip
    fig = figures.threshold_curves(rows)
    assert [t.name for t in fig.data] == ["precision", "recall", "flagged tokens", "vote", "verifier"]
    assert [list(t.y) for t in fig.data[3:]] == [[0.1, 0.5], [0.5, 0.5]] and list(fig.data[0].x) == [0.1, 0.5]
    assert fig.data[4].x[0] > fig.data[3].x[0] == 0.1, "set apart"
