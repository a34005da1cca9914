"""Back attention as a repair: fitted beside a frozen model, attached while it decodes, saved and shared."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from chainwright._config import Config
from chainwright._errors import BadInput
from chainwright._registry import register
from chainwright.edits.back_attention import AttendBack, BackHead, Positions
from chainwright.edits.base import edit
from chainwright.models.anatomy import Anatomy, anatomy
from chainwright.models.capture import capture
from chainwright.models.decoder import causal_lm
from chainwright.models.padding import left_pad
from chainwright.models.placement import device_of, input_device
from chainwright.repair.back_attention.kept_pass import train_kept
from chainwright.repair.back_attention.training import AnswerTraining, check_unsolved, rows_of, train
from chainwright.repair.base import Origin, Repair, load_weights, model_identity
from chainwright.repair.run import Cost, counted
from chainwright.tasks.base import Problem

Targets = Sequence[int] | Literal["stack"] | None
D_BACK = 64
_N_MEASURED = 32  # problems that the stream's size is measured on


class _HeadSettings(Config):
    source: int = Field(description="Layer whose input is changed.")
    targets: tuple[int, ...] = Field(description="Depths that are read.")
    d_back: int = Field(description="Size of queries, keys and values.")
    d_model: int = Field(description="Size of the residual stream.")
    is_normed: bool = Field(description="Whether inputs of the projections are normed.")


class _Settings(Config):
    heads: tuple[_HeadSettings, ...] = Field(description="The heads.")
    positions: tuple[int, ...] | Literal["own"] | None = Field(default=None, description="Positions that are read.")
    tokens: tuple[int, ...] | None = Field(default=None, description="Tokens that are read.")


@register("repair", "back-attention")
class BackAttention(Repair):
    """Deep layers read back into shallow ones, with parameters of their own beside a frozen model.

    Attributes:
        heads: One head for each source layer.
        positions: Positions that are read, as in `AttendBack`; None reads all.
        tokens: Ids of the tokens that are read; None reads any.

    Source: back attention (arXiv 2502.10835), section 4; see `AttendBack` for the computation.
    """

    kind = "back-attention"
    schema = _Settings
    remedy = "fit one for this model (chainwright fit back-attention)"

    def __init__(
        self,
        heads: Sequence[BackHead],
        *,
        positions: Positions = None,
        tokens: Sequence[int] | None = None,
        origin: Origin | None = None,
    ):
        super().__init__(origin)
        self.heads, self.positions = tuple(heads), positions
        self.tokens = None if tokens is None else tuple(tokens)
        self._edit_of(self.heads)  # refuses no heads, two of one layer, and nothing to read

    @classmethod
    def new(
        cls,
        model: nn.Module,
        *,
        source: int | Sequence[int] = 0,
        targets: Targets = None,
        d_back: int = D_BACK,
        is_normed: bool = True,
        positions: Positions = None,
        tokens: Sequence[int] | None = None,
        seed: int = 0,
    ) -> BackAttention:
        """Return an untrained back attention, which changes nothing.

        Args:
            model: The model that it is for.
            source: Layer, or layers, whose input is changed; negative ones count from the last.
            targets: Depths that are read: t is the input of layer t, L the last layer's output. None reads the last
                layer's output alone, "stack" every depth from each source layer on.
            d_back: Size of queries, keys and values.
            is_normed: Norm the inputs of the projections.
            positions: Positions that may be read, counted from a prompt's first token, each query's "own", or all.
            tokens: Ids of the tokens that may be read; None for any.
            seed: Decides the starting weights.

        Raises:
            BadInput: No such layer, or a source layer above a target.
        """
        parts = anatomy(model)
        sources = [parts.check_layer(s) for s in ([source] if isinstance(source, int) else source)]
        torch.manual_seed(seed)
        heads = []
        for s in sources:
            heads.append(BackHead(parts.d_model, s, _depths(parts, s, targets), d_back, is_normed))
        return cls(heads, positions=positions, tokens=tokens, origin=Origin(model_identity(parts.model)))

    @classmethod
    def fit(
        cls,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        problems: Sequence[Problem],
        *,
        source: int | Sequence[int] = 0,
        targets: Targets = None,
        d_back: int = D_BACK,
        is_normed: bool = True,
        positions: Positions = None,
        tokens: Sequence[int] | None = None,
        start: float = 0.5,
        training: AnswerTraining | None = None,
        progress: bool = True,
    ) -> BackAttention:
        """Return a back attention trained on questions and their answers, the model frozen.

        The loss is the mean over all tokens of the answer (not its first one alone). Problems that name `r1` and `e2`
        among their facts add the first hop's answer at the first relation, so that single hops stay known; see
        `AnswerTraining.first_hop_weight`.

        Args:
            model: A Transformers decoder.
            tokenizer: Its tokenizer.
            problems: Questions that the model does not answer yet: what it knows already trains nothing.
            source: As in `new`.
            targets: As in `new`.
            d_back: As in `new`.
            is_normed: As in `new`.
            positions: As in `new`.
            tokens: As in `new`.
            start: Size of what is written to the stream before the first step, as a share of the stream's own: part of
                what is read, as it is. 0 starts from nothing, as in the paper.
            training: How it is trained; None takes the defaults.
            progress: Show a progress bar.

        Raises:
            BadInput: No problems, prompts that hold their answers, problems that the model answers already, or layers
                that do not fit.
        """
        settings = training or AnswerTraining()
        check_unsolved(model, tokenizer, problems)
        repair = cls.new(
            model, source=source, targets=targets, d_back=d_back, is_normed=is_normed, positions=positions,
            tokens=tokens, seed=settings.seed,
        )  # fmt: skip
        placed = _placed(repair.heads, anatomy(model))
        heads = nn.ModuleList(placed).requires_grad_(True)
        begin(placed, model, tokenizer, problems, start)
        if settings.is_kept:
            train_kept(model, tokenizer, placed, problems, settings, tokens=repair.tokens, positions=positions,
                       progress=progress)  # fmt: skip
        else:
            with edit(model, repair._edit_of(placed)):
                train(model, tokenizer, heads.parameters(), problems, settings, progress=progress)
        heads.requires_grad_(False)
        return cls(placed, positions=positions, tokens=tokens, origin=repair.origin)

    @property
    def n_parameters(self) -> int:
        """Return the number of parameters."""
        return sum(weight.numel() for head in self.heads for weight in head.parameters())

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[Cost]:
        """Let `model` run with the back attention; what it takes is counted in `cost`."""
        self.check_model(model)
        parts = anatomy(model)
        self.cost = cost = Cost()
        with counted(parts, cost), edit(model, self._edit(parts), strict=False) as (touched,):
            try:
                yield cost
            finally:
                cost.add_work(touched)

    def _edit(self, parts: Anatomy) -> AttendBack:
        return self._edit_of([head.requires_grad_(False) for head in _placed(self.heads, parts)])

    def _edit_of(self, heads: Sequence[BackHead]) -> AttendBack:
        return AttendBack(heads, positions=self.positions, tokens=self.tokens)

    def describe(self) -> str:
        """Return what the repair does."""
        parts = "; ".join(
            f"layer {head.source} reads depths {', '.join(map(str, head.targets))} with size {head.d_back}"
            for head in self.heads
        )
        return (
            f"Back attention (arXiv 2502.10835): {parts}{self._where()}. {self.n_parameters:,} parameters beside the "
            "frozen model; layers from the first source on run twice."
        )

    def _where(self) -> str:
        at = {None: "", "own": ", at its own position"}.get(self.positions, f", at positions {self.positions}")  # type: ignore[arg-type]
        return at + ("" if self.tokens is None else f", where one of the tokens {list(self.tokens)} is")

    def settings(self) -> dict[str, Any]:
        """Return layers, sizes, and what is read."""
        limits = {"positions": self.positions, "tokens": self.tokens}
        return {
            **{name: value if value == "own" else list(value) for name, value in limits.items() if value is not None},
            "heads": [
                {
                    "source": head.source,
                    "targets": list(head.targets),
                    "d_back": head.d_back,
                    "d_model": head.q.in_features,
                    "is_normed": head.is_normed,
                }
                for head in self.heads
            ],
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return the heads' weights."""
        return {f"{head.source}.{name}": weight for head in self.heads for name, weight in head.state_dict().items()}

    @classmethod
    def restore(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], origin: Origin) -> BackAttention:
        """Return the repair that `settings` and `tensors` describe."""
        heads = []
        for one in settings["heads"]:
            head = BackHead(one["d_model"], one["source"], one["targets"], one["d_back"], one["is_normed"])
            prefix = f"{one['source']}."
            own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            load_weights(head, own, f"the head of layer {one['source']}")
            heads.append(head)
        positions: Any = settings.get("positions")
        if not (positions is None or isinstance(positions, str)):
            positions = tuple(positions)
        return cls(heads, positions=positions, tokens=settings.get("tokens"), origin=origin)


