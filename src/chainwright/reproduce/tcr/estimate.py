"""What a reproduction would take, from the model's config alone: memory and hours, before anything is run or fetched.

Three things take time on a large model, and are counted: what every decoding step reads (all weights, and keys and
values of all rows), or starting the work of every layer where that takes longer; and the arithmetic of passes over
whole rows (prompts, and the runs without single heads that fitting needs). The speeds are assumed, not measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from transformers import PretrainedConfig

from chainwright import tasks
from chainwright._errors import BadInput
from chainwright.models.load import empty_model
from chainwright.repair.tcr.config import CandidateConfig, TCRConfig

if TYPE_CHECKING:
    from chainwright.reproduce.tcr.config import ReproduceTCRConfig

_GB = 1e9
_CHARACTERS = 3.5  # a token of English with numbers has about so many
_FLAG_RATE = 0.05  # share of tokens that a detector is expected to flag
_TYPES_A_TASK = 2  # key error types that heads are located at
_ROLE_SHARE = 0.02  # share of all heads that push the wrong token, as `RolesConfig` counts them
# as `generate` does it: rows decoded together, by the tokens that the longest may take
_MOST_ROWS, _TOKENS_AT_ONCE = 64, 2**15
_SECONDS_A_LAYER = 0.8e-3  # to start the work of one layer at one step, without compiling
_WITHOUT_VOTES = ("none", "DoLa", "remove", "best head")


class Shape(NamedTuple):
    """What the estimate needs to know of a model.

    Attributes:
        n_parameters: All weights.
        n_layers: Layers.
        n_heads: Query heads of all layers.
        bytes_per_weight: By the number type.
        cache_bytes: Keys and values of one token in all layers.
    """

    n_parameters: int
    n_layers: int
    n_heads: int
    bytes_per_weight: int
    cache_bytes: int


class Cell(NamedTuple):
    """One (task, hops): tokens of its prompt and of its right answer, about."""

    task: str
    prompt: int
    answer: int

    @property
    def most(self) -> int:
        """Return prompt and longest answer that is allowed."""
        return self.prompt + ceil(1.5 * self.answer) + 16


@dataclass(frozen=True)
class Estimate:
    """What a study would take.

    Attributes:
        n_parameters: Weights of the model.
        weight_gb: Their size.
        longest: Tokens of the longest prompt with its longest answer.
        n_rows: Most rows that are decoded together.
        cache_gb: Most that their keys and values take.
        branch_gb: Most that cached runs without single heads take.
        n_answers: Responses that are decoded, those to fit on not counted.
        n_tokens: Tokens of those responses, about.
        decode_hours: Decoding them.
        fit_hours: Fitting the repair: its traces, locating heads, and runs without the candidate heads.
        bandwidth_gbs: Memory bandwidth that is assumed, GB/s.
        tflops: Arithmetic that is assumed, 10^12 operations a second.
    """

    model: str
    n_parameters: int
    weight_gb: float
    longest: int
    n_rows: int
    cache_gb: float
    branch_gb: float
    n_answers: int
    n_tokens: int
    decode_hours: float
    fit_hours: float
    bandwidth_gbs: float
    tflops: float

    @property
    def memory_gb(self) -> float:
        """Return all that has to fit at once."""
        return self.weight_gb + self.cache_gb + self.branch_gb

    @property
    def hours(self) -> float:
        """Return the hours of the whole study."""
        return self.decode_hours + self.fit_hours

    def summary(self) -> str:
        """Return the estimate in words."""
        each = self.n_tokens // max(1, self.n_answers)
        fit = f"{self.fit_hours:.2f} to fit" if self.fit_hours else "nothing to fit"
        return (
            f"{self.model}: {self.n_parameters:,} weights. Memory about {self.memory_gb:.1f} GB: weights "
            f"{self.weight_gb:.1f}, keys and values of up to {self.n_rows} rows of up to {self.longest} tokens "
            f"{self.cache_gb:.1f}, cached runs without single heads at most {self.branch_gb:.1f}. {self.n_answers} "
            f"answers of about {each} tokens. About {self.hours:.2f} hours ({self.decode_hours:.2f} to decode, {fit}) "
            f"on one GPU with {self.bandwidth_gbs:.0f} GB/s and {self.tflops:.0f} TFLOP/s that takes "
            f"{1000 * _SECONDS_A_LAYER:g} ms to start each layer at each step. These speeds are assumed; loading, and "
            "training detector and selector, are not counted."
        )


def estimate(
    config: ReproduceTCRConfig,
    dtype: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    bandwidth_gbs: float = 2000.0,
    tflops: float = 150.0,
) -> Estimate:
    """Return the memory and hours of a study; only the model's config is read.

    Raises:
        BadInput: The config cannot be loaded.
    """
    shape = _shape(config.model, dtype, revision, trust_remote_code)
    cells = _cells(config, {task: [h for t, h in config.cells() if t == task] for task, _ in config.cells()})
    n_each = config.n * len(config.seeds)
    n_tokens = sum(cell.answer for cell in cells) * n_each * len(config.all_ways())
    groups = [group for group in _by_task(cells) for _ in config.seeds]
    speed = _Speed(shape, bandwidth_gbs * _GB, tflops * 1e12)
    seconds = sum(
        speed.decode(group, config.n, config.batch_size, has_votes=not way.startswith(_WITHOUT_VOTES))
        for way in config.all_ways()
        for group in groups
    )
    fit = _fit_seconds(config, speed) if config.repair is None else 0.0
    rows = {cell: min(config.n * len(group), _size(cell, config.batch_size)) for group in groups for cell in group}
    widest = max(rows, key=lambda cell: rows[cell] * cell.most)
    cache = rows[widest] * widest.most * shape.cache_bytes
    return Estimate(
        model=config.model,
        n_parameters=shape.n_parameters,
        weight_gb=shape.n_parameters * shape.bytes_per_weight / _GB,
        longest=max(cell.most for cell in cells),
        n_rows=max(rows.values()),
        cache_gb=cache / _GB,
        branch_gb=min(TCRConfig().max_bytes, cache * 8) / _GB,
        n_answers=len(cells) * n_each * len(config.all_ways()),
        n_tokens=n_tokens,
        decode_hours=seconds / 3600,
        fit_hours=fit / 3600,
        bandwidth_gbs=bandwidth_gbs,
        tflops=tflops,
    )


def _shape(name: str, dtype: str | None, revision: str | None, trust_remote_code: bool) -> Shape:
    try:
        empty = empty_model(name, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code)
    except BadInput as error:
        raise BadInput(f"The config of {name!r} cannot be read, so nothing can be planned: {error}") from error
    return _shape_of(empty.config, empty, dtype)


def _shape_of(found: PretrainedConfig, empty: nn.Module, dtype: str | None) -> Shape:
    number = getattr(torch, dtype or str(found.dtype or torch.float32).removeprefix("torch."))
    text: Any = found.get_text_config()
    n_kv_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    d_head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Shape(
        n_parameters=sum(p.numel() for p in empty.parameters()),
        n_layers=text.num_hidden_layers,
        n_heads=text.num_hidden_layers * text.num_attention_heads,
        bytes_per_weight=number.itemsize,
        cache_bytes=2 * text.num_hidden_layers * n_kv_heads * d_head * number.itemsize,
    )


def _cells(config: ReproduceTCRConfig, hops: Mapping[str, Sequence[int]]) -> list[Cell]:
    samples = [
        tasks.sample(task, int(h), 1, 0, rendering=config.rendering)[0] for task, counts in hops.items() for h in counts
    ]
    is_short = config.rendering == "short"
    return [Cell(p.task, _n_tokens(p.prompt, is_short), _n_tokens(p.chain, is_short)) for p in samples]


def _n_tokens(text: str, is_short: bool) -> int:
    return len(text.split()) if is_short else ceil(len(text) / _CHARACTERS)


def _by_task(cells: Sequence[Cell]) -> list[list[Cell]]:
    return [[cell for cell in cells if cell.task == task] for task in dict.fromkeys(cell.task for cell in cells)]


def _size(cell: Cell, asked: int | None) -> int:
    return asked or max(1, min(_MOST_ROWS, _TOKENS_AT_ONCE // cell.most))


class _Speed(NamedTuple):
    """How long reading and arithmetic take."""

    shape: Shape
    bytes_per_second: float
    operations_per_second: float

    def decode(self, cells: Sequence[Cell], n: int, batch_size: int | None, *, has_votes: bool) -> float:
        """Return the seconds for `n` problems of each cell, decoded in batches of about one length."""
        size = min(_size(max(cells, key=lambda cell: cell.most), batch_size), n * len(cells))
        n_batches = n * len(cells) / size
        steps = max(cell.answer for cell in cells)
        context = sum(cell.prompt + cell.answer / 2 for cell in cells) / len(cells)
        weights = self.shape.n_parameters * self.shape.bytes_per_weight
        step = self.step(weights + size * context * self.shape.cache_bytes)
        # a step with a flagged row takes one more, of the runs without heads
        again = min(1.0, _FLAG_RATE * size) * self.step(weights) if has_votes else 0.0
        prompts = self.passes(n * sum(cell.prompt for cell in cells))
        return n_batches * steps * (step + again) + prompts

    def step(self, n_bytes: float) -> float:
        """Return the seconds for one decoding step that reads so many bytes."""
        return max(n_bytes / self.bytes_per_second, self.shape.n_layers * _SECONDS_A_LAYER)

    def passes(self, n_tokens: float) -> float:
        """Return the seconds for passes over so many tokens of whole rows."""
        return 2 * self.shape.n_parameters * n_tokens / self.operations_per_second


def _fit_seconds(config: ReproduceTCRConfig, speed: _Speed) -> float:
    """Return the seconds for the traces to fit on, for locating heads, and for runs without the candidate heads."""
    cells = _cells(config, config.fit_hops)
    sizes = CandidateConfig()
    groups = _by_task(cells)
    decoding = sum(speed.decode(group, config.fit_n, config.batch_size, has_votes=False) for group in groups)
    n_types = _TYPES_A_TASK * len(groups)
    whole = sum(cell.prompt + cell.answer for cell in cells) / len(cells)
    to_slot = sum(cell.prompt + cell.answer / 2 for cell in cells) / len(cells)
    n_heads = speed.shape.n_heads
    # a run without a head begins at its layer, half of the way on average
    located = 0.5 * n_heads * n_types * 2 * sizes.n_contexts * to_slot
    pool = min(n_heads, n_types * max(3, round(_ROLE_SHARE * n_heads)))
    n_lessons = config.fit_n * len(cells)
    lessons = n_lessons * (1 + sizes.max_heads) * whole + min(sizes.n_lessons, n_lessons) * (1 + pool) * whole
    return decoding + speed.passes(located + lessons)


__all__ = ["Estimate", "estimate"]
