"""Responses that are not as a template wants them: each has a map that is right, and a repair that keeps to it."""

import pytest

from chainwright._errors import BadInput
from chainwright.diagnose import bridge_mass, step_causes, step_saliency
from chainwright.edits import Bridge, edit
from chainwright.repair import StepFlow
from chainwright.scoring import score
from chainwright.traces import LiveSteps, Trace
from families import tiny
from step_runs import Words

ASKS, OPEN, CLOSE, LINE, ANSWER = [20, 21, 22, 23], 6, 5, 3, 4
# prompt, response, and where the thinking and the summary end
CASES = {
    "closed at once": ([*ASKS, OPEN], [CLOSE, 30, 31, 32], (6, 9)),
    "never closed": ([*ASKS, OPEN], [30, 31, LINE, 32, 33, 34], (11, 11)),
    "markers inside": ([*ASKS, OPEN], [30, 31, OPEN, 32, CLOSE, 33, CLOSE, 34, 30], (12, 14)),
    "opened again, never closed": ([*ASKS, OPEN], [30, 31, OPEN, 32, CLOSE, 33, CLOSE, OPEN, 34], (14, 14)),
    "opened by the response, never closed": (ASKS, [OPEN, 30, 31, LINE, 32], (9, 9)),
    "closed without being opened": (ASKS, [30, 31, CLOSE, 32, 33], (7, 9)),
    "nothing but an answer": (ASKS, [ANSWER, 8, 30], (4, 7)),
    "one token": (ASKS, [30], (4, 5)),
    "no response": (ASKS, [], (4, 4)),
}
every_case = pytest.mark.parametrize("case", CASES)


def trace_of(case: str) -> Trace:
    prompt, response, _ = CASES[case]
    return Trace.from_ids(Words(), [*prompt, *response], len(prompt))


@every_case
def test_it_is_cut_as_it_should_be_and_has_a_map(case: str) -> None:
    trace, (thinking_end, end) = trace_of(case), CASES[case][2]
    assert (trace.thinking.end, trace.summary.end) == (thinking_end, end)
    found = step_saliency(tiny("llama"), trace)
    n_steps = len(trace.steps)
    assert found.map.shape == (3, n_steps, n_steps) and bool(found.map.isfinite().all())
    assert not bool(found.map.triu(1).any()) and found.segments[0] == "question"
    has_thinking, has_summary = (trace.thinking.start < trace.thinking.end), (trace.summary.start < trace.summary.end)
    assert ("thinking" in found.segments, "summary" in found.segments) == (has_thinking, has_summary)
    measures = found.measures
    assert bool(measures.lock_in.isnan().all()) != has_thinking
    assert bool(measures.decay_share.isnan().all()) != (has_thinking and has_summary)
    assert isinstance(found.summary(), str) and found.to_frame().num_rows == 3 * n_steps * (n_steps + 1) // 2


@every_case
def test_the_bridge_and_its_mass_keep_to_the_segments(case: str) -> None:
    model, trace = tiny("llama"), trace_of(case)
    masses = bridge_mass(model, trace)
    has_bridge = ~masses[0, 0].isnan()
    want = [t >= trace.question.end and (t < trace.thinking.end or trace.thinking.start < trace.thinking.end)
            for t in range(len(trace))]  # fmt: skip
    assert has_bridge.tolist() == want
    bridge = Bridge((0, 1, 2), LiveSteps(Words()), 0.9, (trace.response_start,))
    with edit(model, bridge, strict=False) as (touched,):
        under = score(model, trace)
    assert bool(under.logprob[1:].isfinite().all())
    # while it is written it is unknown that one plain word is all there will be, so it counts as thinking
    if not any(want) and case != "one token":
        assert touched.n_sites == 0
    repair = StepFlow((0, 1, 2), (1, 2), 0.9, 0.5, tokenizer=Words(), min_chars=1)
    assert bool(score(model, trace, repair=repair).logprob[1:].isfinite().all())


def test_what_has_no_answer_to_lose_is_refused() -> None:
    with pytest.raises(BadInput, match="Trace 0 has no summary"):
        step_causes(tiny("llama"), [trace_of("never closed")])