def begin(
    heads: Sequence[BackHead],
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    share: float,
) -> None:
    """Let untrained heads write what they read back, `share` times as large as the stream that it is added to.

    From zeros, training first finds that being unsure of everything lowers the loss, and may stay there.

    Raises:
        BadInput: `share` is negative, or there are no problems that can be trained on.
    """
    if share < 0:
        raise BadInput(f"start must be at least 0; got {share}.")
    rows = rows_of(tokenizer, problems[:_N_MEASURED])
    if share == 0:
        return
    ids, mask = left_pad([row.ids for row in rows], 0, input_device(causal_lm(model)))
    seen = capture(model, ids, attention_mask=mask, residual=True)
    assert seen.resid_pre is not None and seen.resid_post is not None
    depths = torch.cat([seen.resid_pre, seen.resid_post[-1:]])[:, mask.bool()]  # (depth, token, model)
    for head in heads:
        given = 1.0 if head.is_normed else _size(depths[list(head.targets)])
        head.write_back(share * _size(depths[head.source]) / given)


def _size(vectors: Tensor) -> float:
    """Return the median root mean square, which single huge positions do not move."""
    return float(vectors.float().pow(2).mean(-1).sqrt().median())


def _depths(parts: Anatomy, source: int, targets: Targets) -> tuple[int, ...]:
    """Return the depths that a source layer reads."""
    if targets is None:
        return (parts.n_layers,)
    if isinstance(targets, str):
        if targets != "stack":
            raise BadInput(f"targets must be depths such as (4, 5), 'stack' or None; got {targets!r}.")
        return tuple(range(source, parts.n_layers + 1))
    wrong = [t for t in targets if not 0 <= t <= parts.n_layers]
    if wrong:
        raise BadInput(
            f"Target {wrong[0]} does not exist: targets go from 0 (the input of layer 0) to {parts.n_layers} (the last "
            "layer's output)."
        )
    return tuple(targets)


def _placed(heads: Sequence[BackHead], parts: Anatomy) -> list[BackHead]:
    """Return copies of the heads where the model's layers are, in its number type."""
    out = []
    for head in heads:
        where = device_of(parts.layers[head.source].block)
        out.append(copy.deepcopy(head).to(where, parts.model.dtype))
    return out
