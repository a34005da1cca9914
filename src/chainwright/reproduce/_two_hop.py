"""Two-hop questions with a frozen model: what is fitted, how it is judged, what the module reads."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from chainwright.diagnose import logit_flow
from chainwright.edits import AttendBack, BackHead, edit
from chainwright.edits.back_attention import Scores
from chainwright.lab.knowledge import answers
from chainwright.models.anatomy import anatomy
from chainwright.repair._answers import AnswerTraining, train
from chainwright.repair.back_attention import BackAttention
from chainwright.reproduce._low_rank import LowRank, rank_for
from chainwright.tasks.base import Problem
from chainwright.tasks.knowledge import Split, World, category, questions

PARTS = ("held_out", "new_first", "new_second", "new_both")
CATEGORIES = ("e3", "e2", "r2(e1)", "e1", "unknown")
FIRST_RELATION = 2  # <bos> e1 r1 r2


class Variant(NamedTuple):
    """One way of mending the model.

    Attributes:
        source: Source layers.
        targets: Depths that are read, None for the whole stack.
        positions: As in `AttendBack`.
        is_low_rank: Low-rank updates with as many parameters, in place of back attention.
    """

    source: tuple[int, ...] = (0,)
    targets: str = "top"
    d_back: int = 64
    positions: tuple[int, ...] | None = None
    first_hop_weight: float = 1.0
    is_normed: bool = True
    is_low_rank: bool = False


def variants(n_layers: int, dims: Sequence[int]) -> dict[str, Variant]:
    """Return every variant of the study, the main one first."""
    found = {"back attention": Variant(), "LoRA of equal size": Variant(is_low_rank=True)}
    found |= {f"source {s}": Variant(source=(s,)) for s in range(1, n_layers)}
    found |= {f"size {d}": Variant(d_back=d) for d in dims if d != 64}
    found |= {
        "sources 0 and 1": Variant(source=(0, 1)),
        "whole stack": Variant(targets="stack"),
        "first relation only": Variant(targets="stack", positions=(FIRST_RELATION,)),
        "first relation, high to low": Variant(positions=(FIRST_RELATION,)),
        "no first-hop loss": Variant(first_hop_weight=0.0),
        "inputs not normed": Variant(is_normed=False),
    }
    return found


@dataclass(frozen=True)
class Fitted:
    """What was fitted: heads, or low-rank updates."""

    heads: tuple[BackHead, ...] = ()
    positions: tuple[int, ...] | None = None
    low_rank: LowRank | None = None

    def attached(self, model: nn.Module, **options: Any) -> AbstractContextManager[Any]:
        """Let the model run with it."""
        if self.low_rank is not None:
            return self.low_rank.attached()
        return edit(model, AttendBack(self.heads, positions=self.positions, **options))

    @property
    def n_parameters(self) -> int:
        """Return the number of parameters."""
        modules: Sequence[nn.Module] = self.heads if self.low_rank is None else (self.low_rank,)
        return sum(p.numel() for m in modules for p in m.parameters())


def fit(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    variant: Variant,
    training: AnswerTraining,
) -> Fitted:
    """Fit one variant on questions that the model has not seen."""
    parts = anatomy(model)
    if variant.is_low_rank:
        n_parameters = 4 * parts.d_model * variant.d_back
        low_rank = LowRank(parts.model, rank_for(parts.model, n_parameters), training.seed)
        with low_rank.attached():
            train(model, tokenizer, low_rank.parameters(), problems, training)
        return Fitted(low_rank=low_rank.requires_grad_(False))
    targets = (parts.n_layers,) if variant.targets == "top" else None
    new = BackAttention.new(
        model, source=variant.source, targets=targets, d_back=variant.d_back, is_normed=variant.is_normed,
        seed=training.seed,
    )  # fmt: skip
    heads = nn.ModuleList(new.heads)
    with edit(model, AttendBack(new.heads, positions=variant.positions)):
        train(model, tokenizer, heads.parameters(), problems, training, slow=[head.writing for head in new.heads])
    heads.requires_grad_(False)
    return Fitted(heads=new.heads, positions=variant.positions)


def judged(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, world: World, parts: Split, n: int
) -> dict[str, dict[str, float]]:
    """Return the share of each kind of answer, for single hops and for each part of the compositions."""
    single = questions(world, world.facts, "bare")
    right = [got == p.answer for got, p in zip(answers(model, tokenizer, single), single, strict=True)]
    out = {"one hop": {"right": sum(right) / len(right)}}
    for name in PARTS:
        asked = drawn(getattr(parts, name), n)
        if asked:
            out[name] = shares(tokenizer, model, questions(world, asked, "bare"))
    return out


def drawn(compositions: Sequence[Any], n: int) -> list[Any]:
    """Return at most `n` of the compositions, always the same."""
    return random.Random("judged").sample(list(compositions), min(n, len(compositions)))


def shares(tokenizer: PreTrainedTokenizerBase, model: nn.Module, asked: Sequence[Problem]) -> dict[str, float]:
    """Return the share of each kind of answer."""
    found = Counter(category(p, got) for p, got in zip(asked, answers(model, tokenizer, asked), strict=True))
    return {name: found[name] / len(asked) for name in CATEGORIES}


def readings(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, fitted: Fitted, asked: Sequence[Problem]
) -> Mapping[str, Any]:
    """Return where the module reads at the last position, as mean weight by depth and position: right against wrong."""
    seen: list[Scores] = []
    with fitted.attached(model, on_scores=seen.append):
        got = answers(model, tokenizer, asked, batch_size=len(asked))
    right = torch.tensor([a == p.answer for a, p in zip(got, asked, strict=True)])
    last = seen[0].pattern[:, -1]  # (row, target, key)
    return {
        "targets": list(seen[0].targets),
        "positions": ["<bos>", "e1", "r1", "r2"],
        "right": _mean(last[right]),
        "wrong": _mean(last[~right]),
        "n_right": int(right.sum()),
        "n_wrong": int((~right).sum()),
    }


def _mean(rows: Tensor) -> list[list[float]] | None:
    return rows.mean(0).tolist() if len(rows) else None


def conflict(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Problem], wrong: str
) -> dict[str, Any]:
    """Return the mean log-probability of e3 less that of the usual wrong answer, by position and depth.

    Args:
        model: The model, with or without back attention attached.
        tokenizer: Its tokenizer.
        asked: Two-hop questions.
        wrong: Name of the wrong answer among a problem's facts, such as "e2".
    """
    curves, flows = [], []
    for problem in asked:
        if problem.facts[wrong] == problem.answer:
            continue
        ids = tokenizer(problem.prompt, return_tensors="pt")["input_ids"]
        token, other = tokenizer.convert_tokens_to_ids([problem.answer, problem.facts[wrong]])
        flow = logit_flow(model, ids, token, conflict_id=other, norm="frozen", n_neurons=10, n_traced=0, n_words=0)
        curves.append(flow.contrast)
        flows.append(torch.stack([flow.attention, flow.mlp, flow.between]))
    return {
        "against": wrong,
        "n": len(curves),
        "contrast": torch.stack(curves).mean(0).tolist(),
        "importance of e3": dict(
            zip(("attention", "mlp", "between"), torch.stack(flows).mean(0).tolist(), strict=True)
        ),
    }
