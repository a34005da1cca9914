"""A knocked-out head is a head without weights in the output projection: checked against models that lack them."""

import copy
from collections.abc import Generator

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from chainwright._errors import BadInput, EditNeverFired
from chainwright.edits import KnockOut, edit
from chainwright.models.padding import position_ids
from families import FAMILIES, left_padded, random_ids, tiny
from reference import assert_close, assert_equal, greedy, out_proj, without_heads

every_family = pytest.mark.parametrize("family", FAMILIES)
HEADS = {(0, 1), (1, 0), (1, 3), (2, 2)}
ROWS = [{(0, 1), (2, 3)}, set(), {(1, 0), (1, 1), (2, 3)}]
LENGTHS = (11, 8, 3)


def rows_of_three() -> list[Tensor]:
    return [random_ids(1, n, seed=n)[0] for n in LENGTHS]


def last_only(model: PreTrainedModel, changed: PreTrainedModel, ids: Tensor) -> Tensor:
    """Return the last logits where only the last position went through the changed weights."""
    prefix = model(input_ids=ids[:, :-1], use_cache=True).past_key_values
    return changed(input_ids=ids[:, -1:], past_key_values=prefix).logits[:, -1]


@every_family
@torch.no_grad()
def test_all_positions_equal_a_model_without_the_heads(family: str) -> None:
    model, ids = tiny(family), random_ids(2, 11)
    own, want = model(input_ids=ids).logits, without_heads(model, family, HEADS)(input_ids=ids).logits
    with edit(model, KnockOut(HEADS)):
        got = model(input_ids=ids).logits
    assert_close(got, want, family)
    assert float((got - own).abs().max()) > 0.1, "the heads do nothing in this model"


@every_family
@torch.no_grad()
def test_the_last_position_alone_equals_changed_weights_after_an_unchanged_prefix(family: str) -> None:
    model, ids = tiny(family), random_ids(2, 11)
    want = last_only(model, without_heads(model, family, HEADS), ids)
    own = model(input_ids=ids).logits
    with edit(model, KnockOut(HEADS, positions="last")):
        got = model(input_ids=ids).logits
    assert_close(got[:, -1], want, family)
    assert_close(got[:, :-1], own[:, :-1], f"{family}, earlier positions")
    assert float((got - own)[:, -1].abs().max()) > 0.1


@every_family
@pytest.mark.parametrize("positions", ["all", "last"])
@torch.no_grad()
def test_left_padded_rows_with_sets_of_their_own_equal_single_runs(family: str, positions: str) -> None:
    model, rows = tiny(family), rows_of_three()
    ids, mask = left_padded(rows)
    with edit(model, KnockOut(ROWS, positions)):
        got = model(input_ids=ids, attention_mask=mask, position_ids=position_ids(mask)).logits
    for i, row in enumerate(rows):
        changed = without_heads(model, family, ROWS[i])
        if positions == "all":
            assert_close(got[i, -len(row) :], changed(input_ids=row[None]).logits[0], f"{family} row {i}")
        else:
            assert_close(got[i, -1], last_only(model, changed, row[None])[0], f"{family} row {i}")


@every_family
@pytest.mark.parametrize("cache", [None, "static"])
def test_cached_generation_equals_an_uncached_loop_without_the_heads(family: str, cache: str | None) -> None:
    model, rows = tiny(family), rows_of_three()
    ids, mask = left_padded(rows)
    with edit(model, KnockOut(ROWS)):
        got = model.generate(
            ids, attention_mask=mask, max_new_tokens=9, do_sample=False, eos_token_id=None, cache_implementation=cache
        )
    for i, row in enumerate(rows):
        want = greedy(without_heads(model, family, ROWS[i]), row[None], 9)
        assert got[i, -9:].tolist() == want.tolist(), f"{family} row {i}"


