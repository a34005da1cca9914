"""Tokens that a tokenizer has and the model does not: one sentence wherever ids enter, and no raw IndexError."""

import pytest
import torch

from chainwright import answer_writing_scores, head_roles, knockout_effects, logit_flow, logit_lens, step_saliency
from chainwright._errors import BadInput
from chainwright.diagnose import alternatives, bridge_mass
from chainwright.diagnose.contexts import SlotContexts
from chainwright.scoring import score
from chainwright.traces import Trace
from families import D_VOCAB, tiny
from trace_tokenizers import byte_level

IDS = torch.tensor([[5, 7, D_VOCAB, 9]])
TOKENS = torch.tensor([8])


def trace() -> Trace:
    return Trace(IDS[0], (0, 2), (2, 2), (2, 4), [(0, 2), (2, 4)])


def contexts(predicted: int, right: int) -> SlotContexts:
    return SlotContexts(IDS, torch.ones_like(IDS), torch.tensor([predicted]), torch.tensor([right]), (0,))


WAYS = {
    "score": lambda model: score(model, trace()),
    "logit_flow": lambda model: logit_flow(model, IDS, 8),
    "logit_lens": lambda model: logit_lens(model, IDS, TOKENS),
    "knockout_effects": lambda model: knockout_effects(model, IDS, TOKENS),
    "answer_writing_scores": lambda model: answer_writing_scores(model, IDS, TOKENS),
    "head_roles": lambda model: head_roles(model, contexts(8, 8), contexts(8, 9)),
    "alternatives": lambda model: alternatives(model, byte_level(), [trace()]),
    "step_saliency": lambda model: step_saliency(model, trace()),
    "bridge_mass": lambda model: bridge_mass(model, trace()),
}


@pytest.mark.parametrize("name", WAYS)
def test_a_token_that_the_model_does_not_have_is_one_sentence(name: str) -> None:
    with pytest.raises(BadInput, match=rf"{D_VOCAB}"):
        WAYS[name](tiny("llama"))
