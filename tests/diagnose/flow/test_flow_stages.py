"""Stages of marked queries: where their credit comes from, and what is refused."""

from __future__ import annotations

import pytest
import torch

from chainwright import BadInput, flow_stages, logit_flow
from chainwright.diagnose import FlowStages, MarkedQuery
from chainwright.diagnose.flow.stages import stage_credit
from families import random_ids, tiny
from reference import assert_close

_OPTIONS = {"n_traced": 6, "n_neurons": 20}


@torch.no_grad()
def test_the_stages_share_out_all_positive_credit():
    model, ids = tiny("llama"), random_ids(1, 6)[0]
    flow = logit_flow(model, ids, 7, **_OPTIONS)
    credit = stage_credit(flow, [0, 1], [2, 3, 4])
    assert_close(credit.sum(), flow.flow.clamp(min=0).sum())
    assert float(credit[4].sum()) == 0, "every position is marked"
    # the value neurons stand at the last position, which belongs to stage D
    bare = stage_credit(flow, [0, 1], [2])
    assert_close(bare[:2], credit[:2])
    assert_close(bare.sum(), credit.sum())
    assert float(bare[4].sum()) > 0
    assert bool((credit[3] >= flow.flow[0].clamp(min=0).sum((0, 2)) - 1e-6).all())


@torch.no_grad()
def test_stages_are_the_mean_over_queries(tmp_path):
    model = tiny("qwen3")
    queries = [MarkedQuery(random_ids(1, 6, seed=s)[0], 7 + s, (1,), (3,)) for s in range(2)]
    found = flow_stages(model, queries, **_OPTIONS)
    single = [
        stage_credit(logit_flow(model, q.input_ids, q.token_id, norm="frozen", **_OPTIONS), (1,), (3,)) for q in queries
    ]
    assert_close(torch.cat([found.credit, found.elsewhere[None]]), torch.stack(single).mean(0))
    assert found.n_queries == 2 and abs(sum(row["share"] for row in found.rows()) - 1) < 1e-6
    assert all(0 <= first <= last <= 2 for first, last in found.spans())
    found.save(tmp_path / "stages")
    again = FlowStages.load(tmp_path / "stages")
    assert again.summary() == found.summary() and again.to_frame().num_rows == 15
    assert len(found.plot().data) == 5


def test_the_order_of_the_centres_is_counted_by_query():
    each = torch.zeros(2, 5, 4)
    each[0, [0, 1, 2, 3], [0, 1, 2, 3]] = 1.0  # A to D, a layer each
    each[1, [1, 3], [3, 0]] = 1.0  # B above D; A and C have nothing
    each[1, 4, 1] = 0.5
    sizes = torch.tensor([[1, 2, 0], [2, 2, 4]])
    found = FlowStages(credit=each[:, :4].mean(0), elsewhere=each[:, 4].mean(0), each=each, sizes=sizes, n_queries=2)
    assert found.order() == {
        "A below B": (1, 1), "B below C": (1, 1), "C below D": (1, 1), "A, B below C, D": (1, 2),
        "elsewhere below C, D": (0, 1),
    }  # fmt: skip
    assert found.centres[:2] == [0.0, 2.0]
    assert found.rows()[-1]["what"] == "elsewhere" and abs(found.rows()[-1]["share"] - 0.5 / 6.5) < 1e-6
    assert_close(found.first_shares, torch.tensor([0.5, 0.4]))
    assert abs(found.density - (1 / 2) / (0.5 / 4)) < 1e-6, "only the second query has unmarked positions"


def test_queries_without_marks_are_refused():
    model, ids = tiny("llama"), random_ids(1, 6)[0]
    with pytest.raises(BadInput, match="Query 0 has no marked entity positions"):
        flow_stages(model, [MarkedQuery(ids, 7, (), (3,))])
    with pytest.raises(BadInput, match="Query 0 has no marked relation positions"):
        flow_stages(model, [MarkedQuery(ids, 7, (1,), ())])
    with pytest.raises(BadInput, match="marks position 6 as relation, but it has 6 tokens"):
        flow_stages(model, [MarkedQuery(ids, 7, (1,), (6,))])
    with pytest.raises(BadInput, match="at least one marked query"):
        flow_stages(model, [])
