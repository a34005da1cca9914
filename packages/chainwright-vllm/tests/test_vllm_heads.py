"""Heads knocked out per request, against Transformers with Chainwright's KnockOut."""

from typing import Any

import pytest

HEADS = [{(0, 5), (0, 7), (1, 2)}, {(0, 2), (1, 2), (1, 4)}, {(0, 2), (0, 4), (0, 5)}, {(0, 5), (0, 7), (1, 2), (1, 4)}]


def _wish(heads: Any, **how: Any) -> dict[str, Any]:
    return {"knock_out": {"heads": [list(head) for head in heads], **how}}


def _ids(output: Any) -> list[int]:
    return list(output.outputs[0].token_ids)


def test_a_mixed_batch_equals_transformers(ask: Any, core: Any, prompts: Any, expected: Any) -> None:
    cases: list[tuple[Any, dict[str, Any]]] = []
    for i in range(len(prompts)):
        how = [{}, {"positions": "last"}, {"scale": 0.5}, {}][i // 2]
        cases.append((HEADS[i // 2], how) if i % 2 else (None, {}))
    wishes = [None if heads is None else _wish(heads, **how) for heads, how in cases]
    due = [expected(ids, heads, **how) for ids, (heads, how) in zip(prompts, cases, strict=True)]
    # the edits show: without them the edited requests would have been answered otherwise
    assert sum(expected(ids) != right for ids, right in zip(prompts, due, strict=True)) >= 3

    outputs = ask(prompts, wishes)
    assert [_ids(output) for output in outputs] == due
    # prompts came in chunks
    assert all(len(ids) > core.scheduler.scheduler_config.max_num_batched_tokens for ids in prompts)


@pytest.mark.parametrize("is_edited_first", [False, True])
def test_plain_and_edited_with_the_same_prompt_do_not_share_blocks(
    ask: Any, engine: Any, prompts: Any, expected: Any, is_edited_first: bool
) -> None:
    ids, heads = prompts[1], HEADS[3]
    due = {True: expected(ids, heads), False: expected(ids)}
    assert due[True] != due[False]
    engine.reset_prefix_cache()
    for is_edited in (is_edited_first, not is_edited_first):
        (output,) = ask([ids], [_wish(heads) if is_edited else None])
        assert _ids(output) == due[is_edited]
        assert output.num_cached_tokens == 0
    for is_edited in (True, False):  # each finds its own blocks
        (output,) = ask([ids], [_wish(heads) if is_edited else None])
        assert _ids(output) == due[is_edited]
        assert output.num_cached_tokens >= 32


def test_an_edit_of_the_last_position_shares_the_prompt_with_plain_requests(
    ask: Any, engine: Any, prompts: Any, expected: Any
) -> None:
    ids, heads = prompts[2], HEADS[3]
    engine.reset_prefix_cache()
    ask([ids], [None])
    (output,) = ask([ids], [_wish(heads, positions="last")])
    assert output.num_cached_tokens >= 32
    assert _ids(output) == expected(ids, heads, positions="last")
    (output,) = ask([ids], [None])
    assert _ids(output) == expected(ids)


def test_a_continued_answer_is_edited_from_the_end_of_its_own_prompt_on(
    ask: Any, engine: Any, prompts: Any, expected: Any
) -> None:
    for start in range(34, 60, 4):  # the first edit begins inside of the second block of 32
        engine.reset_prefix_cache()
        first = prompts[1][:start]
        wish = _wish(HEADS[3], positions="last", scale=0.2)
        (output,) = ask([first], [wish], max_tokens=40)
        longer = [*first, *_ids(output)[:34]]
        (output,) = ask([longer], [wish], max_tokens=30)
        assert _ids(output) == expected(longer, HEADS[3], positions="last", scale=0.2, n=30)
        assert output.num_cached_tokens == 32


def test_preempted_requests_equal_transformers(ask: Any, core: Any, prompts: Any, expected: Any) -> None:
    wishes = [_wish(HEADS[i % 4]) if i % 2 else None for i in range(8)]
    due = [expected(ids, HEADS[i % 4] if i % 2 else None, n=90) for i, ids in enumerate(prompts)]
    seen: set[str] = set()
    own = type(core.scheduler)._preempt_request

    def preempt(self: Any, request: Any, *args: Any, **kwargs: Any) -> None:
        seen.add("edited" if request.sampling_params.extra_args else "plain")
        own(self, request, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(core.scheduler), "_preempt_request", preempt)
        outputs = ask(prompts, wishes, max_tokens=90)
    assert [_ids(output) for output in outputs] == due
    assert "edited" in seen


def test_samples_of_an_edited_request_are_those_of_the_edited_model(ask: Any, prompts: Any) -> None:
    settings = {"temperature": 1.5, "seed": 3, "n": 2}
    (first,) = ask([prompts[0]], [_wish(HEADS[3])], **settings)
    (again,) = ask([prompts[0]], [_wish(HEADS[3])], **settings)
    (plain,) = ask([prompts[0]], [None], **settings)
    assert [list(o.token_ids) for o in first.outputs] == [list(o.token_ids) for o in again.outputs]
    assert [list(o.token_ids) for o in first.outputs] != [list(o.token_ids) for o in plain.outputs]


def test_log_probabilities_are_those_of_the_edited_model(ask: Any, plain_model: Any, prompts: Any) -> None:
    import torch

    import chainwright as cw

    model, _ = plain_model
    ids, heads = prompts[3], HEADS[1]
    (output,) = ask([ids], [_wish(heads)], max_tokens=8)
    new = _ids(output)
    with cw.edit(model, cw.KnockOut(heads)), torch.no_grad():
        logits = model(torch.tensor([[*ids, *new]])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
    due = [float(logits[i, token]) for i, token in enumerate(new)]
    found = [step[token].logprob for step, token in zip(output.outputs[0].logprobs, new, strict=True)]
    assert found == pytest.approx(due, abs=1e-3)


def test_more_sets_of_heads_than_a_pass_holds_take_turns(ask: Any, prompts: Any, expected: Any) -> None:
    sets = [{(layer, head)} for layer in (0, 1) for head in range(8)]
    outputs = ask([prompts[4]] * 16, [_wish(heads) for heads in sets], max_tokens=4)
    assert [_ids(output) for output in outputs] == [expected(prompts[4], heads, n=4) for heads in sets]


def test_an_edit_that_does_not_act_ends_its_request_with_an_error(ask: Any, core: Any, prompts: Any) -> None:
    projection = core.runner.model.model.layers[2].self_attn.o_proj
    hooks = dict(projection._forward_pre_hooks)
    projection._forward_pre_hooks.clear()
    try:
        failed, other, plain = ask(prompts[:3], [_wish({(2, 0)}), _wish({(1, 0)}), None], max_tokens=6)
    finally:
        projection._forward_pre_hooks.update(hooks)
    assert failed.outputs[0].finish_reason == "error"
    assert failed.outputs[0].stop_reason == "Chainwright's edit of layer 2 did not act; the request was ended."
    assert not failed.outputs[0].token_ids
    assert [len(output.outputs[0].token_ids) for output in (other, plain)] == [6, 6]


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"knock_out": [[4, 0]]}, "there is no head [4, 0]: the model has layers 0 to 3 with heads 0 to 7 each."),
        ({"knock_out": [[0, 8]]}, "there is no head [0, 8]"),
        ({"knock_out": []}, "knock_out needs at least one head"),
        ("{", "chainwright must be a JSON object"),
    ],
)
def test_what_cannot_be_done_is_refused_before_it_runs(ask: Any, prompts: Any, wish: Any, said: str) -> None:
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError) as caught:
        ask([prompts[0]], [wish])
    assert said in str(caught.value)
