"""What a sweep computes once for several contexts, and in fewer digits, against one full pass per head."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from chainwright._errors import BadInput
from chainwright.diagnose import knockout_effects
from chainwright.diagnose.heads._sweep import rerun, segments
from chainwright.diagnose.heads._sweep.baseline_pass import Contexts, groups
from chainwright.diagnose.heads._sweep.half_products import HalfProducts
from chainwright.edits import KnockOut, edit
from families import FAMILIES, left_padded, random_ids, tiny
from reference import assert_close, assert_equal, without_heads

every_family = pytest.mark.parametrize("family", FAMILIES)
TOLERANCE = 1e-5  # of a probability, float32
HEADS = [(layer, head) for layer in range(3) for head in range(4)]


def rows_with_one_start(*lengths: int, shared: int = 20) -> list[Tensor]:
    start = random_ids(1, shared, seed=99)[0]
    return [torch.cat([start, random_ids(1, n, seed=i)[0]]) for i, n in enumerate(lengths)]


@torch.no_grad()
def slow_effects(model: PreTrainedModel, family: str, rows: list[Tensor], tokens: Tensor) -> Tensor:
    """Return `[N, L, H]`: rows one by one and without padding, one whole pass per head."""
    effect = torch.zeros(len(rows), 3, 4)
    for at in HEADS:
        changed = without_heads(model, family, {at})
        for i, row in enumerate(rows):
            p, without = (m(input_ids=row[None]).logits[0, -1].softmax(-1)[tokens[i]] for m in (model, changed))
            effect[(i, *at)] = p - without
    return effect


@torch.no_grad()
def likeliest(model: PreTrainedModel, rows: list[Tensor]) -> Tensor:
    return torch.stack([model(input_ids=row[None]).logits[0, -1].argmax() for row in rows])


@pytest.fixture
def splits(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The way each group of rows was cut, None where it ran whole."""
    made: list[Any] = []
    split = segments.split
    monkeypatch.setattr(rerun, "split", lambda *asked: made.append(split(*asked)) or made[-1])
    return made


@every_family
def test_what_contexts_begin_with_runs_once_and_changes_nothing(family: str, splits: list[Any]) -> None:
    model, rows = tiny(family), rows_with_one_start(9, 8, 9, 7)
    (ids, mask), tokens = left_padded(rows), likeliest(model, rows)
    got = knockout_effects(model, ids, tokens, attention_mask=mask)
    (cut,) = splits
    assert cut is not None or family == "gpt2", "whose layers are given a mask that is not known to be per position"
    if cut is not None:
        assert (cut.start.n_tokens, cut.start.n_rows, cut.rest.n_tokens, cut.rest.n_rows) == (20, 1, 9, 4)
    want = slow_effects(model, family, rows, tokens)
    assert float(want.abs().max()) > 0.01, "the heads do nothing in this model"
    assert_close(got.effect, want, family, TOLERANCE)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "gpt_oss"])
def test_without_padding_and_in_small_pieces_it_is_the_same(family: str, splits: list[Any]) -> None:
    model, rows = tiny(family), rows_with_one_start(6, 6, 6)
    rows[1] = rows[0].clone()  # the same context twice: all but its last token are shared
    tokens = likeliest(model, rows)
    for max_bytes in (None, 30_000):
        got = knockout_effects(model, torch.stack(rows), tokens, max_bytes=max_bytes)
        assert_close(got.effect, slow_effects(model, family, rows, tokens), f"{family} {max_bytes}", TOLERANCE)
    assert splits[0] is not None and splits[0].source is None


def test_rows_that_are_wanted_for_some_heads_only_share_their_start_too(splits: list[Any]) -> None:
    model, rows = tiny("llama"), rows_with_one_start(9, 8, 9, 7)
    (ids, mask), tokens = left_padded(rows), likeliest(model, rows)
    got = knockout_effects(model, ids, tokens, attention_mask=mask, method="screened", share=0.4)
    assert splits[0] is not None
    want = slow_effects(model, "llama", rows, tokens)
    assert_close(got.effect[got.is_exact], want[got.is_exact], "measured", TOLERANCE)


def test_rows_are_grouped_by_how_they_begin() -> None:
    rows = [*rows_with_one_start(5, 6), random_ids(1, 26, seed=5)[0], *rows_with_one_start(6)]
    rows.insert(1, torch.cat([random_ids(1, 20, seed=98)[0], rows[0][20:]]))
    ids, mask = left_padded(rows)
    contexts = Contexts(ids, mask, torch.zeros(len(rows), 1, dtype=torch.long))
    grouped = [group.rows.tolist() for group in groups(contexts, 10**6, by_start=True)]
    assert sorted(grouped) == [[0, 2, 4], [1, 3]]
    assert [group.rows.tolist() for group in groups(contexts, 10**6)] == [[0, 1, 2, 3, 4]]
    alike = Contexts(*(part[[0, 2, 4]] for part in contexts))
    assert segments.n_shared_tokens(alike) == 20
    twice = Contexts(*(part[[0, 0]] for part in contexts))
    assert segments.n_shared_tokens(twice) == 24, "one token at least is each row's own"


