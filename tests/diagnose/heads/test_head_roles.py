"""Head roles where the answer is known: heads that each push one token, written into the weights of a model."""

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from chainwright._errors import BadInput
from chainwright.diagnose import HeadRoles, RolesConfig, SlotContexts, check_head, head_roles
from chainwright.edits import KnockOut, edit
from reference import assert_close

N_LAYERS, N_HEADS, N_TOKENS = 2, 4, 12
RIGHT_ASKED, WRONG_ASKED, RIGHT, WRONG, OTHER = 2, 3, 6, 7, 8


@pytest.fixture(scope="module")
def pushing() -> PreTrainedModel:
    """A model whose embeddings, unembedding and heads are read off: coordinate i of the stream is logit i of token i.

    Keys and queries are zero, so that each head averages what it reads over the context. Of the coordinates
    - RIGHT_ASKED, WRONG_ASKED mark the two tokens that contexts end with;
    - head (0, 1) turns RIGHT_ASKED into RIGHT;
    - head (1, 2) turns WRONG_ASKED into WRONG, more strongly than head (1, 3) turns it into RIGHT;
    - head (0, 0) takes OTHER back, which every token says: without it nothing else is heard.
    """
    config = LlamaConfig(
        vocab_size=N_TOKENS, hidden_size=N_TOKENS, intermediate_size=4, num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS, num_key_value_heads=N_HEADS, head_dim=N_TOKENS, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=None, pad_token_id=None, rms_norm_eps=0.1,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.zero_()
            assert weight.dim() == 2 or "norm" in name
        model.model.embed_tokens.weight.copy_(torch.eye(N_TOKENS))
        # every token also says OTHER aloud, which one head takes back
        model.model.embed_tokens.weight[:, OTHER] += 5.0
        model.lm_head.weight.copy_(3 * torch.eye(N_TOKENS))
        write(model, 0, 1, RIGHT_ASKED, RIGHT, 2.0)
        write(model, 1, 2, WRONG_ASKED, WRONG, 3.0)
        write(model, 1, 3, WRONG_ASKED, RIGHT, 2.0)
        write(model, 0, 0, RIGHT_ASKED, OTHER, -8.0)
        write(model, 0, 0, WRONG_ASKED, OTHER, -8.0)
    return model


def write(model: PreTrainedModel, layer: int, head: int, reads: int, writes: int, strength: float) -> None:
    attn = model.model.layers[layer].self_attn
    attn.v_proj.weight[head * N_TOKENS + reads, reads] = 1.0
    attn.o_proj.weight[writes, head * N_TOKENS + reads] += strength


def contexts(rows: list[list[int]], predicted: int, right: int) -> SlotContexts:
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    n = len(rows)
    return SlotContexts(ids, mask, torch.full((n,), predicted), torch.full((n,), right), (0,) * n, tuple(range(n)))


def correct() -> SlotContexts:
    return contexts([[RIGHT_ASKED], [RIGHT_ASKED, RIGHT_ASKED], [RIGHT_ASKED] * 5], RIGHT, RIGHT)


def erroneous() -> SlotContexts:
    return contexts([[WRONG_ASKED] * 3, [WRONG_ASKED]], WRONG, RIGHT)


@torch.no_grad()
def first_tokens(model: PreTrainedModel, sets: SlotContexts, without: tuple[int, int] | None = None) -> list[int]:
    found = []
    for ids, mask in zip(sets.input_ids, sets.attention_mask, strict=True):
        row = ids[mask.bool()][None]
        with edit(model, KnockOut({without} if without else set()), strict=False):
            found.append(int(model(input_ids=row).logits[0, -1].argmax()))
    return found


def test_the_model_does_what_its_weights_say(pushing: PreTrainedModel) -> None:
    assert first_tokens(pushing, correct()) == [RIGHT] * 3
    assert first_tokens(pushing, erroneous()) == [WRONG] * 2
    assert first_tokens(pushing, erroneous(), (1, 2)) == [RIGHT] * 2
    assert first_tokens(pushing, correct(), (0, 0)) == [OTHER] * 3
    assert first_tokens(pushing, erroneous(), (0, 0)) == [OTHER] * 2


@pytest.mark.parametrize("positions", ["all", "last"])
def test_each_head_gets_the_role_that_was_written_into_it(pushing: PreTrainedModel, positions: str) -> None:
    single = positions == "last"  # with one token a context, the last position is all
    sets = (correct().take(slice(0, 1)), erroneous().take(slice(1, 2))) if single else (correct(), erroneous())
    found = head_roles(pushing, *sets, config=RolesConfig(positions=positions))
    assert found.erroneous_processing[0] == [1, 2]
    assert found.correct_processing[0] == [0, 1]
    assert found.basic == [[0, 0]], "without it the predicted token is gone in both sets"
    for role in (found.correct_processing, found.erroneous_processing):
        assert [0, 0] not in role
    assert float(found.corrected[1, 2]) == 1.0 and float(found.kept[1, 2]) == 1.0
    assert float(found.kept[0, 1]) == 0.0 and found.best_head == (1, 2)
    assert float(found.rectification[1, 2]) > 0.5 and float(found.rectification[1, 3]) < 0
    assert [1, 2] in found.answer_writing and [0, 1] in found.answer_writing
    assert (found.n_correct, found.n_erroneous) == (len(sets[0]), len(sets[1]))
    assert "Erroneous-processing: L1H2" in found.summary() and "Basic: L0H0." in found.summary()
    assert "Silencing L1H2 alone puts the right token first in 100% of the wrong contexts" in found.summary()


@torch.no_grad()
def test_the_maps_are_means_of_single_knockouts(pushing: PreTrainedModel) -> None:
    found = head_roles(pushing, correct(), erroneous())

    def probs(sets: SlotContexts, token: int, without: set[tuple[int, int]]) -> Tensor:
        rows = []
        for ids, mask in zip(sets.input_ids, sets.attention_mask, strict=True):
            with edit(pushing, KnockOut(without), strict=False):
                rows.append(pushing(input_ids=ids[mask.bool()][None]).logits[0, -1].softmax(-1)[token])
        return torch.stack(rows)

    for at in [(0, 1), (1, 2), (1, 3), (0, 3)]:
        effect = (probs(correct(), RIGHT, set()) - probs(correct(), RIGHT, {at})).mean()
        assert_close(found.effect_correct[at], effect, f"correct {at}")
        effect = (probs(erroneous(), WRONG, set()) - probs(erroneous(), WRONG, {at})).mean()
        assert_close(found.effect_erroneous[at], effect, f"erroneous {at}")
        gain = (probs(erroneous(), RIGHT, {at}) - probs(erroneous(), RIGHT, set())).mean()
        assert_close(found.rectification[at], gain, f"rectification {at}")


def test_roles_have_the_sizes_that_were_asked_for(pushing: PreTrainedModel) -> None:
    usual = head_roles(pushing, correct(), erroneous())
    assert len(usual.correct_processing) <= 3 and len(usual.erroneous_processing) <= 3, "2% of 8 heads, so three"
    for role, scores in (("correct_processing", "effect_correct"), ("erroneous_processing", "effect_erroneous")):
        values = [float(getattr(usual, scores)[tuple(at)]) for at in getattr(usual, role)]
        assert values == sorted(values, reverse=True) and min(values) > 0, "heads without effect have no role"
    one = head_roles(pushing, correct(), erroneous(), config=RolesConfig(n_answer_writing=1, at_least=1))
    assert [len(role) for role in (one.answer_writing, one.correct_processing, one.erroneous_processing)] == [1, 1, 1]
    many = head_roles(pushing, correct(), erroneous(), config=RolesConfig(share=0.5, basic_below=0.0))
    assert many.basic == [] and [0, 0] in many.correct_processing, "no head is basic when none may be"
    assert many.config["share"] == 0.5


def test_heads_that_do_the_same_are_taken_in_their_order() -> None:
    scores = torch.tensor([[0.5, 0.7, 0.5], [0.5, 0.0, -1.0]])
    from chainwright.diagnose.heads.roles import _top

    assert _top(scores, 3, torch.zeros(2, 3, dtype=torch.bool)) == [[0, 1], [0, 0], [0, 2]]
    assert _top(scores, 9, scores == 0.7) == [[0, 0], [0, 2], [1, 0]]


def made(corrected: Tensor, kept: Tensor, rectification: Tensor) -> HeadRoles:
    maps = dict.fromkeys(["writing_correct", "writing_erroneous", "effect_correct", "effect_erroneous"], kept)
    roles = {name: [] for name in ("answer_writing", "correct_processing", "erroneous_processing", "basic")}
    return HeadRoles(
        **maps, **roles, corrected=corrected, kept=kept, rectification=rectification, n_correct=3, n_erroneous=3
    )


def test_the_best_head_mends_most_and_breaks_least() -> None:
    zero = torch.zeros(2, 2)
    kept = torch.tensor([[1.0, 0.0], [0.9, 0.5]])
    corrected = torch.tensor([[0.0, 1.0], [0.4, 0.5]])
    assert made(corrected, kept, zero).best_head == (1, 0)
    gains = torch.tensor([[0.9, 0.9], [0.0, 0.9]])
    assert made(corrected, kept, gains).best_head == (1, 0), "a gain in probability only settles ties"
    even = torch.full((2, 2), 0.5)
    assert made(even, even, torch.tensor([[0.0, 0.1], [0.3, 0.2]])).best_head == (1, 0)
    assert made(even, even, zero).best_head == (0, 0)
    thirds = torch.tensor([[1 / 3, 2 / 3], [0.0, 0.0]])
    assert made(thirds, 1 - thirds, torch.tensor([[0.1, 0.2], [9.0, 9.0]])).best_head == (1, 0)


def test_a_head_is_checked_on_other_contexts(pushing: PreTrainedModel) -> None:
    for positions in ("all", "last"):
        check = check_head(
            pushing, correct().take(slice(0, 1)), erroneous().take(slice(1, 2)), (1, 2), positions=positions
        )
        assert (check.head, check.corrected, check.kept) == ([1, 2], 1.0, 1.0)
        assert (check.n_erroneous, check.n_correct) == (1, 1)
    broken = check_head(pushing, correct(), erroneous(), (-2, 1))
    assert (broken.head, broken.corrected, broken.kept) == ([0, 1], 0.0, 0.0)
    with pytest.raises(BadInput, match="Head 4 of layer 1 does not exist"):
        check_head(pushing, correct(), erroneous(), (1, 4))
    with pytest.raises(BadInput, match="Layer 2 does not exist"):
        check_head(pushing, correct(), erroneous(), (2, 0))


def test_training_mode_is_kept_and_dropout_does_not_count(pushing: PreTrainedModel) -> None:
    pushing.train()
    for layer in pushing.model.layers:
        layer.self_attn.attention_dropout = 0.9
    try:
        found = head_roles(pushing, correct(), erroneous())
        check = check_head(pushing, correct(), erroneous(), (1, 2))
    finally:
        assert pushing.training
        pushing.eval()
    assert found.best_head == (1, 2) and (check.corrected, check.kept) == (1.0, 1.0)


def test_roles_inside_an_outer_edit_are_those_of_the_edited_model(pushing: PreTrainedModel) -> None:
    """With the pushing head out, contexts that failed are right, and the head that pushes the right token shows."""
    asked = contexts([[WRONG_ASKED] * 3, [WRONG_ASKED]], RIGHT, RIGHT)
    wrong = contexts([[RIGHT_ASKED]], RIGHT, WRONG)  # any set whose tokens differ
    with edit(pushing, KnockOut({(1, 2)})):
        found = head_roles(pushing, asked, wrong, config=RolesConfig(at_least=1, basic_below=0.0))
    assert found.correct_processing == [[1, 3]] or found.correct_processing == [[0, 0]]
    assert float(found.effect_correct[1, 3]) > 0.5 and float(found.effect_correct[1, 2]) == pytest.approx(0, abs=1e-6)


def test_what_was_asked_wrongly_is_said(pushing: PreTrainedModel) -> None:
    nothing = slice(0, 0)
    for call in (head_roles, lambda *sets: check_head(*sets, (1, 2))):
        with pytest.raises(BadInput, match="The set of correct contexts is empty"):
            call(pushing, correct().take(nothing), erroneous())
        with pytest.raises(BadInput, match="The set of erroneous contexts is empty"):
            call(pushing, correct(), erroneous().take(nothing))
        with pytest.raises(BadInput, match="Some erroneous context has the right token as its predicted one"):
            call(pushing, correct(), correct())
        with pytest.raises(BadInput, match="Some correct context has another token than the right one"):
            call(pushing, erroneous(), erroneous())


def test_the_table_names_the_roles(pushing: PreTrainedModel) -> None:
    found = head_roles(pushing, correct(), erroneous())
    rows = {(r["layer"], r["head"]): r for r in found.to_frame().to_pylist()}
    assert len(rows) == N_LAYERS * N_HEADS
    assert rows[1, 2]["is_erroneous_processing"] and not rows[1, 2]["is_basic"]
    assert rows[0, 0]["is_basic"] and not rows[0, 0]["is_correct_processing"]
    assert rows[0, 1]["effect_correct"] == pytest.approx(float(found.effect_correct[0, 1]))
