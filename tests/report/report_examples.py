"""Diagnoses made by hand, without a model: real problems, invented scores and head maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from chainwright import tasks
from chainwright.decode import TokenScores
from chainwright.diagnose import HeadCheck, HeadRoles, RoleFinding, first_errors
from chainwright.evaluation import evaluate
from chainwright.study import DiagnoseConfig, Diagnosis
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
    config = DiagnoseConfig(model, hops or {"parity": (2, 4)}, n=n, rendering=rendering)
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
    roles = [RoleFinding(*key, make_roles(*shape, seed=i), checks[i % 2]) for i, key in enumerate(keys)]
    strings = [[tok.decode([i]) for i in trace.input_ids.tolist()] for trace in traces]
    return Diagnosis(
        config,
        {"model": model, "revision": "none", "dtype": "float32"},
        traces,
        scores,
        strings,
        evaluate(traces),
        errors,
        roles if has_roles else [],
        [] if has_roles or not keys else [f"{keys[0][0]}, {keys[0][1]}: only 3 contexts {extra}"],
    )