@every_family
def test_generation_knocked_out_at_last_positions_starts_at_the_last_prompt_token(family: str) -> None:
    model, ids = tiny(family), random_ids(1, 9)
    with edit(model, KnockOut(HEADS, positions="last")):
        got = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False,
                             eos_token_id=None)  # fmt: skip
    changed, want = without_heads(model, family, HEADS), ids
    with torch.no_grad():
        cache = model(input_ids=ids[:, :-1], use_cache=True).past_key_values
        for _ in range(6):
            logits = changed(input_ids=want[:, -1:], past_key_values=cache).logits
            want = torch.cat([want, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert got.tolist() == want.tolist()


@torch.no_grad()
def test_three_tokens_by_hand() -> None:
    """One layer, two heads of size 2; queries are zero, so that each position averages what it sees.

    All other maps are the identity and every embedding has root mean square 1, so that the norm before the attention
    changes nothing: head 0 averages the first two coordinates, head 1 the last two. The sums are
    position 0: (1, 1, 1, 1); 1: (1, 0, 1, 0); 2: (1/3, 1/3, 1, -1/3).
    """
    config = LlamaConfig(
        vocab_size=4, hidden_size=4, intermediate_size=2, num_hidden_layers=1, num_attention_heads=2, rms_norm_eps=0.0,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    attn, one = model.model.layers[0].self_attn, torch.eye(4)
    a, b, c = [1.0, 1, 1, 1], [1.0, -1, 1, -1], [-1.0, 1, 1, -1]
    model.model.embed_tokens.weight.copy_(torch.tensor([a, b, c, a]))
    for projection in (attn.k_proj, attn.v_proj, attn.o_proj, model.lm_head):
        projection.weight.copy_(one)
    attn.q_proj.weight.zero_()
    model.model.layers[0].mlp.down_proj.weight.zero_()
    ids = torch.tensor([[0, 1, 2]])

    def logits(*edits: KnockOut) -> Tensor:
        with edit(model, *edits):
            return model(input_ids=ids).logits[0]

    def normed(*rows: list[float]) -> Tensor:
        sums = torch.tensor(rows)
        return sums / sums.pow(2).mean(-1, keepdim=True).sqrt()

    t = 1 / 3
    assert_close(logits(), normed([2, 2, 2, 2], [2, -1, 2, -1], [t - 1, t + 1, 2, -t - 1]), "no edit")
    head_0 = normed([1, 1, 2, 2], [1, -1, 2, -1], [-1, 1, 2, -t - 1])
    assert_close(logits(KnockOut({(0, 0)})), head_0, "head 0")
    assert_close(logits(KnockOut({(0, 0)}, "last"))[2], head_0[2], "head 0 at the last position")
    assert_close(logits(KnockOut({(0, 0)}, "last"))[:2], logits()[:2], "the positions before")
    assert_close(logits(KnockOut({(0, 0), (0, 1)})), torch.tensor([a, b, c]), "both heads")
    # (-1, 1, 2, -4/3) has mean square 70/36
    assert_close(head_0[2], torch.tensor([-6.0, 6, 12, -8]) / 70**0.5, "the hand's arithmetic")


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_beam_search_gives_each_row_its_own_set(family: str) -> None:
    model, rows = tiny(family), rows_of_three()
    ids, mask = left_padded(rows)
    asked = dict(max_new_tokens=6, num_beams=2, num_return_sequences=2, do_sample=False, eos_token_id=None)
    with edit(model, KnockOut(ROWS)):
        got = model.generate(ids, attention_mask=mask, **asked)
    for i, row in enumerate(rows):
        changed = without_heads(model, family, ROWS[i])
        want = changed.generate(row[None], attention_mask=torch.ones_like(row[None]), **asked)
        assert got[2 * i : 2 * i + 2, -6:].tolist() == want[:, -6:].tolist(), f"{family} row {i}"


def test_several_samples_of_a_row_share_its_set() -> None:
    model, ids = tiny("llama"), random_ids(2, 7)
    rows = [{(0, 1)}, {(1, 2), (2, 0)}]
    torch.manual_seed(0)
    with edit(model, KnockOut(rows)) as (touched,):
        got = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=True, num_return_sequences=3,
            return_dict_in_generate=True, output_logits=True,
        ).logits[0]  # fmt: skip
    for i in range(2):
        with torch.no_grad():
            want = without_heads(model, "llama", rows[i])(input_ids=ids[i : i + 1]).logits[:, -1]
        assert_close(got[3 * i : 3 * i + 3], want.expand(3, -1), f"row {i}")
    assert touched.n_sites == 3 * 7 * (1 + 2)


@torch.no_grad()
def test_negative_indices_count_from_the_end() -> None:
    model, ids = tiny("llama"), random_ids(1, 5)
    with edit(model, KnockOut({(2, 3), (0, 1)})) as (plain,):
        want = model(input_ids=ids).logits
    with edit(model, KnockOut({(-1, -1), (0, -3), (2, 3)})) as (negative,):  # (2, 3) twice
        assert_equal(model(input_ids=ids).logits, want)
    assert negative.n_sites == plain.n_sites == 10


@pytest.mark.parametrize(
    "heads",
    [
        [(0, 1), (2, 3)],
        ((0, 1), (2, 3)),
        frozenset({(0, 1), (2, 3)}),
        [[(0, 1), (2, 3)]],
        [{(0, 1), (2, 3)}, [(2, 3), (0, 1)]],
        (((0, 1), (2, 3)), ((0, 1), (2, 3))),
        {(np.int64(0), np.int64(1)), (2, 3)},
    ],
    ids=str,
)
@torch.no_grad()
def test_every_way_to_write_heads_means_the_same(heads: object) -> None:
    model, ids = tiny("llama"), random_ids(2, 5)
    with edit(model, KnockOut({(0, 1), (2, 3)})):
        want = model(input_ids=ids).logits
    with edit(model, KnockOut(heads)):  # type: ignore[arg-type]
        assert_equal(model(input_ids=ids).logits, want)


@pytest.mark.parametrize(
    ("heads", "named"),
    [
        ({(0, 1, 2)}, r"\(0, 1, 2\)"),
        ({(0, 1.0)}, r"\(0, 1\.0\)"),
        ({(0, True)}, r"\(0, True\)"),
        ({"01"}, "'01'"),
        ([{(0, 1)}, {3}], "3"),
        ([{(0, 1)}, None], "None"),
        ([(0, 1), {(0, 1)}], "0"),
        ((0, 1), "0"),
        (5, "5"),
        ("ab", "'a'"),
        ((head for head in [(0, 1)]), "generator"),
    ],
    ids=lambda value: "a generator" if isinstance(value, Generator) else str(value),
)
def test_malformed_heads_are_refused(heads: object, named: str) -> None:
    with pytest.raises(BadInput, match=rf"^Heads are given as a collection of \(layer, head\) pairs .* got .*{named}"):
        KnockOut(heads)  # type: ignore[arg-type]


def test_unknown_positions_are_refused() -> None:
    with pytest.raises(BadInput, match=r"^positions must be 'all' or 'last'; got 'first'\.$"):
        KnockOut({(0, 1)}, positions="first")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ((3, 0), r"^Layer 3 does not exist: the model has layers 0 to 2\.$"),
        ((-4, 0), r"^Layer -4 does not exist: the model has layers 0 to 2\.$"),
        ((1, 4), r"^Head 4 of layer 1 does not exist: each layer has heads 0 to 3\.$"),
        ((1, -5), r"^Head -5 of layer 1 does not exist: each layer has heads 0 to 3\.$"),
    ],
)
def test_heads_that_do_not_exist_are_named_before_anything_changes(head: tuple[int, int], message: str) -> None:
    model = tiny("llama")
    config = model.config
    with pytest.raises(BadInput, match=message), edit(model, KnockOut([set(), {head}])):
        pytest.fail("the block was entered")
    assert model.config is config and not model.base_model._forward_pre_hooks


