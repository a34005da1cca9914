import json

import pytest
import torch

from chainwright import figures
from chainwright.diagnose import ErrorTable
from chainwright.figures import _panels
from chainwright.figures.theme import template
from report.report_examples import make_diagnosis, make_roles


def test_accuracy_has_a_panel_a_task_with_lines_and_bands() -> None:
    diagnosis = make_diagnosis({"parity": (2, 4), "objc": (3, 5)})
    fig = figures.accuracy_by_hops(diagnosis.accuracy.rows)
    titles = [annotation.text for annotation in fig.layout.annotations]
    assert titles == ["Parity-NL", "ObjC"]
    lines = [trace for trace in fig.data if trace.mode == "lines+markers"]
    assert [list(trace.y) for trace in lines if trace.name == "whole chains"] == [[1.0, 0.25], [1.0, 0.25]]
    assert sum(trace.fill == "toself" for trace in fig.data) == len(lines) == 2
    answers = [trace for trace in fig.data if trace.name == "final answers"]
    row = diagnosis.accuracy.rows[1]
    assert answers[0].error_y.array[1] == pytest.approx(row["high"] - row["accuracy"])
    assert "4 of 4 right at 2 hops" in answers[0].text[0]


def test_a_single_hop_count_has_bars_in_place_of_a_band() -> None:
    fig = figures.accuracy_by_hops(make_diagnosis({"parity": (4,)}).accuracy.rows)
    assert all(trace.error_y.array is not None for trace in fig.data)


def test_high_chance_is_drawn_and_low_chance_is_not() -> None:
    accuracy = make_diagnosis().accuracy.rows
    assert [s.y0 for s in figures.accuracy_by_hops(accuracy, chance={"parity": 0.5}).layout.shapes] == [0.5]
    assert not figures.accuracy_by_hops(accuracy, chance={"parity": 0.1}).layout.shapes


def test_labels_too_close_to_each_other_are_left_out() -> None:
    assert _panels.ticks([6, 10, 12, 13, 14], 4) == [6, 10, 12, 13, 14]
    assert _panels.ticks([6, 10, 12, 13, 14], 2) == [6, 10, 12, 14]
    assert _panels.ticks([5], 2) == [5]


def test_errors_by_hops_keep_the_hops_without_errors() -> None:
    diagnosis = make_diagnosis({"parity": (2, 4)})
    fig = figures.errors_by_hops(diagnosis.errors.rows, diagnosis.errors.by_task, hops={"parity": [2, 4], "objc": [3]})
    assert list(fig.layout.xaxis.categoryarray) == ["2", "4"]
    assert [(list(bar.x), list(bar.y)) for bar in fig.data] == [(["4"], [0.75])]
    assert "no errors" in [annotation.text for annotation in fig.layout.annotations]


def test_error_types_are_counted_and_key_types_marked() -> None:
    errors = make_diagnosis().errors
    fig = figures.error_types(errors.by_task, key_share=0.3)
    assert list(fig.data[0].x) == [1.0]
    assert fig.data[0].x[0] - fig.data[0].error_x.arrayminus[0] == pytest.approx(errors.by_task[0]["low"])
    assert [shape.x0 for shape in fig.layout.shapes] == [0.3]
    assert "3 of 3 (100%)" in [annotation.text for annotation in fig.layout.annotations]
    assert "<b>name recall</b> ◆" in fig.layout.yaxis.ticktext


def test_text_from_elsewhere_is_escaped_in_figures() -> None:
    row = {"task": "<i>mine</i>", "error_type": "<a href='x'>y</a>", "n": 1, "n_errors": 1, "n_traces": 1, "share": 1.0}
    rows, by_task = [row | {"hops": 1}], [row | {"is_key": True}]
    for fig in (figures.error_types(by_task), figures.errors_by_hops(rows, by_task)):
        text = json.dumps(fig.to_plotly_json(), default=str)
        assert "<i>mine" not in text
        assert "<a href" not in text
        assert "&lt;i&gt;" in text


def test_figures_of_nothing_are_empty_but_whole() -> None:
    nothing = ErrorTable(rows=[], by_task=[], entropy=[])
    for fig in (nothing.plot(), nothing.plot("hops"), nothing.plot("entropy")):
        assert not fig.data or not any(len(trace.x) for trace in fig.data)


def test_medians_of_few_tokens_are_pale() -> None:
    fig = make_diagnosis().errors.plot("entropy")
    wrong = next(trace for trace in fig.data if trace.name == "at the first wrong token")
    assert list(wrong.marker.opacity) == [0.4]


@pytest.mark.parametrize("name", figures.MAPS)
def test_head_maps_hold_the_numbers_and_signed_ones_are_symmetric(name: str) -> None:
    roles = make_roles(3, 5)
    fig = roles.plot(name)
    heat = fig.data[0]
    torch.testing.assert_close(torch.tensor(heat.z), getattr(roles, name), atol=1e-4, rtol=1e-4)
    if not figures.MAPS[name].is_share:
        assert heat.zmin == -heat.zmax
        assert heat.zmax >= float(getattr(roles, name).abs().max())
    else:
        assert (heat.zmin, heat.zmax) == (0, 1)
    assert heat.text[0][1] == "<br>answer-writing, erroneous-processing"


def test_a_very_negative_writing_score_does_not_pale_the_others() -> None:
    roles = make_roles(2, 2)
    roles.writing_erroneous[0, 0] = -8.0
    fig = roles.plot("writing_correct")
    assert (fig.data[0].zmin, fig.data[0].zmax) == (-1.0, 1.0)


def test_a_map_of_zeros_has_a_scale() -> None:
    roles = make_roles(2, 2)
    roles.rectification.zero_()
    fig = roles.plot("rectification")
    assert fig.data[0].zmax == 1.0


def test_the_two_themes_differ_in_ground_and_ink_alone() -> None:
    light, dark = template("light").to_plotly_json(), template("dark").to_plotly_json()
    assert light["layout"].keys() == dark["layout"].keys()
    assert light["layout"]["paper_bgcolor"] != dark["layout"]["paper_bgcolor"]
    assert light["layout"]["colorway"] == dark["layout"]["colorway"]
