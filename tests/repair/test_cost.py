"""The cost of every repair, against counts made by hand."""

import pytest
import torch

from chainwright.decode.run import generate, in_order
from chainwright.edits import Bridge, KnockOut, Momentum, edit
from chainwright.models.anatomy import anatomy
from chainwright.models.load import load_model
from chainwright.models.residual import unembed
from chainwright.repair import StepFlow
from chainwright.scoring import score
from chainwright.tasks import sample
from chainwright.traces import ONE_LINE_ONE_STEP, LiveSteps, Trace
from families import left_padded, random_ids, tiny
from naive import entropy, voted
from repair_runs import KINDS, LENGTHS, N_NEW, ByLastToken, Lines, back_attention, prompts, run, stepflow, tau_of, tcr

WIDTH = max(LENGTHS) + 1


def end_of(free: list[list[int]]) -> int:
    """Return a token at which the rows end at different steps, or not at all."""
    for token in free[0][2:]:
        lengths = {row.index(token) if token in row else None for row in free}
        if len(lengths) > 1:
            return token
    raise AssertionError("no token ends the rows at different steps")


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_and_passes_of_rows_that_end_at_different_steps(kind: str) -> None:
    model = tiny("llama")
    repair = KINDS[kind](model)
    end = end_of(run(model, repair))
    written = run(model, repair, end, n_calls=2)
    lengths = [len(row) for row in written]
    assert len(set(lengths)) > 1
    for each in in_order(repair):
        assert each.cost.n_tokens == 2 * sum(lengths), each.kind
        assert each.cost.n_forwards == 2 * max(lengths), each.kind
        assert 0 <= each.cost.extra_seconds < each.cost.seconds and each.cost.slowdown >= 1


def test_an_end_token_in_the_prompt_ends_nothing() -> None:
    model, repair = tiny("llama"), stepflow()
    free = run(model, repair)
    end = prompts()[0][2]
    assert all(int(end) not in row for row in free), "the rows must not write it"
    assert run(model, repair, int(end)) == free and repair.cost.n_tokens == len(LENGTHS) * N_NEW


def test_the_second_passes_of_back_attention() -> None:
    model = tiny("llama")
    repair = back_attention(model)
    run(model, repair)
    assert repair.cost.n_extra_forwards == N_NEW and repair.cost.n_changed is None
    # every row, padding included, runs again: the prompt in one pass, then all but the last token
    assert repair.cost.n_extra_tokens == len(LENGTHS) * (WIDTH + N_NEW - 1)
    assert repair.cost.n_sites == 2 * sum(n + 1 + N_NEW - 1 for n in LENGTHS), "two heads, no padding"
    assert repair.cost.extra_seconds > 0
    assert "flagged" not in repair.cost.summary() and "sites changed" in repair.cost.summary()


def test_flags_and_changes_of_tcr() -> None:
    model = tiny("llama")
    repair, tau, ranked = tcr(model), tau_of(model), ByLastToken()
    written = run(model, repair)
    n_flagged = n_changed = 0
    for prompt, new in zip(prompts(), written, strict=True):
        for step in range(N_NEW):
            ids = torch.tensor([[*prompt.tolist(), *new[:step]]])
            with torch.no_grad():
                own = model(input_ids=ids, use_cache=False).logits[0, -1]
            if entropy(own) > tau:
                without = []
                for head in ranked.heads(ids[0].tolist()):
                    with edit(model, KnockOut({head})), torch.no_grad():
                        without.append(model(input_ids=ids, use_cache=False).logits[0, -1])
                n_flagged += 1
                n_changed += int(voted(without).argmax()) != int(own.argmax())
    assert (repair.cost.n_flagged, repair.cost.n_changed) == (n_flagged, n_changed) and n_changed > 0
    words = repair.cost.summary()
    assert words.startswith(f"{4 * N_NEW} tokens, {n_flagged} flagged") and f"{n_changed} changed" in words


