"""Back attention: nothing while untrained, the written-out computation once trained, and the same with caches."""

from __future__ import annotations

import pytest
import torch

from chainwright import BadInput, EditNeverFired, KnockOut, edit
from chainwright.edits import AttendBack, BackHead
from families import FAMILIES, left_padded, random_ids, tiny
from reference import assert_close, assert_equal, block

# the routed experts of float32 models sum in another order with a cache
_ROOM = {"gpt_oss": 2e-3}


def trained(model, source=1, targets=(1, 2, 3), seed=0, **options) -> BackHead:
    """Return a head with weights that matter."""
    torch.manual_seed(seed)
    head = BackHead(model.config.hidden_size, source, targets, d_back=8, **options)
    torch.nn.init.normal_(head.o.weight, std=1.0)
    return head.requires_grad_(False)


def by_hand(model, family: str, head: BackHead, ids: torch.Tensor) -> torch.Tensor:
    """Return the last position's logits of one row, with the first pass, the head and the second pass written out."""
    inputs: list[torch.Tensor] = []
    blocks = [block(model, family, i) for i in range(3)]
    hooks = [b.register_forward_pre_hook(_kept(inputs), with_kwargs=True) for b in blocks]
    out: list[torch.Tensor] = []
    hooks.append(blocks[-1].register_forward_hook(lambda m, a, o: out.append(_first(o).clone())))
    model(ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    depths = [*inputs, out[0]]
    own = depths[head.source][0]

    def scaled(v):
        return v / (v.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() if head.is_normed else v

    added = torch.zeros_like(own)
    for i in range(len(own)):
        seen = torch.cat([depths[t][0, : i + 1] for t in head.targets])
        scores = scaled(seen) @ head.k.weight.T @ (head.q.weight @ scaled(own[i])) / head.d_back**0.5
        added[i] = head.o.weight @ (scores.softmax(0) @ (scaled(seen) @ head.v.weight.T))

    def put(module, args, kwargs):
        name = None if args else "hidden_states"
        given = args[0] if args else kwargs[name]
        new = given + added.view_as(given)
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, name: new})

    hook = blocks[head.source].register_forward_pre_hook(put, with_kwargs=True)
    logits = model(ids, use_cache=False).logits
    hook.remove()
    return logits


def _first(output):
    return output[0] if isinstance(output, tuple) else output


def _kept(into):
    def hook(module, args, kwargs):
        into.append((args[0] if args else kwargs["hidden_states"]).clone())

    return hook


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_untrained_changes_nothing(family):
    model, ids = tiny(family), random_ids(2, 9)
    mask = torch.ones_like(ids)
    want = model(ids, attention_mask=mask).logits
    with edit(model, AttendBack([BackHead(48, 1, (2, 3), d_back=8)])):
        got = model(ids, attention_mask=mask).logits
    assert_close(got, want)
    assert_equal(model(ids, attention_mask=mask).logits, want)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_equals_the_written_out_computation(family):
    model, ids = tiny(family), random_ids(1, 9)
    head = trained(model)
    want = by_hand(model, family, head, ids)
    with edit(model, AttendBack([head])) as (touched,):
        got = model(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    assert touched.n_sites == 9
    assert_close(got, want, tolerance=2e-4)
    plain = model(ids, use_cache=False).logits
    assert float((plain - want).abs().max()) > 0.05


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_cached_generation_equals_uncached(family):
    model = tiny(family)
    ids, mask = left_padded([random_ids(1, 9)[0], random_ids(1, 5, seed=1)[0]])
    heads = [trained(model, 0, (1, 3)), trained(model, 2, (2, 3), seed=1)]
    options = dict(attention_mask=mask, max_new_tokens=8, do_sample=False, output_logits=True, eos_token_id=None)
    with edit(model, AttendBack(heads)):
        cached = model.generate(ids, return_dict_in_generate=True, use_cache=True, **options)
        plain = model.generate(ids, return_dict_in_generate=True, use_cache=False, **options)
    assert_equal(cached.sequences, plain.sequences)
    assert_close(torch.stack(cached.logits), torch.stack(plain.logits), tolerance=_ROOM.get(family, 1e-3))


@torch.no_grad()
def test_padding_changes_nothing():
    model = tiny("llama")
    short, long = random_ids(1, 5)[0], random_ids(1, 9, seed=1)[0]
    ids, mask = left_padded([short, long])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with edit(model, AttendBack([trained(model)])):
        together = model(ids, attention_mask=mask, position_ids=positions).logits[0, -5:]
        alone = model(short[None], attention_mask=torch.ones(1, 5, dtype=torch.long)).logits[0]
    assert_close(together, alone)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
@torch.no_grad()
def test_beam_search_equals_uncached(family):
    model = tiny(family)
    ids, mask = left_padded([random_ids(1, 9)[0], random_ids(1, 5, seed=1)[0]])
    options = dict(attention_mask=mask, max_new_tokens=7, num_beams=3, do_sample=False, eos_token_id=None)
    with edit(model, AttendBack([trained(model)])):
        cached = model.generate(ids, use_cache=True, **options)
        plain = model.generate(ids, use_cache=False, **options)
    assert_equal(cached, plain)


@torch.no_grad()
def test_a_prompt_in_two_parts_equals_one():
    model, ids = tiny("qwen3"), random_ids(1, 10)
    with edit(model, AttendBack([trained(model)])):
        whole = model(ids).logits[:, -1]
        first = model(ids[:, :6], use_cache=True)
        rest = model(ids[:, 6:], past_key_values=first.past_key_values, use_cache=True).logits[:, -1]
    assert_close(rest, whole)


@torch.no_grad()
def test_only_the_positions_asked_for_are_read():
    model, seen = tiny("llama"), []
    ids, mask = left_padded([random_ids(1, 6)[0], random_ids(1, 4, seed=1)[0]])
    with edit(model, AttendBack([trained(model)], positions=(1, 3), on_scores=seen.append)):
        model(ids, attention_mask=mask, use_cache=False)
    long, short = seen[0].pattern  # (query, target, key)
    assert float(long[:, :, [0, 2, 4, 5]].abs().max()) == 0
    assert float(long[0].abs().max()) == 0, "the first position sees no key"
    assert_close(long[1:].sum((-1, -2)), torch.ones(5))
    assert float(short[:, :, [0, 1, 2, 4]].abs().max()) == 0
    assert_close(short[3:].sum((-1, -2)), torch.ones(3))


@torch.no_grad()
def test_own_position_reads_nothing_else():
    model, ids, seen = tiny("llama"), random_ids(1, 6), []
    with edit(model, AttendBack([trained(model)], positions="own", on_scores=seen.append)):
        model(ids, use_cache=False)
    assert_close(seen[0].pattern[0].sum(1), torch.eye(6))


@torch.no_grad()
def test_only_the_tokens_asked_for_are_read():
    model, seen = tiny("llama"), []
    ids, mask = left_padded([random_ids(1, 6)[0], random_ids(1, 4, seed=1)[0]])
    wanted = (int(ids[0, 1]), int(ids[1, 4]))
    with edit(model, AttendBack([trained(model)], tokens=wanted, on_scores=seen.append)):
        model(ids, attention_mask=mask, use_cache=False)
    may = torch.isin(ids, torch.tensor(wanted)) & mask.bool()
    read = seen[0].pattern.sum(2)  # (row, query, key)
    assert float(read.masked_select(~may[:, None].expand_as(read)).abs().max()) == 0
    seeing = (may[:, None] & torch.ones(6, 6, dtype=torch.bool).tril()).any(-1)
    assert_close(read.sum(-1), seeing.float())
    assert 0 < int(seeing.sum()) < 12


@pytest.mark.parametrize("beams", [1, 3])
@torch.no_grad()
def test_chosen_tokens_are_remembered_with_a_cache(beams):
    """What may be read moves with the keys when beams are reordered."""
    model = tiny("llama")
    ids, mask = left_padded([random_ids(1, 9)[0], random_ids(1, 5, seed=1)[0]])
    options = dict(attention_mask=mask, max_new_tokens=8, do_sample=False, num_beams=beams, eos_token_id=None)
    tokens = tuple(range(0, model.config.vocab_size, 2))
    with edit(model, AttendBack([trained(model)], tokens=tokens)):
        cached = model.generate(ids, use_cache=True, **options)
        plain = model.generate(ids, use_cache=False, **options)
    assert_equal(cached, plain)
    with edit(model, AttendBack([trained(model)])):
        assert not torch.equal(model.generate(ids, use_cache=True, **options), cached)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"positions": ()}, "at least one"),
        ({"positions": (-1,)}, "from 0"),
        ({"positions": "first"}, "'own' or None"),
        ({"tokens": ()}, "at least one token id"),
    ],
)
def test_reading_nothing_is_refused(options, message):
    with pytest.raises(BadInput, match=message):
        AttendBack([BackHead(48, 1, (2,))], **options)


