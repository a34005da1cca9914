"""The report's sections on logit flow and back attention."""

from __future__ import annotations

from chainwright import flow_stages, load_model, logit_flow, write_report
from chainwright.diagnose import MarkedQuery
from chainwright.reproduce.back_attention.finding import BackAttentionFinding
from families import random_ids, tiny


def _row(name: str, share: float) -> dict:
    return {
        "variant": name, "parameters": 8, "seeds": 1, "one hop": 1.0, "held_out": share, "held_out by seed": [share],
    }  # fmt: skip


def test_flow_and_stages_stand_in_the_page(tmp_path):
    model, ids = tiny("llama"), random_ids(1, 6)[0]
    flow = logit_flow(model, ids, 7, n_neurons=5, n_traced=4)
    stages = flow_stages(model, [MarkedQuery(ids, 7, (1,), (3,))], n_neurons=5, n_traced=4)
    text = write_report([flow, stages], tmp_path / "report.html").read_text()
    assert 'id="flow"' in text and "flow-map-0" in text and "flow-stages" in text
    assert flow.summary().splitlines()[0].split(";")[0] in text
    assert len(flow.plot().data) == 2


def test_what_a_reader_sees_of_a_flow(tmp_path):
    loaded = load_model("world", device="cpu")
    ids = loaded.tokenizer("puvu father boss", return_tensors="pt")["input_ids"]
    token, other = loaded.tokenizer.convert_tokens_to_ids(["zage", "tumo"])
    flow = logit_flow(loaded.model, ids, token, conflict_id=other, tokenizer=loaded.tokenizer)
    text = write_report([flow], tmp_path / "report.html").read_text()
    assert "&ldquo;zage&rdquo;, against &ldquo;tumo&rdquo;" in text and "flow-contrast-0" in text
    best = flow.components(1)[0]
    assert f"<td>{best['reads']}</td>" in text and f"<td>{best['writes']}</td>" in text
    hover = flow.plot().data[0].text[0][2]
    assert "attention, layer 0" in hover and "position 2: father" in hover
    assert f"{float(flow.flow.sum(0)[2, 0, 0]):+.3f} nats" in hover
    assert f"writes {flow.said(flow.cell_words[2, 0, 0])}" in hover
    assert len(flow.plot("contrast").data) == 4


def back_attention_finding() -> BackAttentionFinding:
    return BackAttentionFinding(
        rows=[_row("no change", 0.1), _row("back attention", 0.8), _row("source 1", 0.6), _row("size 128", 0.7)],
        scratch=[
            {"variant": "one layer", "parameters": 9, "accuracy": 0.25, "by seed": [0.25], "steps to 90%": [None]}
        ],
        readings={
            "targets": [4], "positions": ["<bos>", "e1"], "right": [[0.25, 0.75]], "wrong": [[0.5, 0.5]], "n_right": 3,
            "n_wrong": 0,
        },
        conflict={
            "before": {"against": "e2", "n": 2, "contrast": [[0.0, 1.0, -2.0], [0.0, -1.0, -1.5]]},
            "after": {"against": "e2", "n": 2, "contrast": [[0.0, 1.0, 2.0], [0.0, 1.0, 2.5]]},
        },
        failures=[{"variant": "no change", "e3": 0.125, "e2": 0.5, "r2(e1)": 0.25, "e1": 0.0, "unknown": 0.125}],
        cost=[
            {
                "source": 0, "prefill ms": 12.0, "prefill ratio": 2.0, "token ms": 3.21, "token ratio": 2.1,
                "formula": 2.0, "token / formula": 1.05,
            }
        ],
    )  # fmt: skip


def test_back_attention_stands_in_the_page(tmp_path):
    found = back_attention_finding()
    text = write_report([found], tmp_path / "report.html").read_text()
    assert "back-attention-fits" in text and "back-attention-read" in text
    assert all(f'data-figure="back-attention-{name}"' in text for name in ("source", "size", "conflict"))
    assert "-1.50 nats against e2" in text and "+2.50 with it" in text
    assert '<td>no change</td><td class="n">12%</td><td class="n">50%</td>' in text
    assert '<td>0</td><td class="n">12.0</td><td class="n">2.00</td><td class="n">3.21</td>' in text
    assert "back attention: 80.0% of held-out" in found.summary()
    found.save(tmp_path / "found")
    assert BackAttentionFinding.load(tmp_path / "found").rows == found.rows
