"""Repairs on several models, in turns and in threads: nothing of one run reaches another, or it is refused."""

import threading
from collections.abc import Callable

import pytest
import torch

from chainwright._errors import BadInput
from chainwright.edits import KnockOut, edit
from chainwright.repair import Repair
from families import tiny
from repair_runs import KINDS, N_NEW, back_attention, prompts, run, stepflow, tcr

ONE_REPAIR = [kind for kind in KINDS if kind != "stepflow and tcr"]


def step_by_step(model, repair: Repair):
    """Yield one token after the other, by hand, so that other models can run in between."""
    ids = prompts()[0][None]
    forward = torch.no_grad()(model.__call__)  # not a block around the yields, which would leave gradients off
    with repair.attached(model):
        out = forward(input_ids=ids, logits_to_keep=1)
        for _ in range(N_NEW):
            token = out.logits[:, -1:].argmax(-1)
            yield int(token)
            out = forward(input_ids=token, past_key_values=out.past_key_values, logits_to_keep=1)


@pytest.mark.parametrize("kind", ONE_REPAIR)
def test_two_models_decode_in_turns(kind: str) -> None:
    models = [tiny("llama"), tiny("qwen3", seed=3)]
    repairs = [KINDS[kind](model) for model in models]
    alone = [list(step_by_step(model, repair)) for model, repair in zip(models, repairs, strict=True)]
    n_tokens = [repair.cost.n_tokens for repair in repairs]
    taking_turns = zip(*(step_by_step(m, r) for m, r in zip(models, repairs, strict=True)), strict=True)
    assert [list(tokens) for tokens in zip(*taking_turns, strict=True)] == alone
    assert [repair.cost.n_tokens for repair in repairs] == n_tokens


@pytest.mark.parametrize("kind", ONE_REPAIR)
def test_one_repair_on_two_models_at_once(kind: str) -> None:
    models = [tiny("llama"), tiny("llama", seed=3)]
    repair = KINDS[kind](models[0])
    alone = [list(step_by_step(model, repair)) for model in models]
    taking_turns = zip(*(step_by_step(model, repair) for model in models), strict=True)
    assert [list(tokens) for tokens in zip(*taking_turns, strict=True)] == alone
    with repair.attached(models[0]) as first, repair.attached(models[1]) as second:
        models[0].generate(prompts()[0][None], max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert (first.n_forwards, second.n_forwards) == (3, 0), "each context counts for itself"
    assert repair.cost is second


def test_contexts_may_nest_and_be_left_in_any_order() -> None:
    model, other = tiny("llama"), tiny("qwen3", seed=3)
    flow, votes = stepflow(), tcr(model)
    want = run(model, [flow, votes])
    outer = flow.attached(model)
    outer.__enter__()
    inner = votes.attached(model)
    inner.__enter__()
    assert run(other, tcr(other)) == run(other, tcr(other)) and run(model, None) == want
    outer.__exit__(None, None, None)
    fresh = tiny("llama")
    assert run(model, None) == run(fresh, tcr(fresh)), "what is still attached keeps acting"
    inner.__exit__(None, None, None)
    assert not model._forward_hooks and not model._forward_pre_hooks and not model.base_model._forward_pre_hooks
    assert run(model, [flow, votes]) == want


def in_a_thread(work: Callable[[], object]) -> list[BaseException]:
    """Run something in another thread, and return what it raised."""
    raised: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    return raised


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_model_in_a_second_thread_is_refused(kind: str) -> None:
    model = tiny("llama")
    repair, want = KINDS[kind](model), run(tiny("llama"), KINDS[kind](tiny("llama")))
    run(model, None)  # measured, so that nothing but the second thread can be refused
    with edit(model, KnockOut({(0, 1)}), strict=False):
        for work in (lambda: run(model, repair), lambda: run(model, None), lambda: edit(model).__enter__()):
            (error,) = in_a_thread(work)
            assert isinstance(error, BadInput) and "\n" not in str(error)
            assert "is being edited, repaired or read in another thread" in str(error)
    assert not model.base_model._forward_pre_hooks and run(model, repair) == want


def test_what_a_second_thread_tries_does_not_change_the_first() -> None:
    model, repair = tiny("llama"), tcr(tiny("llama"))
    want, got = list(step_by_step(model, repair)), []
    for token in step_by_step(model, repair):
        got.append(token)
        assert in_a_thread(lambda: run(model, stepflow()))
    assert got == want


def test_models_of_their_own_decode_in_two_threads_at_once() -> None:
    models = [tiny("llama"), tiny("llama", seed=3)]
    makers = [tcr, back_attention]
    wants = [run(model, maker(model)) for model, maker in zip(models, makers, strict=True)]
    gots: list[list[list[list[int]]]] = [[], []]

    def work(i: int) -> None:
        for _ in range(3):
            gots[i].append(run(models[i], makers[i](models[i])))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert gots == [[want] * 3 for want in wants]


def test_many_threads_that_open_one_model_at_once_leave_it_as_it_was() -> None:
    model = tiny("llama")
    want, gate = run(model, None), threading.Barrier(6)
    outcomes: list[str] = []

    def work() -> None:
        gate.wait()
        for _ in range(20):
            try:
                with edit(model, KnockOut({(0, 1)}), strict=False):
                    outcomes.append("opened")
            except BadInput:
                outcomes.append("refused")

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 120 and "opened" in outcomes
    assert not model.base_model._forward_pre_hooks and model.config._attn_implementation == "sdpa"
    assert run(model, None) == want
