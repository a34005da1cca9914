"""A detector that is watched flags the same tokens, and they are found again in the traces."""

import torch

from chainwright.models.load import load_model
from chainwright.repair import DoLa, EntropyDetector, RemoveAndResample
from chainwright.repair.tcr.flag_log import NotingDetector
from chainwright.repair.tcr.token_repair import Seen
from chainwright.traces import Trace


def seen(rows: list[tuple[list[int], list[int]]], doubtful: list[bool]) -> Seen:
    logits = torch.tensor([[0.0, 0.0] if is_flat else [9.0, 0.0] for is_flat in doubtful])
    return Seen(torch.zeros(len(rows), 0, 0), logits, [[*p, *w] for p, w in rows], [p for p, _ in rows])


def trace(ids: list[int], n_prompt: int) -> Trace:
    return Trace.from_ids(load_model("reasoner").tokenizer, ids, n_prompt)


def test_flags_are_those_of_the_other_detector_and_stand_at_their_tokens() -> None:
    noting = NotingDetector(EntropyDetector(0.3))
    assert not noting.reads_hidden
    first = noting.flags(seen([([5, 6], []), ([7], [])], [True, False]))
    assert first.tolist() == [True, False]
    noting.flags(seen([([5, 6], [8]), ([7], [9])], [False, True]))
    noting.flags(seen([([5, 6], [8, 9]), ([7], [9, 8])], [True, True]))
    traces = [trace([5, 6, 8, 9, 10], 2), trace([7, 9, 8], 1)]
    assert noting.tokens(traces) == [[0, 2], [1]], "a flag after the last token is none of the trace"


def test_two_answers_to_one_prompt_are_told_apart_by_what_was_written() -> None:
    noting = NotingDetector(EntropyDetector(0.3))
    noting.flags(seen([([5], [8]), ([5], [9])], [True, False]))
    assert noting.tokens([trace([5, 8, 8], 1), trace([5, 9, 8], 1)]) == [[1], []]


def test_it_is_put_into_repairs_that_have_a_detector() -> None:
    repair = RemoveAndResample(EntropyDetector(0.3))
    noting = NotingDetector.put_into(repair)
    assert noting is not None and repair.detector is noting
    assert NotingDetector.put_into(None) is None
    assert NotingDetector.put_into(DoLa(3)) is not None
