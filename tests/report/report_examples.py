"""Diagnoses made by hand, without a model: real problems, invented scores and head maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from chainwright import Finding, tasks
from chainwright.diagnose import Alternatives, HeadCheck, HeadEvidence, HeadRoles, RoleFinding, first_errors
from chainwright.evaluation.accuracy import evaluate
from chainwright.report.gather import gather
from chainwright.report.page import render
from chainwright.scoring import TokenScores
from chainwright.studies.diagnosis.run import DiagnoseConfig, Diagnosis
from chainwright.traces import Trace

EVIL = '</script><script>window.evil = 1</script><img src=x onerror="window.evil = 1">&amp;'


def tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE: some tokens begin with a space, some are pieces of a character."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=core)


def break_chain(problem: tasks.Problem, place: int) -> str:
    """Return the gold chain with another name at the first name slot from `place` on."""
    slot = next(s for s in problem.slots[place:] if s.error_type == "name recall")
    other = "rosa" if slot.value.lower() != "rosa" else "hugo"
    wrong = other.title() if problem.rendering == "natural" else other
    return problem.chain[: slot.start] + wrong + problem.chain[slot.end :]


def make_scores(trace: Trace, seed: int) -> TokenScores:
    """Return invented scores; now and then the likeliest token is another one, and at times one never seen."""
    draw = torch.Generator().manual_seed(seed)
    logprob, entropy = -torch.rand(len(trace), generator=draw), torch.rand(len(trace), generator=draw)
    logprob[0] = entropy[0] = float("nan")
    argmax = trace.input_ids.clone()
    argmax[::9], argmax[::13], argmax[0] = 100, 999_999, -1
    return TokenScores(logprob, entropy, argmax)


def make_roles(n_layers: int, n_heads: int, seed: int = 0) -> HeadRoles:
    draw = torch.Generator().manual_seed(seed)

    def signed() -> torch.Tensor:
        return torch.randn(n_layers, n_heads, generator=draw).clamp(-1, 1)

    def share() -> torch.Tensor:
        return torch.rand(n_layers, n_heads, generator=draw)

    return HeadRoles(
        writing_correct=signed(),
        writing_erroneous=signed(),
        effect_correct=signed(),
        effect_erroneous=signed(),
        rectification=signed(),
        corrected=share(),
        kept=share(),
        answer_writing=[[0, 1], [n_layers - 1, n_heads - 1]],
        correct_processing=[[0, 0]],
        erroneous_processing=[[1, 1], [0, 1]],
        basic=[],
        n_correct=16,
        n_erroneous=9,
    )


def with_contexts(roles: HeadRoles, traces: Sequence[Trace], task: str) -> HeadRoles:
    """Return roles with contexts of a task: head h of layer l fixes context i if l + h + i is even.

    It breaks right ones if that is a multiple of 5. What it says instead is token 100.
    """
    own = [(i, t) for i, t in enumerate(traces) if t.problem is not None and t.problem.task == task]
    wrong = [[i, t.first_error_position] for i, t in own if t.first_error_position is not None]
    right = [[i, t.slots[0].start] for i, t in own if t.first_error is None]
    n_layers, n_heads = roles.kept.shape
    sums = torch.arange(n_layers)[:, None] + torch.arange(n_heads)
    fixes = (sums + torch.arange(len(wrong))[:, None, None]) % 2 == 0
    breaks = (sums + torch.arange(len(right))[:, None, None]) % 5 == 0
    return replace(
        roles,
        sites_erroneous=[[i, at] for i, at in wrong if at is not None],
        sites_correct=right,
        right_erroneous=torch.full((len(wrong),), 99),
        right_correct=torch.full((len(right),), 99),
        first_erroneous=torch.where(fixes, 99, 100),
        first_correct=torch.where(breaks, 100, 99),
        p_right=torch.where(fixes, 0.6, 0.1),
        p_right_whole=torch.full((len(wrong),), 0.25),
        n_erroneous=len(wrong),
        n_correct=len(right),
    )


def make_evidence(diagnosis: Diagnosis) -> list[HeadEvidence]:
    """Return evidence for two heads at each error type: the first fixes all failing contexts, the second breaks all."""
    found = []
    for one in diagnosis.roles:
        sites = one.sites_erroneous + one.sites_correct
        is_wrong = torch.arange(len(sites)) < len(one.sites_erroneous)
        first = torch.stack([torch.where(is_wrong, 100, 99), torch.full_like(is_wrong, 99, dtype=torch.long)], dim=1)
        top = torch.cat([first, torch.full((len(sites), 1), 100)], dim=1)[..., None]
        share = torch.tensor([0.25, 0.61, 0.02]).expand(len(sites), 3)
        found.append(
            HeadEvidence(
                task=one.task,
                error_type=one.error_type,
                heads=[[1, 1], [0, 1]],
                sites=sites,
                is_erroneous=is_wrong,
                is_seen=torch.arange(len(sites)) % 2 == 0,
                right_ids=torch.full((len(sites),), 99),
                p_right=share,
                top_ids=top,
                p_top=torch.full(top.shape, 0.7),
                token_strs={"99": " right", "100": " wrong"},
            )
        )
    return found


def make_alternatives(diagnosis: Diagnosis) -> Alternatives:
    """Return alternatives at every slot: the token that stands there 70%, two others, and the expected one 12.5%."""
    places = [
        (i, slot.start, int(trace.input_ids[slot.start]), not slot.is_right)
        for i, trace in enumerate(diagnosis.traces)
        for slot in trace.slots
        if slot.end > slot.start
    ]
    own = torch.tensor([place[2] for place in places])
    is_wrong = torch.tensor([place[3] for place in places])
    others = torch.tensor([[200, 201]]).expand(len(places), 2)
    strings = {
        str(i): text
        for t, s in zip(diagnosis.traces, diagnosis.token_strs, strict=True)
        for i, text in zip(t.input_ids.tolist(), s, strict=True)
    }
    return Alternatives(
        trace=torch.tensor([place[0] for place in places]),
        position=torch.tensor([place[1] for place in places]),
        top_ids=torch.cat([own[:, None], others], dim=1),
        p_top=torch.tensor([[0.7, 0.125, 0.0004]]).expand(len(places), 3),
        expected_ids=torch.where(is_wrong, 200, own),
        p_expected=torch.where(is_wrong, 0.125, 0.7),
        token_strs=strings | {"200": " <b>other</b>", "201": " third"},
    )


def make_diagnosis(
    hops: Mapping[str, Sequence[int]] | None = None,
    *,
    n: int = 4,
    n_wrong: int = 3,
    rendering: tasks.Rendering = "short",
    shape: tuple[int, int] = (2, 3),
    extra: str = "",
    model: str = "toy",
    has_roles: bool = True,
) -> Diagnosis:
    """Return a diagnosis in which, at the most hops of each task, the first `n_wrong` chains have a wrong name.

    Args:
        extra: Text that stands before every question and after every response.
    """
    config = DiagnoseConfig(model=model, hops=hops or {"parity": (2, 4)}, n=n, rendering=rendering)
    asked, said = [], []
    for task, count in config.cells():
        for i, problem in enumerate(tasks.sample(task, count, n, rendering=rendering)):
            is_wrong = count == max(config.hops[task]) and i < n_wrong
            asked.append(replace(problem, prompt=extra + problem.prompt))
            said.append((break_chain(problem, i) if is_wrong else problem.chain) + (f"\n{extra}" if extra else ""))
    tok = tokenizer([*(p.prompt for p in asked), *said])
    traces = [
        Trace.from_text(tok, problem.prompt, response, style="plain", problem=problem)
        for problem, response in zip(asked, said, strict=True)
    ]
    scores = [make_scores(trace, i) for i, trace in enumerate(traces)]
    errors = first_errors(traces, scores)
    keys = [(task, kind) for task, kinds in errors.key_types.items() for kind in kinds]
    checks = [HeadCheck([1, 1], 0.5, 15 / 16, 4, 16), None]
    roles = [
        RoleFinding.of(*key, with_contexts(make_roles(*shape, seed=i), traces, key[0]), checks[i % 2])
        for i, key in enumerate(keys)
    ]
    strings = [[tok.decode([i]) for i in trace.input_ids.tolist()] for trace in traces]
    return Diagnosis(
        config=config,
        provenance={"model": model, "revision": "none", "dtype": "float32"},
        findings=[evaluate(traces), errors, *(roles if has_roles else [])],
        traces=traces,
        scores=scores,
        token_strs=strings,
        skipped=[] if has_roles or not keys else [f"{keys[0][0]}, {keys[0][1]}: only 3 contexts {extra}"],
    )


def page_of(findings: Sequence[Finding] | Finding, **options: Any) -> str:
    """Return the report of findings as a string."""
    return render(gather(findings, **options))


def with_findings(diagnosis: Diagnosis, *more: Finding) -> Diagnosis:
    """Return a diagnosis with more findings."""
    return replace(diagnosis, findings=[*diagnosis.findings, *more])


def full(diagnosis: Diagnosis) -> Diagnosis:
    """Return a diagnosis with alternatives and with evidence for its heads."""
    return with_findings(diagnosis, make_alternatives(diagnosis), *make_evidence(diagnosis))