def test_the_sites_of_stepflow_are_those_of_one_pass_over_what_was_written() -> None:
    model, repair = tiny("llama"), stepflow()
    end = end_of(run(model, repair))
    written = run(model, repair, end)
    how, n_sites = LiveSteps(Lines(), "think", ONE_LINE_ONE_STEP), 0
    for prompt, new in zip(prompts(), written, strict=True):
        ids = torch.tensor([[*prompt.tolist(), *new[:-1]]])  # the last token is never run, or ends the row
        n = (len(prompt),)
        with (
            edit(model, Bridge((0, 1), how, 0.6, n), Momentum((2,), how, 1.5, n_question=n), strict=False) as touched,
            torch.no_grad(),
        ):
            model(input_ids=ids, use_cache=False)
        n_sites += sum(each.n_sites for each in touched)
    assert repair.cost.n_sites == n_sites > 0


def test_scoring_and_passes_without_logits_cost_nothing() -> None:
    model = tiny("llama")
    for repair in (stepflow(), back_attention(model), tcr(model)):
        new = run(model, repair)
        before = repair.cost
        ids = [*prompts()[0].tolist(), *new[0]]
        n = len(prompts()[0])
        trace = Trace(ids, (0, n), (n, len(ids)), (len(ids), len(ids)), [(0, n), (n, len(ids))])
        score(model, trace, repair=repair)
        assert repair.cost is before and before.n_tokens == len(LENGTHS) * N_NEW
        with repair.attached(model) as cost, torch.no_grad():
            model.base_model(input_ids=random_ids(1, 5), attention_mask=torch.ones(1, 5, dtype=torch.long))
            unembed(anatomy(model), torch.zeros(3, 48))
            assert (cost.n_tokens, cost.n_forwards, cost.seconds) == (0, 0, 0.0)
            model(input_ids=random_ids(2, 5), attention_mask=torch.ones(2, 5, dtype=torch.long))
        assert (cost.n_tokens, cost.n_forwards) == (2, 1)


def test_a_prompt_in_pieces_writes_nothing_before_its_end() -> None:
    model, repair = tiny("llama"), stepflow()
    ids = prompts()[0][None]
    model.generation_config.eos_token_id = None
    with repair.attached(model) as cost:
        model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, prefill_chunk_size=4
        )
    assert cost.n_tokens == 5 and cost.n_forwards == 3 + 4


def test_candidates_of_assisted_decoding_count_when_they_are_accepted() -> None:
    model, repair = tiny("llama"), stepflow()
    ids = prompts()[0].repeat(2)[None]
    model.generation_config.eos_token_id = None
    with repair.attached(model) as cost:
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=N_NEW, do_sample=False, prompt_lookup_num_tokens=3
        )
    assert out.shape[1] == ids.shape[1] + N_NEW
    assert N_NEW - 3 <= cost.n_tokens <= N_NEW, "candidates that the last pass accepts are not seen"


def test_generate_counts_what_its_traces_hold() -> None:
    model, tokenizer = load_model("reasoner", device="cpu")
    problems = sample("clf", 3, 5, rendering="short")
    repair = StepFlow(tau_max=0.3)
    traces = generate(model, tokenizer, problems, repair=repair, batch_size=3, progress=False)
    assert all(trace.stopped for trace in traces)
    assert repair.cost.n_tokens == sum(len(trace.response_ids) for trace in traces)


def test_sites_of_a_knockout_are_the_same_in_every_batch() -> None:
    model, tokenizer = load_model("reasoner", device="cpu")
    problems = [p for hops in (2, 5) for p in sample("clf", hops, 3, rendering="short")]
    counts = []
    for batch_size in (1, 6):
        with edit(model, KnockOut({(0, 1), (2, 3)}), KnockOut({(1, 0)}, "last")) as (every, last):
            traces = generate(model, tokenizer, problems, batch_size=batch_size, max_new_tokens=40, progress=False)
        counts.append((every.n_sites, last.n_sites))
        # neither padding nor what is fed to finished rows; the last token is never run
        assert every.n_sites == sum(2 * (len(trace) - 1) for trace in traces)
        assert last.n_sites == sum(len(trace.response_ids) for trace in traces)
    assert counts[0] == counts[1]


def test_padding_is_not_counted() -> None:
    model = tiny("gemma2")
    ids, mask = left_padded([random_ids(1, n, n)[0] for n in (9, 4)])
    with edit(model, KnockOut([{(0, 1)}, {(0, 1), (0, 2)}])) as (touched,), torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
    assert touched.n_sites == 9 + 2 * 4
