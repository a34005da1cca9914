"""Momentum: a case by hand, a reference from captured values, runs of every kind."""

import pytest
import torch

from chainwright._errors import BadInput, EditNeverFired
from chainwright.edits import Bridge, Momentum, edit
from chainwright.models.seam import Handlers, attach
from chainwright.traces.live import LiveSteps
from chainwright.traces.segments import ONE_LINE_ONE_STEP
from families import FAMILIES, left_padded, random_ids, tiny
from reference import assert_close, assert_equal
from step_runs import Words, cached, response, rows_of, uncached

STEPS = LiveSteps(Words(), "think", ONE_LINE_ONE_STEP)
every_family = pytest.mark.parametrize("family", FAMILIES)


def strong(layers: tuple[int, ...] = (0, 2), alpha: float = 1.5, **options) -> Momentum:
    return Momentum(layers, STEPS, alpha, **options)


def adding(rows, n_question, layers, alpha, window=None, into_summary=False):
    """Return a reference that adds means of values, worked out from the lines of each row."""
    _, mask = left_padded(rows)
    first = [int((row == 0).sum()) for row in mask]

    def handler(call, attend):
        z = attend(call).clone()
        v = call.v.repeat_interleave(z.shape[2] // call.v.shape[1], dim=1)
        for i, (row, n) in enumerate(zip(rows, n_question, strict=True)):
            for start, end in first_tokens(row.tolist(), n, into_summary):
                start = start if window is None else max(start, end - window)
                z[i, first[i] + end] += alpha * v[i, :, first[i] + start : first[i] + end].mean(1)
        return z

    return Handlers({i: (handler,) for i in layers})


def first_tokens(ids: list[int], n_question: int, into_summary: bool) -> list[tuple[int, int]]:
    """Return (start of the line before, first token of the next) of the lines of a row's thinking."""
    found, start, closed = [], n_question, False
    for t in range(n_question + 1, len(ids)):
        closed = ids[t - 1] == 5
        if closed:
            return [*found, (start, t)] if into_summary else found
        if ids[t - 1] == 3 and ids[t] not in (3, 5):
            found.append((start, t))
            start = t
    return found


@every_family
@pytest.mark.parametrize("options", [{}, {"window": 2}, {"into_summary": True}], ids=str)
def test_it_adds_the_mean_of_the_step_before(family: str, options: dict) -> None:
    model = tiny(family)
    rows, n_question = rows_of(n_new=18)
    own = uncached(model, rows)
    with attach(model, adding(rows, n_question, (0, 2), 1.5, **options)):
        want = uncached(model, rows)
    with edit(model, strong(n_question=n_question, **options)) as (touched,):
        got = uncached(model, rows)
    assert_close(got, want, family, 1e-4)
    into_summary = "into_summary" in options
    each = [first_tokens(row.tolist(), n, into_summary) for row, n in zip(rows, n_question, strict=True)]
    n_first = sum(map(len, each))
    assert touched.n_sites == n_first * 2 * 4 and n_first >= 4
    assert float((got - own).abs().max()) > 1e-2
    assert_equal(uncached(model, rows), own, "afterwards")


@every_family
@pytest.mark.parametrize(("kind", "chunk"), [("dynamic", 1), ("dynamic", 5), ("static", 1)])
def test_decoding_equals_one_pass(family: str, kind: str, chunk: int) -> None:
    model = tiny(family)
    rows, n_question = rows_of(n_new=18)
    both = {"into_summary": True}
    with edit(model, strong(n_question=n_question, **both), Bridge((1,), STEPS, 0.5, n_question)):
        want = uncached(model, rows)[:, -18:]
    with edit(model, strong(**both), Bridge((1,), STEPS, 0.5)) as (touched, _):
        got = cached(model, rows, 18, kind, chunk)[:, -18:]
    assert_close(got, want, f"{family} {kind}", 5e-4)
    assert touched.n_sites > 0


def test_three_tokens_by_hand() -> None:
    """A line of one token and its end; the first token of the next line gets their mean."""
    model = tiny("llama")
    ids = torch.tensor([[6, 20, 3, 21, 22]])
    seen = {}

    def reader(call, attend):
        seen["z"], seen["v"] = attend(call), call.v
        return seen["z"]

    with torch.no_grad():
        with attach(model, Handlers({0: (reader,)})):
            model(input_ids=ids)
            plain = seen["z"]
        with edit(model, strong((0,), 0.5, n_question=(1,))), attach(model, Handlers({0: (reader,)})):
            model(input_ids=ids)
    want = plain.clone()
    want[0, 3] += 0.5 * (seen["v"][0, :, 1] + seen["v"][0, :, 2]) / 2
    assert_equal(seen["z"], want)


@every_family
def test_no_strength_changes_no_bit(family: str) -> None:
    model = tiny(family)
    rows, n_question = rows_of()
    own = uncached(model, rows)
    with edit(model, strong(alpha=0.0, n_question=n_question), strict=False):
        assert_equal(uncached(model, rows), own)


def test_it_never_fires_on_a_question_alone() -> None:
    with pytest.raises(EditNeverFired, match="Momentum"), edit(tiny("llama"), strong()) as (touched,):
        pass
    assert touched.n_sites == 0


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("way", ["greedy", "beam", "lookup"])
def test_plain_generate_equals_a_pass_over_what_it_wrote(family: str, way: str) -> None:
    model = tiny(family)
    lines = torch.tensor([20, 21, 3, 22, 23, 3, 20, 21, 3])
    prompt = torch.cat([random_ids(1, 8, 3)[0].clamp(min=9), torch.tensor([6]), lines])[None]
    options = {"greedy": {}, "beam": {"num_beams": 3}, "lookup": {"prompt_lookup_num_tokens": 4}}[way]

    def bias_lines(batch: int, ids: torch.Tensor) -> list[int]:
        return [3] if ids.shape[0] % 3 == 0 else list(range(9, 30))

    with edit(model, strong(n_question=(9,))) as (touched,):
        out = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=12,
            eos_token_id=None,
            pad_token_id=0,
            do_sample=False,
            prefix_allowed_tokens_fn=bias_lines,
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )
        ids = out.sequences
        n_sites = touched.n_sites
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[:, 17:-1]
    allowed = torch.full_like(logits, -torch.inf)
    for i in range(12):
        allowed[:, i, bias_lines(0, ids[0, : 18 + i])] = 0
    assert n_sites > 2 * 4 * 2
    if way == "beam":
        chosen = (logits.log_softmax(-1) + allowed).gather(-1, ids[:, 18:, None])[..., 0].sum(1)
        assert_close(out.sequences_scores * 12, chosen, "beam scores", 1e-3)
    else:
        assert torch.equal(ids[:, 18:], (logits + allowed).argmax(-1))


def test_values_evicted_from_a_window_are_still_known() -> None:
    model = tiny("mistral")  # window 6
    row = torch.cat([torch.tensor([6]), response(30, 5)])
    row[row == 3] = 20
    row[20] = 3
    with edit(model, strong(n_question=(1,))):
        want = uncached(model, [row])[:, -10:]
    with edit(model, strong()):
        got = cached(model, [row], 30)[:, -10:]
    with edit(model, strong(window=4)):
        assert float((cached(model, [row], 30)[:, -10:] - want).abs().max()) > 1e-3
    assert_close(got, want, "evicted", 5e-4)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(BadInput, match="window must be at least 1 token, or None for the whole step; got 0"):
        strong(window=0)
    with pytest.raises(BadInput, match="alpha must be a finite number; got inf"):
        strong(alpha=float("inf"))
