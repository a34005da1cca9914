"""The finding that searched responses make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from chainwright.diagnose.pivots.band import Selection
from chainwright.diagnose.pivots.cases import Case
from chainwright.diagnose.pivots.completers import Completer, tally_of
from chainwright.diagnose.pivots.config import PivotConfig
from chainwright.diagnose.pivots.finding import Pivots
from chainwright.diagnose.pivots.search import Fall
from chainwright.diagnose.pivots.tally import Tally
from chainwright.traces import Trace


def finding_of(
    tokenizer: PreTrainedTokenizerBase,
    cases: Sequence[Case],
    chosen: Selection,
    config: PivotConfig,
    completer: Completer,
    seed: int,
    source: Mapping[str, str],
) -> Pivots:
    """Return what was found in responses, with every prefix that was measured.

    Args:
        tokenizer: The tokenizer of the responses.
        cases: Searched responses.
        chosen: What they were chosen from.
        config: The settings.
        completer: Who continued.
        seed: What its draws follow from.
        source: Provenance of the model that wrote the responses.
    """
    texts = _Texts(tokenizer)
    found = [pivot for i, case in enumerate(cases) for pivot in _pivots_of(i, case, config, texts)]
    measured = [
        (i, length, tally, _answers(case, length))
        for i, case in enumerate(cases)
        if case.search is not None
        for length, tally in sorted(case.search.tallies.items())
        if tally.n_spent or tally.known is not None
    ]
    columns = {
        name: torch.tensor([getattr(tally, name) for _, _, tally, _ in measured], dtype=torch.long)
        for name in ("n_right", "n_wrong", "n_cut", "n_unread")
    }
    known = [float("nan") if tally.known is None else tally.known for _, _, tally, _ in measured]
    ids = [token for case in cases for token in case.ids]
    return Pivots(
        rows=[_row(i, case) for i, case in enumerate(cases)],
        pivots=found,
        trace=torch.tensor([i for i, *_ in measured], dtype=torch.long),
        length=torch.tensor([length for _, length, *_ in measured], dtype=torch.long),
        known=torch.tensor(known, dtype=torch.float),
        **columns,
        input_ids=torch.tensor(ids, dtype=torch.long),
        n_tokens=torch.tensor([len(case.ids) for case in cases], dtype=torch.long),
        response_start=torch.tensor([case.trace.response_start for case in cases], dtype=torch.long),
        steps=[[list(step) for step in case.trace.steps] for case in cases],
        answers=[answers for *_, answers in measured],
        responses=[case.trace.response or "" for case in cases],
        token_strs={str(i): texts[i] for i in sorted(set(ids))},
        selection=dict(chosen.fell_out),
        config={**config.record(), **completer.settings(), "seed": seed},
        provenance=source,
    )


class _Texts(dict[int, str]):
    """The text of each token id, decoded when it is asked for."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        super().__init__()
        self.tokenizer = tokenizer

    def __missing__(self, token: int) -> str:
        self[token] = str(self.tokenizer.decode([token], clean_up_tokenization_spaces=False))
        return self[token]


def _answers(case: Case, length: int) -> dict[str, int]:
    endings = case.endings.get(case.ids[:length], [])
    return dict(Counter(ending.answer for ending in endings if ending.answer is not None).most_common())


def _row(i: int, case: Case) -> dict[str, Any]:
    problem, search = case.trace.problem, case.search
    outcome = None if search is None else search.outcome
    fall = None if outcome is None else outcome.fall
    every = [ending for endings in case.endings.values() for ending in endings]
    return {
        "trace": i,
        "task": "" if problem is None else problem.task,
        "status": case.status if outcome is None else outcome.status,
        "low": None if fall is None else fall.before,
        "high": None if fall is None else fall.after,
        "step": None if outcome is None or outcome.step is None else _step_at(case.trace, outcome.step.before),
        "position": None if case.pivot is None else case.pivot.before,
        "n_continuations": len(every),
        "n_to_step": None if outcome is None else outcome.n_to_step,
        "n_tokens": sum(ending.n_tokens for ending in every),
        "n_cut": sum(ending.outcome == "cut" for ending in every),
        "n_unread": sum(ending.outcome == "unread" for ending in every),
    }


def _step_at(trace: Trace, position: int) -> int:
    return next(i for i, (start, end) in enumerate(trace.steps) if start <= position < end)


def _pivots_of(i: int, case: Case, config: PivotConfig, texts: _Texts) -> list[dict[str, Any]]:
    if case.search is None:
        return []
    outcome = case.search.outcome
    falls = [(fall, False) for fall in outcome.made_good]
    if outcome.status in ("found", "likely"):
        place = outcome.fall if outcome.is_token else outcome.step
        falls += [] if place is None else [(place, True)]
    return [_pivot(i, case, fall, is_first, config, texts) for fall, is_first in falls]


def _pivot(i: int, case: Case, fall: Fall, is_first: bool, config: PivotConfig, texts: _Texts) -> dict[str, Any]:
    assert case.search is not None
    others = []
    if is_first and case.pivot == fall:
        before = case.ids[: fall.before]
        for token, p in case.alternatives.items():
            tried = [e for e in case.endings[before] if e.first_id == token] + case.endings[(*before, token)]
            others.append({"token_id": token, "token": texts[token], "p": p, **_value(tally_of(tried), case)})
    after = case.search.of(fall.after)
    saves = [a for a in others if a["n"] and a["value"] > after.value + config.drop]
    # the lower end of the interval: many continuations that mostly succeed count for more than a few that all do
    best = max(saves, key=lambda a: (a["low"], a["p"]), default=None)
    token = case.ids[fall.before]
    return {
        "trace": i,
        "position": fall.before,
        "end": fall.after,
        "step": _step_at(case.trace, fall.before),
        "token_id": token,
        "token": texts[token],
        "is_certain": _is_certain(case, fall),
        "is_first_error": is_first,
        "back": fall.back,
        "before": _value(case.search.of(fall.before), case),
        "after": _value(after, case),
        "alternatives": others,
        "expected_id": None if best is None else best["token_id"],
    }


def _is_certain(case: Case, fall: Fall) -> bool:
    assert case.search is not None
    outcome = case.search.outcome
    return fall in outcome.made_good or (outcome.token if outcome.is_token else outcome.status) in ("certain", "found")


def _value(tally: Tally, case: Case) -> dict[str, Any]:
    if case.is_exact and tally.known is None and tally.n:
        tally = Tally(tally.n_right, tally.n_wrong, known=float(tally.n_right > 0))
    low, high = tally.interval()
    value = None if tally.value != tally.value else tally.value
    return {"value": value, "low": low, "high": high, "n_right": tally.n_right, "n": tally.n}
