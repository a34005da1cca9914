"""The report's sections on logit flow and back attention."""

from __future__ import annotations

from chainwright import BackAttentionFinding, MarkedQuery, flow_stages, logit_flow, write_report
from families import random_ids, tiny


def _row(name: str, share: float) -> dict:
    return {
        "variant": name, "parameters": 8, "seeds": 1, "one hop": 1.0, "held_out": share, "held_out by seed": [share],
    }  # fmt: skip


def test_flow_and_stages_stand_in_the_page(tmp_path):
    model, ids = tiny("llama"), random_ids(1, 6)[0]
    flow = logit_flow(model, ids, 7, n_neurons=5, n_traced=4)
    stages = flow_stages(model, [MarkedQuery(ids, 7, (1,), (3,))], n_neurons=5, n_traced=4)
    text = write_report(None, tmp_path / "report.html", findings=[flow, stages]).read_text()
    assert 'id="flow"' in text and "flow-map-0" in text and "flow-stages" in text
    assert flow.summary().splitlines()[0].split(";")[0] in text
    assert len(flow.plot().data) == 2


def test_back_attention_stands_in_the_page(tmp_path):
    found = BackAttentionFinding(
        rows=[_row("no change", 0.1), _row("back attention", 0.8)],
        scratch=[
            {"variant": "one layer", "parameters": 9, "accuracy": 0.25, "by seed": [0.25], "steps to 90%": [None]}
        ],
        readings={
            "targets": [4], "positions": ["<bos>", "e1"], "right": [[0.25, 0.75]], "wrong": None, "n_right": 3,
            "n_wrong": 0,
        },
        conflict={
            "before": {"against": "e2", "n": 2, "contrast": [[0.0, -1.5]]},
            "after": {"against": "e2", "n": 2, "contrast": [[0.0, 2.5]]},
        },
    )  # fmt: skip
    text = write_report(None, tmp_path / "report.html", findings=[found]).read_text()
    assert "back-attention-fits" in text and "back-attention-read-right" in text
    assert "-1.50 nats against e2" in text and "+2.50 with it" in text
    assert "back attention: 80.0% of held-out" in found.summary()
    found.save(tmp_path / "found")
    assert BackAttentionFinding.load(tmp_path / "found").rows == found.rows