def test_a_batch_that_does_not_fit_the_rows_is_refused() -> None:
    model = tiny("llama")
    with pytest.raises(BadInput, match=r"one set of heads for each of 2 rows, but the batch has 3"):
        with edit(model, KnockOut([{(0, 1)}, {(1, 2)}])):
            model(input_ids=random_ids(3, 4))
    assert not model.base_model._forward_pre_hooks
    with torch.no_grad():
        model(input_ids=random_ids(3, 4))


@torch.no_grad()
def test_two_edits_add_up_and_one_edit_can_be_used_again() -> None:
    model, ids = tiny("qwen3"), random_ids(1, 6)
    first, second, both = KnockOut({(0, 1)}), KnockOut({(0, 2), (2, 3)}), KnockOut({(0, 1), (0, 2), (2, 3)})
    with edit(model, both):
        want = model(input_ids=ids).logits
    with edit(model, first, second):
        assert_equal(model(input_ids=ids).logits, want, "side by side")
    with edit(model, first), edit(model, second):
        assert_equal(model(input_ids=ids).logits, want, "nested")
    other = copy.deepcopy(model)
    with edit(model, both), edit(other, both):
        assert_equal(model(input_ids=ids).logits, want, "the first of two models")
        assert_equal(other(input_ids=ids).logits, want, "on two models at once")


@torch.no_grad()
def test_gradients_do_not_pass_a_silenced_head() -> None:
    model, ids = tiny("llama"), random_ids(1, 6)
    with torch.enable_grad(), edit(model, KnockOut({(2, 1)})):
        model(input_ids=ids).logits.sum().backward()
    grad = model.model.layers[2].self_attn.o_proj.weight.grad
    assert grad is not None and float(grad[:, 12:24].abs().max()) == 0.0 and float(grad[:, :12].abs().max()) > 0


@every_family
@torch.no_grad()
def test_a_scaled_head_is_a_head_with_scaled_weights(family: str) -> None:
    model, ids = tiny(family), random_ids(2, 9)
    whole, without = model(input_ids=ids).logits, without_heads(model, family, {(2, 1)})(input_ids=ids).logits
    changed = copy.deepcopy(model)
    projection, lacking = (out_proj(m, family, 2).weight for m in (changed, without_heads(model, family, {(2, 1)})))
    projection.copy_(lacking + 0.3 * (projection - lacking))
    want = changed(input_ids=ids).logits
    with edit(model, KnockOut({(2, 1)}, scale=0.3)) as (touched,):
        got = model(input_ids=ids).logits
    assert_close(got, want, family)
    assert touched.n_sites == 18
    assert float((got - whole).abs().max()) > 1e-3 and float((got - without).abs().max()) > 1e-3


