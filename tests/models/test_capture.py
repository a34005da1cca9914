"""What is captured equals hand-written forwards and what the models themselves report."""

import pytest
import torch

from chainwright._errors import BadInput
from chainwright.edits import KnockOut, edit
from chainwright.models import anatomy, capture
from chainwright.models.padding import position_ids
from chainwright.models.seam import Handlers, attach
from families import FAMILIES, left_padded, random_ids, tiny
from reference import assert_close, assert_equal, attention, out_proj, plain_gpt2, plain_llama

every_family = pytest.mark.parametrize("family", FAMILIES)
LENGTHS = (11, 8, 3)


def rows_of_three() -> list[torch.Tensor]:
    return [random_ids(1, n, seed=n)[0] for n in LENGTHS]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt2"])
def test_z_and_logits_equal_a_forward_written_out(family: str) -> None:
    model, ids = tiny(family), random_ids(2, 9)
    got = capture(model, ids)
    for row in range(2):
        want = (plain_gpt2 if family == "gpt2" else plain_llama)(model, ids[row])
        assert_close(got.z[:, row], want.z, f"{family} z")
        assert_close(got.logits[row], want.logits, f"{family} logits")


@every_family
def test_z_through_the_projection_is_what_the_attention_returns(family: str) -> None:
    model, (ids, mask) = tiny(family), left_padded(rows_of_three())
    returned: dict[int, torch.Tensor] = {}
    handles = [
        attention(model, family, i).register_forward_hook(lambda m, a, out, i=i: returned.update({i: out[0]}))
        for i in range(3)
    ]
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask, position_ids=position_ids(mask))
    for handle in handles:
        handle.remove()
    got = capture(model, ids, attention_mask=mask)
    for i in range(3):
        with torch.no_grad():
            written = out_proj(model, family, i)(got.z[i].flatten(-2))
        assert_equal(written[mask.bool()], returned[i][mask.bool()], f"{family} layer {i}")


@every_family
def test_attention_is_what_the_eager_model_reports(family: str) -> None:
    model, (ids, mask) = tiny(family), left_padded(rows_of_three())
    got = capture(model, ids, attention_mask=mask, attention=True).attention
    model.set_attn_implementation("eager")
    with torch.no_grad():
        inputs = dict(input_ids=ids, attention_mask=mask, position_ids=position_ids(mask))
        want = torch.stack(model(**inputs, output_attentions=True).attentions)
    assert got is not None
    real = mask.bool()[None, :, None, :, None].expand_as(got)
    assert_close(got[real], want[real], family)
    hidden = ~mask.bool()[None, :, None, None, :].expand_as(got)
    assert float(got[real & hidden].abs().max()) == 0.0, "attention on padding"


