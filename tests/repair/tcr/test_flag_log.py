"""What a repair flags is written down while it decodes, and found again in the traces."""

import torch

from chainwright.models.load import load_model
from chainwright.repair import DoLa, EntropyDetector, RemoveAndResample, StepFlow
from chainwright.repair.composed import Composed
from chainwright.repair.tcr.flag_log import FlagLog, logged_flags
from chainwright.repair.tcr.token_repair import Seen
from chainwright.traces import Trace
from families import random_ids, tiny


def seen(rows: list[tuple[list[int], list[int]]], doubtful: list[bool]) -> Seen:
    logits = torch.tensor([[0.0, 0.0] if is_flat else [9.0, 0.0] for is_flat in doubtful])
    return Seen(torch.zeros(len(rows), 0, 0), logits, [[*p, *w] for p, w in rows], [p for p, _ in rows])


def trace(ids: list[int], n_prompt: int) -> Trace:
    return Trace.from_ids(load_model("reasoner").tokenizer, ids, n_prompt)


def log_of(*steps: tuple[list[tuple[list[int], list[int]]], list[bool]]) -> FlagLog:
    log, detector = FlagLog(), EntropyDetector(0.3)
    for rows, doubtful in steps:
        now = seen(rows, doubtful)
        log(now, detector.flags(now))
    return log


def test_flags_are_at_their_tokens() -> None:
    log = log_of(
        ([([5, 6], []), ([7], [])], [True, False]),
        ([([5, 6], [8]), ([7], [9])], [False, True]),
        ([([5, 6], [8, 9]), ([7], [9, 8])], [True, True]),
    )
    traces = [trace([5, 6, 8, 9, 10], 2), trace([7, 9, 8], 1)]
    assert log.tokens(traces) == [[0, 2], [1]], "a flag after the last token is none of the trace"


def test_two_answers_to_one_prompt_are_told_apart_by_what_was_written() -> None:
    log = log_of(([([5], [8]), ([5], [9])], [True, False]))
    assert log.tokens([trace([5, 8, 8], 1), trace([5, 9, 8], 1)]) == [[1], []]


def test_watching_leaves_the_repair_as_it_is(tmp_path) -> None:
    model, detector = tiny("llama"), EntropyDetector(0.3)
    model.generation_config.eos_token_id = None
    repair, ids = RemoveAndResample(detector), random_ids(1, 9)

    def decode() -> list[int]:
        with repair.attached(model):
            return model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None)[0].tolist()

    want = decode()
    with logged_flags(repair) as log:
        assert decode() == want and repair.detector is detector
        repair.save_pretrained(tmp_path / "watched")
    (flagged,) = log.tokens([trace(want, 9)])
    assert len(flagged) == repair.cost.n_flagged > 0
    assert repair.on_flags == [] and decode() == want
    assert log.tokens([trace(want, 9)]) == [flagged]


def test_repairs_without_flags_have_no_log() -> None:
    for repair in (None, StepFlow()):
        with logged_flags(repair) as log:
            assert log is None
    with logged_flags(Composed([StepFlow(), DoLa(3)])) as log:
        assert log is not None