@torch.no_grad()
def test_scale_one_changes_nothing_and_zero_is_the_knockout() -> None:
    model, ids = tiny("llama"), random_ids(1, 9)
    own = model(input_ids=ids).logits
    with edit(model, KnockOut(HEADS, scale=1.0)):
        assert_equal(model(input_ids=ids).logits, own)
    logits = []
    for scale in (0.0, 1e-30):
        with edit(model, KnockOut(HEADS, scale=scale)):
            logits.append(model(input_ids=ids).logits)
    assert_close(*logits)
    last = []
    for positions in ("all", "last"):
        with edit(model, KnockOut(HEADS, positions, scale=0.5)):
            last.append(model(input_ids=ids).logits)
    assert_close(last[1][:, :-1], own[:, :-1], "only the last position is scaled")
    assert float((last[0] - last[1]).abs().max()) > 1e-3
    for scale in (float("nan"), float("inf")):
        with pytest.raises(BadInput, match="scale must be a finite number"):
            KnockOut(HEADS, scale=scale)


def right_padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return rows of unequal length as one right-padded batch and its attention mask."""
    ids, mask = left_padded([row.flip(0) for row in rows])
    return ids.flip(1), mask.flip(1)


@every_family
@torch.no_grad()
def test_with_padding_on_the_right_the_last_token_of_each_row_is_meant(family: str) -> None:
    model, rows = tiny(family), rows_of_three()
    ids, mask = right_padded(rows)
    own = model(input_ids=ids, attention_mask=mask).logits
    with edit(model, KnockOut(HEADS, positions="last")) as (touched,):
        got = model(input_ids=ids, attention_mask=mask).logits
    changed = without_heads(model, family, HEADS)
    for i, row in enumerate(rows):
        want = last_only(model, changed, row[None])[0]
        assert_close(got[i, len(row) - 1], want, f"{family}, row {i}")
        assert_close(got[i, : len(row) - 1], own[i, : len(row) - 1], f"{family}, earlier positions of row {i}")
        assert float((got - own)[i, len(row) - 1].abs().max()) > 0.01
    assert touched.n_sites == len(rows) * len(HEADS)


@torch.no_grad()
def test_last_tokens_are_counted_by_the_heads_of_their_row_in_every_kind_of_pass() -> None:
    model, rows = tiny("llama"), rows_of_three()
    ids, mask = right_padded(rows)
    seen = mask.bool()[:, None, None, :] & torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    with edit(model, KnockOut(ROWS, positions="last")) as (touched,):
        want = model(input_ids=ids, attention_mask=mask).logits
        assert touched.n_sites == 5
        embedded = model.get_input_embeddings()(ids)
        got = model(inputs_embeds=embedded, attention_mask=mask).logits
        assert touched.n_sites == 10
        whole = model(input_ids=ids, attention_mask=seen | torch.eye(ids.shape[1], dtype=torch.bool) & seen).logits
        assert touched.n_sites == 15
    for i, row in enumerate(rows):
        assert_close(got[i, : len(row)], want[i, : len(row)], "embeddings")
        assert_close(whole[i, : len(row)], want[i, : len(row)], "a mask of four dimensions")


@torch.no_grad()
def test_a_second_piece_that_is_padded_on_the_right_is_read_by_its_mask() -> None:
    model, rows = tiny("llama"), [random_ids(1, n, seed=n)[0] for n in (9, 7)]
    ids, mask = right_padded(rows)
    want = [last_only(model, without_heads(model, "llama", HEADS), row[None])[0] for row in rows]
    cache = model(input_ids=ids[:, :4], use_cache=True).past_key_values
    with edit(model, KnockOut(HEADS, positions="last")) as (touched,):
        got = model(input_ids=ids[:, 4:], attention_mask=mask, past_key_values=cache).logits
    assert_close(got[0, 4], want[0])
    assert_close(got[1, 2], want[1])
    assert touched.n_sites == 2 * len(HEADS)


def test_a_pass_over_padding_alone_touches_nothing_and_says_so() -> None:
    model = tiny("llama")
    with pytest.raises(EditNeverFired), edit(model, KnockOut({(0, 0)}, positions="last")), torch.no_grad():
        model(inputs_embeds=torch.ones(1, 3, 48), attention_mask=torch.zeros(1, 3, dtype=torch.long))
