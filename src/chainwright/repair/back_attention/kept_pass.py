"""Training back attention when the first pass over the problems is read once and kept.

The base is frozen, so what its layers hold for a fixed question never changes. A step then costs the layers from the
source on alone, forwards and backwards, and the output head where an answer is asked for:

1. Each row is read once: the input of the source layer and the depths that are read.
2. A step adds what the head reads, and runs the decoder without its layers below the source.
3. Rows are padded at their ends, where nothing looks at the padding.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from chainwright._errors import BadInput, UnsupportedModel
from chainwright.diagnose.heads._sweep.half_products import can_halve
from chainwright.edits.back_attention import BackHead, Positions
from chainwright.models.anatomy import Anatomy, anatomy, evaluating, frozen
from chainwright.models.capture import capture
from chainwright.models.output_head import OutputHead, output_head
from chainwright.models.placement import input_device
from chainwright.models.residual import unembed
from chainwright.repair.back_attention.training import AnswerTraining, Row, descend, rows_of
from chainwright.tasks.base import Problem

_ROWS_READ = 32
_TOLERANCE = 0.05  # of the largest number; in bfloat16 thirty layers round to about a hundredth


class _Kept(NamedTuple):
    """A row with what the first pass held: the source's input `[T, D]` and the depths that are read, `[T, t, D]`."""

    row: Row
    source: Tensor
    targets: Tensor


def train_kept(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    heads: Sequence[BackHead],
    problems: Sequence[Problem],
    config: AnswerTraining,
    *,
    positions: Positions = None,
    tokens: Sequence[int] | None = None,
    progress: bool = False,
) -> list[float]:
    """Train one head on answers as `train` does, reading the first pass once; return the loss of each step.

    Args:
        model: A Transformers decoder.
        tokenizer: Its tokenizer.
        heads: One head, which is changed.
        problems: Questions and their answers.
        config: How it is trained.
        positions: As in `AttendBack`.
        tokens: As in `AttendBack`.
        progress: Show a progress bar.

    Raises:
        BadInput: Several heads, or problems that cannot be trained on.
        UnsupportedModel: The decoder cannot be run from the source layer on.
    """
    if len(heads) != 1:
        raise BadInput(f"is_kept trains one source layer; got {len(heads)}. Train several with is_kept=False.")
    parts = anatomy(model)
    with evaluating(parts.model):
        run = _Upper(parts, heads[0], positions, None if tokens is None else tuple(tokens))
        kept = run.read(rows_of(tokenizer, problems))
        trained = list(heads[0].parameters())
        with frozen(parts.model, but=trained):
            return descend(
                trained, kept, lambda drawn: run.loss(drawn, config.first_hop_weight), config, progress=progress
            )


