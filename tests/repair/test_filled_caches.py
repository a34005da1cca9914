"""A cache that is filled by hand inside a repair's block, and continued by `generate`."""

import pytest
import torch
from transformers import DynamicCache

from chainwright._errors import BadInput
from families import left_padded, random_ids, tiny
from repair_runs import KINDS, N_NEW, prompts, stepflow

OPTIONS = {"max_new_tokens": N_NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def alone(model, repair, ids, mask):
    with repair.attached(model):
        return model.generate(input_ids=ids, attention_mask=mask, **OPTIONS), repair.cost.n_tokens


@pytest.mark.parametrize("kind", ["stepflow", "back-attention"])
@pytest.mark.parametrize("n_left", [1, 2, 5])
@torch.no_grad()
def test_generate_continues_a_prompt_that_was_read_by_hand(kind: str, n_left: int) -> None:
    model = tiny("llama")
    repair = KINDS[kind](model)
    ids, mask = left_padded(prompts()[:2])
    want, n_tokens = alone(model, repair, ids, mask)
    with repair.attached(model):
        cache = DynamicCache(config=model.config)
        n = ids.shape[1] - n_left
        positions = (mask[:, :n].cumsum(-1) - 1).clamp(min=0)
        model(input_ids=ids[:, :n], attention_mask=mask[:, :n], position_ids=positions, past_key_values=cache)
        got = model.generate(input_ids=ids, attention_mask=mask, past_key_values=cache, **OPTIONS)
    assert got.tolist() == want.tolist()
    assert repair.cost.n_tokens == n_tokens


@torch.no_grad()
def test_generate_refuses_to_take_a_response_for_its_question() -> None:
    model = tiny("llama")
    repair = stepflow()
    ids = prompts()[0][None]
    with repair.attached(model):
        first = model.generate(input_ids=ids, return_dict_in_generate=True, **OPTIONS)
        longer = torch.cat([first.sequences, random_ids(1, 3, seed=2)], 1)
        with pytest.raises(BadInput, match="fill the cache in one pass, or start generate with an empty one"):
            model.generate(input_ids=longer, past_key_values=first.past_key_values, **OPTIONS)
        cache = DynamicCache(config=model.config)
        for piece in (ids[:, :4], ids[:, 4:7]):  # by hand, several tokens at once may be a response that is scored
            model(input_ids=piece, past_key_values=cache)
        with pytest.raises(BadInput, match="fill the cache in one pass"):
            model.generate(input_ids=ids, past_key_values=cache, **OPTIONS)
        again = model.generate(input_ids=ids, **OPTIONS)
    assert again.tolist() == first.sequences.tolist()
    assert "generate" not in vars(model)
