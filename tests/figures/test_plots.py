"""Findings draw themselves: `plot()` returns a figure that holds the finding's numbers, and shows nothing."""

from collections.abc import Iterator

import plotly.graph_objects as go
import plotly.io as pio
import pytest
import torch

from chainwright import figures
from chainwright._errors import BadInput
from chainwright.diagnose import KnockoutEffects, LogitLens
from report.report_examples import make_alternatives, make_diagnosis, make_evidence, make_roles


@pytest.fixture(autouse=True)
def showing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a figure was shown")

    monkeypatch.setattr(pio, "show", refuse)
    monkeypatch.setattr(go.Figure, "show", refuse)
    yield


def test_effects_are_drawn_as_a_map_of_their_mean_or_of_one_context() -> None:
    effect = torch.tensor([[[0.1, -0.3], [0.5, 0.0]], [[0.3, 0.1], [-0.1, 0.0]]])
    found = KnockoutEffects(baseline=torch.ones(2), effect=effect, is_exact=torch.ones_like(effect, dtype=torch.bool))
    mean, second = found.plot().data[0], found.plot(row=1).data[0]
    torch.testing.assert_close(torch.tensor(mean.z), effect.mean(0), check_dtype=False)
    torch.testing.assert_close(torch.tensor(second.z), effect[1], check_dtype=False)
    assert second.zmax == -second.zmin == pytest.approx(0.3)
    with pytest.raises(BadInput, match="row must be between 0 and 1; got 2"):
        found.plot(row=2)


def test_a_lens_is_drawn_over_depth_with_its_mean() -> None:
    found = LogitLens(logprob=torch.tensor([[-4.0, -1.0], [-2.0, -2.0]]), points=["embedding", "0 post"])
    lines = found.plot().data
    assert [list(line.y) for line in lines] == [[-4.0, -1.0], [-2.0, -2.0], [-3.0, -1.5]]
    assert list(lines[-1].text) == ["embedding", "0 post"]
    assert len(LogitLens(logprob=found.logprob[:1], points=found.points).plot().data) == 1


def test_roles_are_drawn_all_together_some_or_one() -> None:
    roles = make_roles(3, 4)
    for fig, names in ((roles.plot(), tuple(figures.MAPS)), (roles.plot(["kept", "corrected"]), ("kept", "corrected"))):
        maps = [trace for trace in fig.data if isinstance(trace, go.Heatmap)]
        assert [annotation.text for annotation in fig.layout.annotations] == [figures.MAPS[n].title for n in names]
        for heat, name in zip(maps, names, strict=True):
            torch.testing.assert_close(torch.tensor(heat.z), getattr(roles, name), atol=1e-4, rtol=1e-4)
    assert len(roles.plot("kept").data) == 2
    with pytest.raises(BadInput, match=r"Unknown measurement 'kept_'.*Did you mean 'kept'"):
        roles.plot("kept_")


def test_evidence_is_drawn_with_intervals_for_each_head() -> None:
    diagnosis = make_diagnosis()
    (evidence,) = make_evidence(diagnosis)
    fig = evidence.plot()
    fixed, broken = fig.data
    rows = evidence.counts(seen=False)
    assert list(fixed.x) == [row["n_fixed"] / row["n_erroneous"] for row in rows] == [1.0, 0.0]
    assert list(broken.x) == [row["n_broken"] / row["n_correct"] for row in rows] == [0.0, 1.0]
    assert list(fig.layout.yaxis.ticktext) == ["L1H1", "L0H1"]
    assert fixed.error_x.arrayminus[0] > 0 == fixed.error_x.array[0]


def test_errors_are_drawn_in_three_ways() -> None:
    errors = make_diagnosis().errors
    types, hops, entropy = (errors.plot(view) for view in ("types", "hops", "entropy"))
    assert types.layout.xaxis.title.text == "share of the task's first errors"
    assert hops.layout.barmode == "stack"
    assert "entropy" in entropy.layout.xaxis.title.text
    with pytest.raises(BadInput, match="view must be one of types, hops, entropy; got 'hop'"):
        errors.plot("hop")  # type: ignore[arg-type]


def test_a_finding_without_a_figure_of_its_own_shows_its_table() -> None:
    found = make_alternatives(make_diagnosis())
    (table,) = found.plot().data
    assert isinstance(table, go.Table)
    assert list(table.header.values) == [f"<b>{name}</b>" for name in found.to_frame().column_names]
    assert "&lt;b&gt;other&lt;/b&gt;" in {text.strip() for text in table.cells.values[3]}, "escaped"


def test_few_tokens_have_no_bars() -> None:
    entropy = make_diagnosis().errors.plot("entropy")
    wrong = next(trace for trace in entropy.data if trace.name == "at the first wrong token")
    assert list(wrong.error_x.array) == [None]