def test_vectors_have_no_tokens_to_choose():
    model = tiny("llama")
    with (
        edit(model, AttendBack([trained(model)], tokens=(3,)), strict=False),
        pytest.raises(BadInput, match="input_ids"),
    ):
        model(inputs_embeds=torch.zeros(1, 4, model.config.hidden_size))


@torch.no_grad()
def test_works_beside_a_knockout():
    model, ids = tiny("llama"), random_ids(1, 6)
    head = AttendBack([trained(model)])
    with edit(model, head, KnockOut({(2, 1)})):
        both = model(ids).logits
    with edit(model, KnockOut({(2, 1)}), head):
        swapped = model(ids).logits
    with edit(model, head):
        alone = model(ids).logits
    assert_equal(both, swapped)
    assert float((both - alone).abs().max()) > 0.01


def test_training_reaches_the_head_and_not_the_model():
    model, ids = tiny("llama").requires_grad_(False), random_ids(2, 6)
    head = trained(model).requires_grad_(True)
    with edit(model, AttendBack([head])):
        model(ids, use_cache=False).logits.sum().backward()
    assert all(float(weight.grad.abs().max()) > 0 for weight in head.parameters())
    assert all(weight.grad is None for weight in model.parameters())


def test_no_pass_inside_the_block_is_an_error():
    model = tiny("llama")
    with pytest.raises(EditNeverFired), edit(model, AttendBack([trained(model)])):
        pass


def test_what_does_not_fit_is_refused():
    model, ids = tiny("llama"), random_ids(1, 6)
    with pytest.raises(BadInput, match="Source layer 2 comes after target 1"):
        BackHead(48, 2, (1, 3))
    with pytest.raises(BadInput, match="at least one above 2"):
        BackHead(48, 2, (2,))
    with pytest.raises(BadInput, match="at least one target"):
        BackHead(48, 2, ())
    with pytest.raises(BadInput, match="targets to 3"), edit(model, AttendBack([BackHead(48, 1, (2, 4))])):
        pass
    with pytest.raises(BadInput, match="residual stream of 32"), edit(model, AttendBack([BackHead(32, 1, (2,))])):
        pass
    with pytest.raises(BadInput, match="one head for each source"):
        AttendBack([trained(model), trained(model)])
    begun = model(ids[:, :3], use_cache=True).past_key_values
    with pytest.raises(BadInput, match="empty cache"), edit(model, AttendBack([trained(model)])):
        model(ids[:, 3:], past_key_values=begun, use_cache=True)