@pytest.mark.parametrize("change", ["edit", "hook", "short", "other"])
def test_where_the_start_cannot_be_shared_contexts_run_whole(change: str, splits: list[Any]) -> None:
    model = tiny("llama")
    rows = rows_with_one_start(6, 6, shared=15 if change == "short" else 20)
    rows[0][3] = (rows[0][3] + 1) % 61 if change == "other" else rows[0][3]
    if change == "hook":
        model.model.layers[1].mlp.register_forward_hook(lambda module, args, out: out * 1.5)
    tokens = likeliest(model, rows)
    with edit(model, KnockOut({(1, 0)} if change == "edit" else set()), strict=False):
        got = knockout_effects(model, torch.stack(rows), tokens)
    assert splits and all(cut is None for cut in splits)
    with edit(model, KnockOut({(1, 0), (2, 1)} if change == "edit" else {(2, 1)})), torch.no_grad():
        without = torch.stack([model(input_ids=row[None]).logits[0, -1].softmax(-1) for row in rows])
    want = got.baseline - without.gather(1, tokens[:, None])[:, 0]
    assert_close(got.effect[:, 2, 1], want, change, TOLERANCE)


def test_a_layer_that_looks_at_the_length_of_its_input_runs_whole(splits: list[Any]) -> None:
    model, rows = tiny("llama"), rows_with_one_start(6, 6)
    block = model.model.layers[1]
    own = block.mlp.forward
    block.mlp.forward = lambda x: own(x) * (2.0 if x.shape[1] in (1, 26) else 1.0)
    tokens = likeliest(model, rows)
    got = knockout_effects(model, torch.stack(rows), tokens)
    assert splits[0] is not None, "it was tried"
    with edit(model, KnockOut({(1, 2)})), torch.no_grad():
        without = torch.stack([model(input_ids=row[None]).logits[0, -1].softmax(-1) for row in rows])
    want = got.baseline - without.gather(1, tokens[:, None])[:, 0]
    assert_close(got.effect[:, 1, 2], want, "by length", TOLERANCE)


@every_family
def test_products_in_bfloat16_round_the_effects_and_not_the_probabilities(family: str) -> None:
    model, rows = tiny(family), rows_with_one_start(9, 8)
    (ids, mask), tokens = left_padded(rows), likeliest(model, rows)
    exact = knockout_effects(model, ids, tokens, attention_mask=mask)
    got = knockout_effects(model, ids, tokens, attention_mask=mask, products="bfloat16")
    assert_equal(got.baseline, exact.baseline)
    assert not torch.equal(got.effect, exact.effect), "nothing was multiplied in bfloat16"
    off = (got.effect - exact.effect).abs()
    # three digits of the change, through three layers and, in the mixtures of experts, a choice that may tip
    digits = 0.1 if family in ("gpt_oss", "deepseek_v3") else 0.02
    assert float(off.max()) <= digits * float(exact.effect.abs().max()), f"{family}: {off.max():.2g}"
    assert got.config["products"] == "bfloat16" and "products" not in exact.config


def test_only_what_differs_from_the_baseline_is_multiplied() -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8, bias=False))
    halved, plain = HalfProducts(block), torch.randn(3, 5, 8)
    with torch.no_grad():
        records = halved.recorded(plain.shape[:2], lambda: block(plain))
        assert len(records) == 2
        for rows in ([0, 1, 2], [2, 2], [1, 2], [2, 0]):
            index = torch.tensor(rows)
            with halved.used(records, index):
                assert_equal(block(plain[index]), block(plain)[index] if rows == [0, 1, 2] else block(plain[index]))
                moved = block(plain[index] + 0.01)
            want = block(plain[index] + 0.01)
            assert_close(moved, want, str(rows), 1e-4)  # a hundredth in three digits
        assert all("forward" not in module.__dict__ for module in block)


def test_modules_that_do_not_see_every_token_multiply_as_usual() -> None:
    block = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    halved, given = HalfProducts(block), torch.randn(2, 3, 4)

    def run() -> None:
        block[0](given[:, :1])
        block[1](given)
        block[1](given)

    with torch.no_grad():
        assert halved.recorded(given.shape[:2], run) == {}


def test_where_products_cannot_be_halved_it_is_said() -> None:
    model, ids = tiny("llama"), random_ids(2, 5)
    tokens = torch.tensor([3, 4])
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"products": "float16"}, "products must be one of model, bfloat16; got 'float16'"),
        ({"products": "bfloat16", "positions": "last"}, "silenced at all positions and measured; got .*'last'"),
        ({"products": "bfloat16", "method": "gradient"}, "silenced at all positions and measured; got .*'gradient'"),
    ]
    for options, says in wrong:
        with pytest.raises(BadInput, match=says):
            knockout_effects(model, ids, tokens, **options)
    with pytest.raises(BadInput, match=r"for float32 models; this one is in torch\.bfloat16"):
        knockout_effects(model.to(torch.bfloat16), ids, tokens, products="bfloat16")