@every_family
def test_attention_times_values_is_z(family: str) -> None:
    model, (ids, mask) = tiny(family), left_padded(rows_of_three())
    values: dict[int, torch.Tensor] = {}

    def keep(call, attend):
        values[call.layer] = call.v.repeat_interleave(call.q.shape[1] // call.v.shape[1], dim=1)
        return attend(call)

    with attach(model, Handlers({i: (keep,) for i in range(3)})):
        got = capture(model, ids, attention_mask=mask, attention=True)
    assert got.attention is not None
    for i in range(3):
        z = torch.einsum("nhqk,nhkd->nqhd", got.attention[i], values[i])
        assert_close(z[mask.bool()], got.z[i][mask.bool()], f"{family} layer {i}")


@every_family
def test_left_padded_rows_equal_single_runs(family: str) -> None:
    model, rows = tiny(family), rows_of_three()
    ids, mask = left_padded(rows)
    got = capture(model, ids, attention_mask=mask, attention=True, residual=True)
    for i, row in enumerate(rows):
        alone, n = capture(model, row[None], attention=True, residual=True), len(row)
        assert_close(got.logits[i, -n:], alone.logits[0], f"{family} logits of row {i}")
        for name in ("z", "resid_pre", "resid_mid", "resid_post"):
            assert_close(getattr(got, name)[:, i, -n:], getattr(alone, name)[:, 0], f"{family} {name} of row {i}")
        assert got.attention is not None and alone.attention is not None
        assert_close(got.attention[:, i, :, -n:, -n:], alone.attention[:, 0], f"{family} attention of row {i}")


@every_family
def test_the_last_position_alone_is_the_last_of_all(family: str) -> None:
    model, (ids, mask) = tiny(family), left_padded(rows_of_three())
    every = capture(model, ids, attention_mask=mask, residual=True)
    last = capture(model, ids, attention_mask=mask, residual=True, positions="last")
    assert last.z.shape == (3, 3, 1, *every.z.shape[-2:])
    for name in ("z", "resid_pre", "resid_mid", "resid_post"):
        assert_close(getattr(last, name), getattr(every, name)[:, :, -1:], f"{family} {name}")
    assert_close(last.logits, every.logits[:, -1:], family)


@every_family
def test_residual_stream_is_what_the_model_reports(family: str) -> None:
    model, ids = tiny(family), random_ids(2, 9)
    got = capture(model, ids, residual=True)
    with torch.no_grad():
        hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
    assert got.resid_pre is not None and got.resid_post is not None
    assert_equal(got.resid_pre, torch.stack(hidden[:3]), family)
    assert_equal(got.resid_post[:-1], got.resid_pre[1:], family)
    with torch.no_grad():
        assert_equal(anatomy(model).final_norm(got.resid_post[-1]), hidden[-1], family)


def test_capture_inside_an_edit_reads_what_it_changed() -> None:
    model, ids = tiny("llama"), random_ids(1, 6)
    own = capture(model, ids)
    with edit(model, KnockOut({(1, 2)})):
        edited = capture(model, ids)
    assert_equal(edited.z[0], own.z[0], "the layer before")
    assert_equal(edited.z[1, :, :, 2], torch.zeros(1, 6, 12), "the head")
    assert_equal(edited.z[1, :, :, [0, 1, 3]], own.z[1, :, :, [0, 1, 3]], "its neighbours")
    assert not torch.equal(edited.z[2], own.z[2])


def test_capture_in_training_mode_reads_the_evaluated_model() -> None:
    for family in ("gpt_neox", "phi3", "gpt2"):
        drop = {"hidden_dropout": 0.5, "attention_dropout": 0.5, "resid_pdrop": 0.5, "attn_pdrop": 0.5}
        known = {name: p for name, p in drop.items() if hasattr(tiny(family).config, name)}
        model, ids = tiny(family, **known), random_ids(1, 6)
        assert known
        want = capture(model, ids, residual=True, attention=True)
        got = capture(model.train(), ids, residual=True, attention=True)
        assert model.training and all(module.training for module in model.modules())
        for name in ("z", "logits", "attention", "resid_pre", "resid_mid", "resid_post"):
            assert_equal(getattr(got, name), getattr(want, name), f"{family} {name}")


def test_capture_keeps_no_gradients_and_leaves_no_hooks() -> None:
    model = tiny("llama")
    got = capture(model, random_ids(1, 4), residual=True, attention=True)
    for name in ("z", "logits", "attention", "resid_pre", "resid_mid", "resid_post"):
        assert not getattr(got, name).requires_grad, name
    assert torch.is_grad_enabled()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_what_was_not_asked_for_is_none() -> None:
    got = capture(tiny("llama"), random_ids(1, 4))
    assert (got.attention, got.resid_pre, got.resid_mid, got.resid_post) == (None, None, None, None)


def test_positions_count_from_each_rows_first_token() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    assert position_ids(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        (torch.ones(3, dtype=torch.long), None, r"shape \[N, T\] with T > 0; got \[3\]"),
        (torch.ones(1, 0, dtype=torch.long), None, r"T > 0; got \[1, 0\]"),
        (torch.ones(1, 3), None, "must be integers"),
        (torch.ones(1, 3, dtype=torch.long), torch.ones(1, 2), r"shape of input_ids, \[1, 3\]; got \[1, 2\]"),
        (torch.ones(1, 3, dtype=torch.long), torch.tensor([[1, 1, 0]]), "padded on the left"),
        (torch.ones(1, 3, dtype=torch.long), torch.tensor([[1, 0, 1]]), "padded on the left"),
    ],
)
def test_wrong_inputs_are_named(ids: torch.Tensor, mask: torch.Tensor | None, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        capture(tiny("llama"), ids, attention_mask=mask)


def test_unknown_positions_are_refused() -> None:
    with pytest.raises(BadInput, match="positions must be 'all' or 'last'; got 'first'"):
        capture(tiny("llama"), random_ids(1, 3), positions="first")  # type: ignore[arg-type]