class _Upper:
    """The layers from the source on, in bfloat16 where the processor multiplies in it, behind one head."""

    def __init__(self, parts: Anatomy, head: BackHead, positions: Positions, tokens: tuple[int, ...] | None):
        self.parts, self.head, self.positions, self.tokens = parts, head, positions, tokens
        self.device = input_device(parts.model)
        self.decoder = _cut(parts, head.source)
        self.dtype = next(self.decoder.parameters()).dtype
        self.output: OutputHead | None = None

    @torch.no_grad()
    def read(self, rows: Sequence[Row]) -> list[_Kept]:
        """Return the rows with what the first pass holds, after checking that the upper layers give the same end."""
        kept: list[_Kept] = []
        for start in range(0, len(rows), _ROWS_READ):
            some = rows[start : start + _ROWS_READ]
            ids = pad_sequence([torch.tensor(row.ids[:-1]) for row in some], batch_first=True).to(self.device)
            seen = capture(self.parts.model, ids, residual=True)
            assert seen.resid_pre is not None and seen.resid_post is not None
            depths = torch.cat([seen.resid_pre, seen.resid_post[-1:]])  # (depth, row, token, model)
            for i, row in enumerate(some):
                held = depths[:, i, : len(row.ids) - 1]
                read = held[list(self.head.targets)].transpose(0, 1)
                kept.append(_Kept(row, held[self.head.source].clone(), read.clone()))
            if start == 0:
                self._check(kept[0].source, self.parts.final_norm(depths[-1, 0, : len(kept[0].source)]))
        return kept

    def _check(self, source: Tensor, normed: Tensor) -> None:
        self.output = output_head(self.parts, normed, unembed(self.parts, normed))
        off = (self._ends(source[None])[0] - normed).abs().max() / normed.abs().max()
        if self.output is None or not bool(self.output.is_plain.all()) or not off <= _TOLERANCE:
            raise UnsupportedModel(
                f"The layers of this {self.parts.model.config.model_type} model cannot be run from layer "
                f"{self.head.source} on by themselves, so the first pass cannot be kept; train with is_kept=False."
            )

    def _ends(self, hidden: Tensor) -> Tensor:
        """Return what the final norm returns for rows of inputs of the source layer, `[N, T, D]`."""
        ends: Tensor = self.decoder(inputs_embeds=hidden.to(self.dtype), use_cache=False)[0]
        return ends.to(hidden.dtype)

    def loss(self, drawn: Sequence[_Kept], first_hop_weight: float) -> Tensor:
        """Return the mean loss over the answers' tokens, and over the first hops where they are named."""
        source = pad_sequence([one.source for one in drawn], batch_first=True)
        targets = pad_sequence([one.targets for one in drawn], batch_first=True).transpose(1, 2)
        keys, values = self.head.keys_values(targets)
        pattern = self.head.pattern(source, keys, self._visible(drawn, source.shape[1]))
        ends = self._ends(source + self.head.read(pattern, values))
        asked = [
            (i, len(one.row.ids) - one.row.n_answer - 1 + k, one.row.ids[len(one.row.ids) - one.row.n_answer + k])
            for i, one in enumerate(drawn)
            for k in range(one.row.n_answer)
        ]
        loss = self._loss_at(ends, asked)
        hops = [(i, *one.row.first_hop) for i, one in enumerate(drawn) if one.row.first_hop is not None]
        return loss + first_hop_weight * self._loss_at(ends, hops) if hops and first_hop_weight else loss

    def _loss_at(self, ends: Tensor, places: Sequence[tuple[int, int, int]]) -> Tensor:
        assert self.output is not None
        row, position, token = torch.tensor(places, device=ends.device).T
        return nn.functional.cross_entropy(self.output.every(ends[row, position]), token)

    def _visible(self, drawn: Sequence[_Kept], width: int) -> Tensor:
        """Return which positions each query may read, `[N, T, T]`; padding comes after all that asks."""
        at = torch.arange(width, device=self.device)
        visible = (at == at[:, None] if self.positions == "own" else at <= at[:, None])[None]
        if isinstance(self.positions, tuple):
            visible = visible & torch.isin(at, torch.tensor(self.positions, device=self.device))
        if self.tokens is not None:
            ids = pad_sequence([torch.tensor(one.row.ids[:-1]) for one in drawn], batch_first=True, padding_value=-1)
            wanted = torch.isin(ids, torch.tensor(self.tokens)).to(self.device)
            visible = visible & wanted[:, None]
        return visible.expand(len(drawn), width, width)


def _cut(parts: Anatomy, source: int) -> nn.Module:
    """Return the decoder without its layers below the source, sharing weights unless they become bfloat16."""
    decoder = copy.copy(parts.decoder)
    decoder._modules = dict(parts.decoder._modules)
    names = [name for name, module in decoder._modules.items() if isinstance(module, nn.ModuleList)]
    stacks = [name for name in names if [*decoder._modules[name]] == [layer.block for layer in parts.layers]]  # type: ignore[misc]
    if not stacks:
        raise UnsupportedModel("The decoder holds its layers in no list of its own; train with is_kept=False.")
    decoder._modules[stacks[0]] = nn.ModuleList([layer.block for layer in parts.layers[source:]])
    return copy.deepcopy(decoder).to(torch.bfloat16) if can_halve(parts) else decoder
