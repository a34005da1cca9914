"""Continuations over a shared cache are those that the model writes from each prefix alone."""

import pytest
import torch
from transformers import LogitsProcessorList, PreTrainedModel, TopPLogitsWarper

from chainwright._errors import BadInput
from chainwright.decode.drawing import processors
from chainwright.decode.sampling import Sampling
from chainwright.diagnose.pivots.continuations import Row, Trunks, Written, continued, row_number
from chainwright.models.anatomy import anatomy
from chainwright.models.sampling import gumbel_noise
from families import random_ids, tiny

SEED, TEMPERATURE = 5, 1.4
LENGTHS = (1, 2, 7, 12, 20)


def reference(model: PreTrainedModel, row: Row, top_p: float | None = None) -> list[int]:
    """Return what a row writes, one token at a time from a full pass over all of it, without a cache."""
    ids, new = torch.tensor([row.prefix]), []
    warpers = LogitsProcessorList([] if top_p is None else [TopPLogitsWarper(top_p)])
    for step in range(row.limit):
        logits = model(input_ids=ids, use_cache=False).logits[:, -1].float() / TEMPERATURE
        noise = gumbel_noise(SEED, [row_number(row.prefix, row.number)], step, logits.shape[1])
        token = int((warpers(ids, logits) + noise).argmax(-1))
        new.append(token)
        if token == 2:
            break
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    return new


def rows_of(ids: list[int], n: int = 2, limit: int = 8) -> list[Row]:
    return [Row(tuple(ids[:length]), number, limit) for length in LENGTHS for number in range(n)]


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma3_text", "gpt2", "gpt_oss"])
def test_rows_over_one_trunk_write_what_they_write_alone(family: str) -> None:
    model = tiny(family)
    ids = random_ids(1, 24)[0].tolist()
    trunks = Trunks(anatomy(model))
    trunks.add(ids)
    rows = rows_of(ids)
    found = continued(trunks, rows, sampling=Sampling(temperature=TEMPERATURE), seed=SEED, ends={2})
    assert [written.ids for written in found] == [reference(model, row) for row in rows]
    assert [written.stopped for written in found] == [written.ids[-1] == 2 for written in found]
    assert trunks.n_read == 24
    assert len({tuple(written.ids) for written in found}) > len(LENGTHS)


@torch.no_grad()
def test_batches_responses_and_order_change_nothing() -> None:
    model = tiny("qwen3")
    first, second = (random_ids(1, 24, seed)[0].tolist() for seed in (0, 1))
    rows = [*rows_of(first), *rows_of(second)]

    def written(some: list[Row], **options: int) -> list[Written]:
        return continued(
            Trunks(anatomy(model)), some, sampling=Sampling(temperature=TEMPERATURE), seed=SEED, ends={2}, **options
        )

    together = written(rows)
    assert written(rows, batch_size=3) == together
    assert written(rows[::-1]) == together[::-1]
    assert [written([row])[0] for row in rows[:3]] == together[:3]


@torch.no_grad()
def test_a_prefix_that_leaves_the_response_shares_what_comes_before() -> None:
    model = tiny("llama")
    ids = random_ids(1, 12)[0].tolist()
    trunks = Trunks(anatomy(model))
    trunks.add(ids)
    other = Row((*ids[:6], (ids[6] + 1) % 50 + 3), 0, 6)
    (found,) = continued(trunks, [other], sampling=Sampling(temperature=TEMPERATURE), seed=SEED, ends={2})
    assert found.ids == reference(model, other)
    assert trunks.n_read == 12


@torch.no_grad()
def test_what_cuts_the_distribution_off_does_so_before_the_noise() -> None:
    model = tiny("llama")
    rows = rows_of(random_ids(1, 24)[0].tolist(), n=1)
    found = continued(
        Trunks(anatomy(model)), rows, sampling=Sampling(temperature=TEMPERATURE, top_p=0.5), seed=SEED, ends={2}
    )
    assert [written.ids for written in found] == [reference(model, row, 0.5) for row in rows]


@torch.no_grad()
def test_all_of_the_sampling_is_that_of_generate() -> None:
    model = tiny("llama")
    rows = rows_of(random_ids(1, 24)[0].tolist(), n=1)
    sampling = Sampling(temperature=TEMPERATURE, top_k=20, min_p=0.02, repetition_penalty=1.6)
    found = continued(Trunks(anatomy(model)), rows, sampling=sampling, seed=SEED, ends={2})
    for row, written in zip(rows, found, strict=True):
        ids = torch.tensor([row.prefix])
        drawn = processors(sampling, [row_number(row.prefix, row.number)], SEED, torch.ones_like(ids))
        made = model.generate(
            ids, max_new_tokens=row.limit, do_sample=False, pad_token_id=0, eos_token_id=2, logits_processor=drawn
        )
        assert written.ids == made[0, ids.shape[1] :].tolist()


@torch.no_grad()
def test_rows_stop_at_their_own_limits() -> None:
    model = tiny("llama")
    prefix = tuple(random_ids(1, 9)[0].tolist())
    rows = [Row(prefix, 0, limit) for limit in (0, 1, 5)]
    found = continued(Trunks(anatomy(model)), rows, sampling=Sampling(temperature=TEMPERATURE), seed=SEED, ends=set())
    assert [len(written.ids) for written in found] == [0, 1, 5]
    assert found[2].ids[:1] == found[1].ids and not any(written.stopped for written in found)


def test_a_model_that_caches_more_than_keys_and_values_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    trunks = Trunks(anatomy(tiny("llama")))
    monkeypatch.setattr("chainwright.diagnose.pivots.continuations.is_appending", lambda cache: False)
    with pytest.raises(BadInput, match="caches more than keys and values"):
        trunks.add([3, 4, 5])
