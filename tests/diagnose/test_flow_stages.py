"""Stages of marked queries: where their credit comes from, and what is refused."""

from __future__ import annotations

import pytest
import torch

from chainwright import BadInput, FlowStages, MarkedQuery, flow_stages, logit_flow
from chainwright.diagnose.flow_stages import stage_credit
from families import random_ids, tiny
from reference import assert_close

_OPTIONS = {"n_traced": 6, "n_neurons": 20}


@torch.no_grad()
def test_the_stages_share_out_all_positive_credit():
    model, ids = tiny("llama"), random_ids(1, 6)[0]
    flow = logit_flow(model, ids, 7, **_OPTIONS)
    credit = stage_credit(flow, [0, 1], [2, 3, 4])
    assert_close(credit.sum(), flow.flow.clamp(min=0).sum())
    # the value neurons stand at the last position, which belongs to stage D
    bare = stage_credit(flow, [0, 1], [2])
    assert_close(bare[:2], credit[:2])
    assert bool((credit[3] >= flow.flow[0].clamp(min=0).sum((0, 2)) - 1e-6).all())


@torch.no_grad()
def test_stages_are_the_mean_over_queries(tmp_path):
    model = tiny("qwen3")
    queries = [MarkedQuery(random_ids(1, 6, seed=s)[0], 7 + s, (1,), (3,)) for s in range(2)]
    found = flow_stages(model, queries, **_OPTIONS)
    single = [
        stage_credit(logit_flow(model, q.input_ids, q.token_id, norm="frozen", **_OPTIONS), (1,), (3,)) for q in queries
    ]
    assert_close(found.credit, torch.stack(single).mean(0))
    assert found.n_queries == 2 and abs(sum(found.shares) - 1) < 1e-6
    assert all(0 <= first <= last <= 2 for first, last in found.spans())
    found.save(tmp_path / "stages")
    again = FlowStages.load(tmp_path / "stages")
    assert again.summary() == found.summary() and again.to_frame().num_rows == 12
    assert len(found.plot().data) == 4


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
